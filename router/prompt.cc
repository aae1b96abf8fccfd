#include "router/prompt.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/reply/reply.h"

namespace phalanx::router {
namespace {

using core::FieldError;

constexpr char kTooLong[] = "context_length_exceeded";
constexpr size_t kMostBadSequences = 1024;  // what a worker takes
constexpr size_t kMostBadIds = 256;         // of one sequence

const char* InputField(const core::Draft& draft) { return draft.kind == core::Kind::kChat ? "messages" : "prompt"; }

absl::Status TooLong(const char* field, const std::string& message) { return core::WithErrorCode(FieldError(field, message), kTooLong); }

// A room below speaks without field names; the client gets the one it wrote.
absl::Status InField(const char* field, const absl::Status& status) {
  return FieldError(field, std::string_view(status.message().data(), status.message().size()));
}

// Ids the prompt may keep; 0 = all.
int64_t KeepOf(const core::ValidRequest& request, const PromptLimits& limits) {
  const auto& asked = request.draft.truncate_prompt_tokens;
  if (!asked) return 0;
  if (*asked > 0) return *asked;
  if (limits.max_model_len == 0) return 0;
  return std::max<int64_t>(1, int64_t{limits.max_model_len} - std::max(1, request.sampling.max_tokens.value_or(1)));
}

}  // namespace

absl::StatusOr<int32_t> OutputBudget(const core::ValidRequest& request, int64_t prompt_tokens, int32_t max_model_len) {
  const auto& asked = request.sampling.max_tokens;
  const int64_t context = max_model_len > 0 ? max_model_len : std::numeric_limits<int32_t>::max();
  const int64_t room = context - prompt_tokens;
  if (room < 1) {
    return TooLong(InputField(request.draft),
                   absl::StrCat("This model's maximum context length is ", context, " tokens. However, your request has ", prompt_tokens,
                                " input tokens, and at least one is needed for the output. Please reduce the length of the input."));
  }
  // A number the client gave is held to; a default shrinks to what is left.
  const int64_t wanted = asked ? std::max(1, *asked) : room;
  if (wanted > room && request.draft.sampling.max_tokens) {
    return TooLong("max_tokens", absl::StrCat("This model's maximum context length is ", context, " tokens. However, you requested ",
                                              prompt_tokens + wanted, " tokens (", prompt_tokens, " input tokens and ", wanted,
                                              " output tokens). Please reduce the length of the input or max_tokens."));
  }
  const int64_t budget = std::min(wanted, room);
  if (request.sampling.min_tokens > budget) {
    return TooLong("min_tokens", absl::StrCat("min_tokens is ", request.sampling.min_tokens, ", but this request has room for only ",
                                              budget, " output tokens after ", prompt_tokens, " input tokens."));
  }
  return static_cast<int32_t>(budget);
}

PromptMaker::PromptMaker(std::shared_ptr<const text::Tokenizer> tokenizer, std::shared_ptr<const text::ChatTemplate> chat_template)
    : tokenizer_(std::move(tokenizer)), template_(std::move(chat_template)) {}

absl::StatusOr<PromptMaker::Encoded> PromptMaker::EncodeChat(const core::Draft& draft) const {
  if (template_ == nullptr) {
    return FieldError("chat_template", "The model has no chat template, so it cannot serve chats: start the server with --chat-template.");
  }
  absl::StatusOr<std::string> rendered = template_->Render({.messages_json = draft.messages_json,
                                                            .tools_json = draft.tools_json,
                                                            .kwargs_json = draft.template_kwargs_json,
                                                            .add_generation_prompt = draft.add_generation_prompt,
                                                            .continue_final_message = draft.continue_final_message});
  if (!rendered.ok()) return InField("chat_template", rendered.status());
  Encoded out;
  out.text = *std::move(rendered);
  // The template writes its own first token.
  out.special_added = draft.add_special_tokens.value_or(false);
  auto ids = tokenizer_->Encode(out.text, out.special_added ? text::SpecialTokens::kAdd : text::SpecialTokens::kNone);
  if (!ids.ok()) return InField("messages", ids.status());
  out.ids = *std::move(ids);
  return out;
}

absl::StatusOr<PromptMaker::Encoded> PromptMaker::EncodePrompt(const core::Draft& draft, const core::Prompt& prompt) const {
  Encoded out;
  if (const auto* ids = std::get_if<std::vector<int64_t>>(&prompt)) {
    PHX_RETURN_IF_ERROR(core::CheckTokenIds("prompt", *ids, core::Limits{}));  // fits 32 bits; the vocabulary is checked later
    out.ids.assign(ids->begin(), ids->end());
    return out;
  }
  out.text = std::get<std::string>(prompt);
  out.special_added = draft.add_special_tokens.value_or(true);
  auto ids = tokenizer_->Encode(out.text, out.special_added ? text::SpecialTokens::kAdd : text::SpecialTokens::kNone);
  if (!ids.ok()) return InField("prompt", ids.status());
  out.ids = *std::move(ids);
  return out;
}

void PromptMaker::Truncate(int64_t keep, Encoded* encoded) const {
  std::vector<int32_t>& ids = encoded->ids;
  if (keep <= 0 || static_cast<int64_t>(ids.size()) <= keep) return;
  const bool keeps_bos = encoded->special_added && keep > 1 && tokenizer_->bos_id() == ids.front();
  ids.erase(ids.begin() + (keeps_bos ? 1 : 0), ids.end() - (keep - (keeps_bos ? 1 : 0)));
  encoded->text.clear();  // no longer the text of these ids
}

absl::StatusOr<PreparedPrompt> PromptMaker::Finish(const core::ValidRequest& request, const PromptLimits& limits, Encoded encoded) const {
  const core::Draft& draft = request.draft;
  PreparedPrompt out;
  // Before truncation: it cuts at the front.
  out.opens_reasoning = draft.kind == core::Kind::kChat && reply::PromptOpensReasoning(encoded.text);
  Truncate(KeepOf(request, limits), &encoded);
  if (encoded.ids.empty()) return FieldError(InputField(draft), absl::StrCat(InputField(draft), " has no tokens."));
  for (const int32_t id : encoded.ids) {
    if (limits.vocab_size == 0 || id < limits.vocab_size) continue;
    return FieldError(InputField(draft),
                      absl::StrCat(InputField(draft), " holds token id ", id, ", which is not in [0, ", limits.vocab_size, ")."));
  }
  PHX_ASSIGN_OR_RETURN(out.max_tokens, OutputBudget(request, static_cast<int64_t>(encoded.ids.size()), limits.max_model_len));
  if (draft.kind == core::Kind::kCompletion && draft.echo) {
    out.echo_text = encoded.text.empty() ? tokenizer_->Decode(encoded.ids, request.sampling.skip_special_tokens) : std::move(encoded.text);
  }
  out.ids = std::make_shared<const std::vector<int32_t>>(std::move(encoded.ids));
  return out;
}

// As vLLM does: each word as it stands at the start of a text and, when that is another sequence of the same length, after a space.
absl::StatusOr<std::vector<std::vector<int32_t>>> PromptMaker::BadWords(const std::vector<std::string>& words) const {
  std::vector<std::vector<int32_t>> out;
  for (const std::string& word : words) {
    const size_t first = word.find_first_not_of(" \t\r\n");
    if (first == std::string::npos) return FieldError("bad_words", "bad_words must not hold a string of white space alone.");
    const std::string bare = word.substr(first);
    auto plain = tokenizer_->Encode(bare, text::SpecialTokens::kNone);
    if (!plain.ok()) return InField("bad_words", plain.status());
    PHX_ASSIGN_OR_RETURN(std::vector<int32_t> spaced, tokenizer_->Encode(" " + bare, text::SpecialTokens::kNone));
    if (plain->empty()) continue;
    if (std::max(plain->size(), spaced.size()) > kMostBadIds) {
      return FieldError("bad_words", absl::StrCat("bad_words holds a string of more than ", kMostBadIds, " tokens."));
    }
    if (spaced.size() == plain->size() && spaced.front() != plain->front()) out.push_back(std::move(spaced));
    out.push_back(*std::move(plain));
  }
  if (out.size() > kMostBadSequences) {
    return FieldError("bad_words",
                      absl::StrCat("bad_words makes ", out.size(), " token sequences, more than the limit of ", kMostBadSequences, "."));
  }
  return out;
}

absl::StatusOr<PreparedRequest> PromptMaker::Prepare(const core::ValidRequest& request, const PromptLimits& limits) const {
  const core::Draft& draft = request.draft;
  PreparedRequest out;
  PHX_ASSIGN_OR_RETURN(out.bad_words, BadWords(request.sampling.bad_words));
  if (draft.kind == core::Kind::kChat) {
    PHX_ASSIGN_OR_RETURN(Encoded encoded, EncodeChat(draft));
    PHX_ASSIGN_OR_RETURN(PreparedPrompt prompt, Finish(request, limits, std::move(encoded)));
    out.prompts.push_back(std::move(prompt));
    return out;
  }
  out.prompts.reserve(draft.prompts.size());
  for (const core::Prompt& text : draft.prompts) {
    PHX_ASSIGN_OR_RETURN(Encoded encoded, EncodePrompt(draft, text));
    PHX_ASSIGN_OR_RETURN(PreparedPrompt prompt, Finish(request, limits, std::move(encoded)));
    out.prompts.push_back(std::move(prompt));
  }
  return out;
}

absl::StatusOr<std::vector<int32_t>> PromptMaker::Encode(const core::Draft& draft) const {
  if (draft.kind == core::Kind::kChat) {
    PHX_ASSIGN_OR_RETURN(Encoded chat, EncodeChat(draft));
    return std::move(chat.ids);
  }
  if (draft.prompts.size() != 1) return FieldError("prompt", "prompt must hold exactly one prompt.");
  PHX_ASSIGN_OR_RETURN(Encoded prompt, EncodePrompt(draft, draft.prompts.front()));
  return std::move(prompt.ids);
}

}  // namespace phalanx::router
