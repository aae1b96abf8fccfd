// router/core/validate.h: the one validation: a draft from any door becomes a ValidRequest, or a status that names the field.
// Refuses to know: JSON, protobuf, tokenizers. Thread: pure functions.
// Neighbours: every door calls Validate before the handler; a ValidRequest proves that it was done.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "router/core/request.h"
#include "services/status.h"

namespace phalanx::router::core {

// generation_config.json's defaults (empty with --generation-config vllm).
struct GenerationDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k, max_tokens;
};

// What requests may ask of the served model.
struct Limits {
  std::vector<std::string> served_names;   // the first is the default
  int32_t vocab_size = 0;                  // logits' width, from the workers
  int32_t max_model_len = 0;
  int32_t max_logprobs = 20;               // -1 = all the kernel table gives (64)
  int64_t max_n = 128;
  int64_t max_prompts = 128;
  int64_t max_choices = 1024;              // prompts x n
  int64_t max_stops = 16;
  int64_t max_stop_bytes = 1024;
  GenerationDefaults defaults;
};

// Numbers are in range and defaults are filled in. Ids are below vocab_size.
struct ValidSampling {
  float temperature = 1, top_p = 1, min_p = 0, repetition_penalty = 1, frequency_penalty = 0, presence_penalty = 0;
  int32_t top_k = 0;
  std::optional<uint64_t> seed;            // absent: the relay draws one
  int32_t n = 1;
  std::optional<int32_t> max_tokens;       // absent: fill the context (chat); completions default to 16; 0 only with echo
  int32_t min_tokens = 0;
  int32_t logprobs = -1;                   // -1 none, 0 chosen only, N top N
  int32_t prompt_logprobs = -1;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> allowed_token_ids, stop_token_ids;
  std::vector<std::string> bad_words, stop;
  bool ignore_eos = false, include_stop_in_output = false, skip_special_tokens = true;
};

struct ValidRequest {
  Draft draft;                             // unchanged; `draft.sampling` is superseded by `sampling`
  std::string served_name;                 // what replies carry as `model`
  ValidSampling sampling;
};

// Errors: kNotFound for an unknown model; kInvalidArgument for the rest. The field's name is the payload kFieldPayload of the status.
absl::StatusOr<ValidRequest> Validate(Draft draft, const Limits& limits);

// The served name that `model` means ("" = the first). Errors: kNotFound with code model_not_found.
absl::StatusOr<std::string> ServedName(const std::string& model, const Limits& limits);
// Every id in [0, vocab_size). Errors: kInvalidArgument that names `field`.
absl::Status CheckTokenIds(std::string_view field, const std::vector<int64_t>& ids, const Limits& limits);

// A kInvalidArgument that names its field; FieldOf reads the name back ("" if none).
absl::Status FieldError(std::string_view field, std::string_view message);
std::string FieldOf(const absl::Status& status);
// A status with a machine-readable code of the error reply ("context_length_exceeded", "queue_full", ...); CodeOf reads it back.
absl::Status WithErrorCode(absl::Status status, std::string_view code);
std::string ErrorCodeOf(const absl::Status& status);
// Seconds for Retry-After on kResourceExhausted and kUnavailable; 0 = none.
absl::Status WithRetryAfter(absl::Status status, int seconds);
int RetryAfterOf(const absl::Status& status);

}  // namespace phalanx::router::core
