#include <utility>

#include "text/impl.h"

namespace phalanx::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// What stands at the start of some bytes.
struct Utf8Unit {
  enum Kind { kWhole, kBroken, kUnfinished } kind;
  size_t size;  // bytes of the character, or of its longest valid prefix (at least 1)
};

// The Unicode standard's table of well-formed sequences (table 3-7): only the second byte's range depends on the first.
Utf8Unit Classify(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {Utf8Unit::kWhole, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Unit::kBroken, 1};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Unit::kUnfinished, i};
    if (at(i) < low || at(i) > high) return {Utf8Unit::kBroken, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Unit::kWhole, length};
}

void AppendUtf8(uint32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
    return;
  }
  const int tail = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  constexpr uint8_t kLead[] = {0, 0xC0, 0xE0, 0xF0};
  out->push_back(static_cast<char>(kLead[tail] | (code >> (6 * tail))));
  for (int i = tail - 1; i >= 0; --i) out->push_back(static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F)));
}

}  // namespace

void Utf8Joiner::Replace(size_t bytes, std::string* out) const {
  for (size_t i = 0; i < (replace_each_byte_ ? bytes : 1); ++i) out->append(kReplacement);
}

void Utf8Joiner::Append(std::string_view bytes, std::string* out) {
  if (held_size_ == 0) return Scan(bytes, out);
  std::string joined(held_, held_size_);
  joined.append(bytes);
  held_size_ = 0;
  Scan(joined, out);
}

void Utf8Joiner::Scan(std::string_view bytes, std::string* out) {
  size_t clean = 0;  // bytes[clean, at) are whole characters, not yet written
  size_t at = 0;
  while (at < bytes.size()) {
    if (static_cast<uint8_t>(bytes[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Unit unit = Classify(bytes.substr(at));
    if (unit.kind == Utf8Unit::kWhole) {
      at += unit.size;
      continue;
    }
    out->append(bytes.substr(clean, at - clean));
    if (unit.kind == Utf8Unit::kUnfinished) {
      held_size_ = static_cast<uint8_t>(unit.size);
      bytes.copy(held_, unit.size, at);
      return;
    }
    Replace(unit.size, out);
    at += unit.size;
    clean = at;
  }
  out->append(bytes.substr(clean));
}

void Utf8Joiner::Flush(std::string* out) {
  if (held_size_ > 0) Replace(held_size_, out);
  held_size_ = 0;
}

TokenJoiner::TokenJoiner(const TokenizerData* data, Detokenizer::Options options)
    : data_(data),
      skip_special_(options.skip_special),
      at_start_(!options.after_prompt),
      strip_left_(options.after_prompt ? 0 : data->vocab.strip_count),
      utf8_(data->byte_fallback) {}

void TokenJoiner::Append(int32_t id, std::string* out) {
  if (!data_->Known(id) || (skip_special_ && data_->Special(id))) return;
  const size_t start = out->size();
  if (data_->vocab.join_with_space != 0 && !at_start_) utf8_.Append(" ", out);
  utf8_.Append(at_start_ ? data_->First(id) : data_->Piece(id), out);
  at_start_ = false;
  if (strip_left_ > 0) StripFirst(start, out);
}

void TokenJoiner::Flush(std::string* out) {
  const size_t start = out->size();
  utf8_.Flush(out);
  if (strip_left_ > 0) StripFirst(start, out);
}

void TokenJoiner::StripFirst(size_t start, std::string* out) {
  std::string character;
  AppendUtf8(data_->vocab.strip_char, &character);
  while (strip_left_ > 0 && out->size() > start) {
    if (out->compare(start, character.size(), character) != 0) {
      strip_left_ = 0;
      return;
    }
    out->erase(start, character.size());
    --strip_left_;
  }
}

struct Detokenizer::Impl {
  Impl(std::shared_ptr<const Tokenizer> owner, const TokenizerData* data, Options given)
      : tokenizer(std::move(owner)), options(given), joiner(data, given) {}
  std::shared_ptr<const Tokenizer> tokenizer;  // keeps the tables alive
  Options options;
  TokenJoiner joiner;
};

Detokenizer::Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, Options options) {
  const TokenizerData* data = tokenizer->impl_.get();
  impl_ = std::make_unique<Impl>(std::move(tokenizer), data, options);
}
Detokenizer::~Detokenizer() = default;
Detokenizer::Detokenizer(Detokenizer&&) noexcept = default;

std::string Detokenizer::Append(int32_t id) {
  std::string out;
  impl_->joiner.Append(id, &out);
  return out;
}

std::string Detokenizer::Flush() {
  std::string out;
  impl_->joiner.Flush(&out);
  // Empty again: what follows is a new text, of the same kind.
  impl_->joiner = TokenJoiner(impl_->tokenizer->impl_.get(), impl_->options);
  return out;
}

}  // namespace phalanx::text
