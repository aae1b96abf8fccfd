#include "router/core/validate.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/core/validate_internal.h"

namespace phalanx::router::core {
namespace {

constexpr size_t kMaxNameInMessage = 100;
constexpr size_t kMaxSaltBytes = 128;

absl::Status CheckPrompts(const Draft& draft, const Limits& limits) {
  if (draft.prompts.empty()) return FieldError("prompt", "prompt must hold at least one prompt.");
  if (static_cast<int64_t>(draft.prompts.size()) > limits.max_prompts) {
    return FieldError("prompt", absl::StrCat("prompt holds ", draft.prompts.size(), " prompts, more than the limit of ", limits.max_prompts, "."));
  }
  for (const Prompt& prompt : draft.prompts) {
    const auto* ids = std::get_if<std::vector<int64_t>>(&prompt);
    if (ids == nullptr) continue;
    if (ids->empty()) return FieldError("prompt", "prompt must not be an empty list of token ids.");
    PHX_RETURN_IF_ERROR(CheckTokenIds("prompt", *ids, limits));
  }
  return absl::OkStatus();
}

absl::Status CheckChat(const Draft& draft) {
  if (draft.messages_json.empty() || draft.messages_json == "[]") {
    return FieldError("messages", "messages must hold at least one message.");
  }
  if (draft.add_generation_prompt && draft.continue_final_message) {
    return FieldError("continue_final_message", "continue_final_message and add_generation_prompt cannot both be true.");
  }
  return absl::OkStatus();
}

absl::Status CheckSalt(const std::string& salt) {
  if (salt.size() > kMaxSaltBytes) {
    return FieldError("cache_salt", absl::StrCat("cache_salt is longer than ", kMaxSaltBytes, " bytes."));
  }
  if (salt.find_first_of(std::string_view("@/\\\0", 4)) != std::string::npos) {
    return FieldError("cache_salt", "cache_salt must not contain '@', '/', '\\' or NUL.");
  }
  return absl::OkStatus();
}

absl::Status CheckTruncation(const Draft& draft, const Limits& limits) {
  if (!draft.truncate_prompt_tokens) return absl::OkStatus();
  const int64_t value = *draft.truncate_prompt_tokens;
  if (value != -1 && value < 1) {
    return FieldError("truncate_prompt_tokens", absl::StrCat("truncate_prompt_tokens must be -1 or at least 1, got ", value, "."));
  }
  const int64_t most = limits.max_model_len > 0 ? limits.max_model_len : std::numeric_limits<int32_t>::max();
  if (value > most) {
    return FieldError("truncate_prompt_tokens",
                      absl::StrCat("truncate_prompt_tokens is ", value, ", more than the model's context of ", most, " tokens."));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ServedName(const std::string& model, const Limits& limits) {
  if (model.empty() && !limits.served_names.empty()) return limits.served_names.front();
  if (std::find(limits.served_names.begin(), limits.served_names.end(), model) != limits.served_names.end()) return model;
  const std::string shown = model.size() > kMaxNameInMessage ? model.substr(0, kMaxNameInMessage) + "..." : model;
  absl::Status status = absl::NotFoundError(absl::StrCat("The model `", shown, "` does not exist."));
  return WithErrorCode(std::move(status), "model_not_found");
}

absl::Status CheckTokenIds(std::string_view field, const std::vector<int64_t>& ids, const Limits& limits) {
  // Before the first worker the width is unknown; the worker checks again.
  const int64_t end = limits.vocab_size > 0 ? limits.vocab_size : int64_t{std::numeric_limits<int32_t>::max()} + 1;
  for (const int64_t id : ids) {
    if (id >= 0 && id < end) continue;
    return FieldError(field, absl::StrCat(absl::string_view(field.data(), field.size()), " holds token id ", id, ", which is not in [0, ", end, ")."));
  }
  return absl::OkStatus();
}

absl::StatusOr<ValidRequest> Validate(Draft draft, const Limits& limits) {
  PHX_ASSIGN_OR_RETURN(std::string served_name, ServedName(draft.model, limits));
  PHX_RETURN_IF_ERROR(draft.kind == Kind::kChat ? CheckChat(draft) : CheckPrompts(draft, limits));
  PHX_RETURN_IF_ERROR(CheckSalt(draft.cache_salt));
  PHX_RETURN_IF_ERROR(CheckTruncation(draft, limits));
  if (draft.priority != 0) {
    return FieldError("priority", "priority must be 0: the server schedules first come, first served.");
  }
  PHX_ASSIGN_OR_RETURN(ValidSampling sampling, ValidateSampling(draft, limits));
  const int64_t prompts = draft.kind == Kind::kChat ? 1 : static_cast<int64_t>(draft.prompts.size());
  if (prompts * sampling.n > limits.max_choices) {
    return FieldError("n", absl::StrCat(prompts, " prompts times n = ", sampling.n, " is more than the limit of ", limits.max_choices, " choices."));
  }
  return ValidRequest{std::move(draft), std::move(served_name), std::move(sampling)};
}

}  // namespace phalanx::router::core
