#include "text/grammar.h"

#include <utility>

#include "text/impl.h"

namespace phalanx::text {
namespace {

PhxMatcher* Raw(void* handle) { return static_cast<PhxMatcher*>(handle); }

}  // namespace

Matcher::Matcher(Matcher&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)), words_(other.words_) {}

Matcher& Matcher::operator=(Matcher&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(words_, other.words_);
  return *this;
}

Matcher::~Matcher() { phx_matcher_free(Raw(handle_)); }

absl::Status Matcher::FillMask(uint32_t* mask) {
  PhxBytes error = {};
  return StatusOf(phx_matcher_mask(Raw(handle_), mask, words_, &error), error, "");
}

absl::Status Matcher::Accept(int32_t id) {
  PhxBytes error = {};
  return StatusOf(phx_matcher_accept(Raw(handle_), static_cast<uint32_t>(id), &error), error, "");
}

bool Matcher::may_end() const { return phx_matcher_state(Raw(handle_)) >= 1; }
bool Matcher::has_ended() const { return phx_matcher_state(Raw(handle_)) == 2; }

absl::StatusOr<std::shared_ptr<const GrammarEnv>> GrammarEnv::Create(std::shared_ptr<const Tokenizer> tokenizer,
                                                                     int32_t logits_width, const std::vector<int32_t>& end_ids) {
  std::shared_ptr<GrammarEnv> out(new GrammarEnv());
  const std::vector<uint32_t> ends(end_ids.begin(), end_ids.end());
  PhxGrammarEnv* handle = nullptr;
  PhxBytes error = {};
  const size_t width = logits_width < 0 ? 0 : static_cast<size_t>(logits_width);
  const int32_t code = phx_grammar_env_new(tokenizer->impl_->handle, width, ends.data(), ends.size(), &handle, &error);
  PHX_RETURN_IF_ERROR(StatusOf(code, error, ""));
  out->handle_ = handle;
  out->words_ = (width + 31) / 32;
  out->tokenizer_ = std::move(tokenizer);
  return std::shared_ptr<const GrammarEnv>(std::move(out));
}

GrammarEnv::~GrammarEnv() { phx_grammar_env_free(static_cast<PhxGrammarEnv*>(handle_)); }

absl::StatusOr<Matcher> GrammarEnv::Compile(GrammarKind kind, std::string_view source) const {
  PhxMatcher* matcher = nullptr;
  PhxBytes error = {};
  const int32_t code =
      phx_matcher_new(static_cast<const PhxGrammarEnv*>(handle_), static_cast<int32_t>(kind), Slice(source), &matcher, &error);
  PHX_RETURN_IF_ERROR(StatusOf(code, error, ""));
  return Matcher(matcher, words_);
}

}  // namespace phalanx::text
