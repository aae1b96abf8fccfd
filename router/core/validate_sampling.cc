#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/core/validate_internal.h"

namespace phalanx::router::core {
namespace {

constexpr int32_t kKernelTopLogprobs = 64;  // what a kernel table gives at most
constexpr size_t kMaxIdList = 4096;         // stop ids and biased ids of one request
constexpr size_t kMaxBadWords = 1024;
constexpr int64_t kDefaultCompletionTokens = 16;
constexpr double kMaxFloat = std::numeric_limits<float>::max();

// Request, then the model's generation config, then the API's default.
template <typename T>
T Or(const std::optional<T>& asked, const std::optional<T>& server, T api_default) {
  return asked ? *asked : server.value_or(api_default);
}

// A number with its range. `open_low` true: the lower end itself is outside.
struct Range {
  const char* field;
  double low, high;
  bool open_low = false;
};

absl::StatusOr<float> InRange(double value, const Range& range) {
  const bool inside = std::isfinite(value) && (range.open_low ? value > range.low : value >= range.low) && value <= range.high;
  // A positive double below the smallest float would round to a forbidden 0.
  if (inside && !(range.open_low && static_cast<float>(value) <= static_cast<float>(range.low))) return static_cast<float>(value);
  const std::string end = range.high == kMaxFloat ? "" : absl::StrCat(" and at most ", range.high);
  return FieldError(range.field, absl::StrCat(range.field, " must be ", range.open_low ? "above " : "at least ", range.low, end, ", got ", value, "."));
}

absl::StatusOr<int32_t> IntInRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return static_cast<int32_t>(value);
  return FieldError(field, absl::StrCat(field, " must be from ", low, " to ", high, ", got ", value, "."));
}

absl::Status SetNumbers(const SamplingDraft& in, const Limits& limits, ValidSampling* out) {
  const GenerationDefaults& defaults = limits.defaults;
  PHX_ASSIGN_OR_RETURN(out->temperature, InRange(Or(in.temperature, defaults.temperature, 1.0), {"temperature", 0, kMaxFloat}));
  PHX_ASSIGN_OR_RETURN(out->top_p, InRange(Or(in.top_p, defaults.top_p, 1.0), {"top_p", 0, 1, true}));
  PHX_ASSIGN_OR_RETURN(out->min_p, InRange(Or(in.min_p, defaults.min_p, 0.0), {"min_p", 0, 1}));
  PHX_ASSIGN_OR_RETURN(out->repetition_penalty, InRange(Or(in.repetition_penalty, defaults.repetition_penalty, 1.0),
                                                        {"repetition_penalty", 0, kMaxFloat, true}));
  PHX_ASSIGN_OR_RETURN(out->frequency_penalty, InRange(in.frequency_penalty.value_or(0), {"frequency_penalty", -2, 2}));
  PHX_ASSIGN_OR_RETURN(out->presence_penalty, InRange(in.presence_penalty.value_or(0), {"presence_penalty", -2, 2}));
  const int64_t top_k = Or(in.top_k, defaults.top_k, int64_t{0});
  PHX_ASSIGN_OR_RETURN(out->top_k, IntInRange("top_k", top_k, -1, std::numeric_limits<int32_t>::max()));
  if (out->top_k < 0 || (limits.vocab_size > 0 && out->top_k >= limits.vocab_size)) out->top_k = 0;
  // vLLM reads seed -1 as "no seed".
  if (in.seed && *in.seed != -1) out->seed = static_cast<uint64_t>(*in.seed);
  PHX_ASSIGN_OR_RETURN(out->n, IntInRange("n", in.n.value_or(1), 1, limits.max_n));
  return absl::OkStatus();
}

absl::Status SetLengths(const Draft& draft, const Limits& limits, ValidSampling* out) {
  const SamplingDraft& in = draft.sampling;
  std::optional<int64_t> max_tokens = in.max_tokens;
  if (!max_tokens && draft.kind == Kind::kCompletion) max_tokens = kDefaultCompletionTokens;
  const bool zero_allowed = draft.kind == Kind::kCompletion && draft.echo;
  if (max_tokens) {
    if (*max_tokens == 0 && !zero_allowed) {
      return FieldError("max_tokens", "max_tokens must be at least 1 (0 is allowed only with echo on /v1/completions).");
    }
    if (*max_tokens < 0) return FieldError("max_tokens", absl::StrCat("max_tokens must be at least 1, got ", *max_tokens, "."));
    const int64_t most = limits.max_model_len > 0 ? limits.max_model_len : std::numeric_limits<int32_t>::max();
    if (*max_tokens > most && in.max_tokens) {
      return WithErrorCode(FieldError("max_tokens", absl::StrCat("max_tokens is too large: ", *max_tokens, ". This model's maximum context length is ",
                                                                 most, " tokens.")),
                           "context_length_exceeded");
    }
  }
  // A generation config's max_new_tokens is the server's cap, not only its default.
  if (limits.defaults.max_tokens) max_tokens = std::min(max_tokens.value_or(*limits.defaults.max_tokens), *limits.defaults.max_tokens);
  if (max_tokens) out->max_tokens = static_cast<int32_t>(std::min<int64_t>(*max_tokens, std::numeric_limits<int32_t>::max()));
  const int64_t most_min = out->max_tokens ? *out->max_tokens
                           : limits.max_model_len > 0 ? limits.max_model_len : std::numeric_limits<int32_t>::max();
  if (in.min_tokens && *in.min_tokens > most_min) {
    return FieldError("min_tokens", absl::StrCat("min_tokens must be at most max_tokens = ", most_min, ", got ", *in.min_tokens, "."));
  }
  PHX_ASSIGN_OR_RETURN(out->min_tokens, IntInRange("min_tokens", in.min_tokens.value_or(0), 0, std::numeric_limits<int32_t>::max()));
  return absl::OkStatus();
}

absl::StatusOr<int32_t> LogprobCount(const char* field, const std::optional<int64_t>& asked, const Limits& limits) {
  if (!asked) return -1;
  const int32_t most = limits.max_logprobs < 0 ? kKernelTopLogprobs : std::min(limits.max_logprobs, kKernelTopLogprobs);
  return IntInRange(field, *asked, 0, most);
}

absl::Status SetLogprobs(const Draft& draft, const Limits& limits, ValidSampling* out) {
  const SamplingDraft& in = draft.sampling;
  const char* field = draft.kind == Kind::kChat ? "top_logprobs" : "logprobs";
  PHX_ASSIGN_OR_RETURN(out->logprobs, LogprobCount(field, in.logprobs, limits));
  PHX_ASSIGN_OR_RETURN(out->prompt_logprobs, LogprobCount("prompt_logprobs", in.prompt_logprobs, limits));
  if (draft.stream && in.prompt_logprobs) {
    return FieldError("prompt_logprobs", "prompt_logprobs are not available when stream is true.");
  }
  // The echoed prompt carries log-probabilities like the output.
  if (draft.kind == Kind::kCompletion && draft.echo && out->logprobs >= 0) {
    out->prompt_logprobs = std::max(out->prompt_logprobs, out->logprobs);
  }
  return absl::OkStatus();
}

absl::Status SetIds(const SamplingDraft& in, const Limits& limits, ValidSampling* out) {
  if (in.logit_bias.size() > kMaxIdList) {
    return FieldError("logit_bias", absl::StrCat("logit_bias holds more than ", kMaxIdList, " ids."));
  }
  if (in.stop_token_ids.size() > kMaxIdList) {
    return FieldError("stop_token_ids", absl::StrCat("stop_token_ids holds more than ", kMaxIdList, " ids."));
  }
  PHX_RETURN_IF_ERROR(CheckTokenIds("stop_token_ids", in.stop_token_ids, limits));
  PHX_RETURN_IF_ERROR(CheckTokenIds("allowed_token_ids", in.allowed_token_ids, limits));
  out->stop_token_ids.assign(in.stop_token_ids.begin(), in.stop_token_ids.end());
  out->allowed_token_ids.assign(in.allowed_token_ids.begin(), in.allowed_token_ids.end());
  for (auto* ids : {&out->stop_token_ids, &out->allowed_token_ids}) {
    std::sort(ids->begin(), ids->end());
    ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
  }
  std::map<int32_t, float> biases;  // of one id named twice the last counts
  for (const auto& [id, bias] : in.logit_bias) {
    PHX_RETURN_IF_ERROR(CheckTokenIds("logit_bias", {id}, limits));
    if (std::isnan(bias)) return FieldError("logit_bias", absl::StrCat("logit_bias of token ", id, " is not a number."));
    biases[static_cast<int32_t>(id)] = static_cast<float>(std::clamp(bias, -100.0, 100.0));  // vLLM clamps too
  }
  out->logit_bias.assign(biases.begin(), biases.end());
  return absl::OkStatus();
}

absl::Status CheckStrings(const char* field, const std::vector<std::string>& strings, size_t max_count, size_t max_bytes) {
  if (strings.size() > max_count) {
    return FieldError(field, absl::StrCat(field, " holds ", strings.size(), " strings, more than the limit of ", max_count, "."));
  }
  for (const std::string& one : strings) {
    if (one.empty()) return FieldError(field, absl::StrCat(field, " must not hold an empty string."));
    if (one.size() > max_bytes) return FieldError(field, absl::StrCat(field, " holds a string longer than ", max_bytes, " bytes."));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ValidSampling> ValidateSampling(const Draft& draft, const Limits& limits) {
  const SamplingDraft& in = draft.sampling;
  ValidSampling out;
  PHX_RETURN_IF_ERROR(SetNumbers(in, limits, &out));
  PHX_RETURN_IF_ERROR(SetLengths(draft, limits, &out));
  PHX_RETURN_IF_ERROR(SetLogprobs(draft, limits, &out));
  PHX_RETURN_IF_ERROR(SetIds(in, limits, &out));
  PHX_RETURN_IF_ERROR(CheckStrings("stop", in.stop, limits.max_stops, limits.max_stop_bytes));
  PHX_RETURN_IF_ERROR(CheckStrings("bad_words", in.bad_words, kMaxBadWords, limits.max_stop_bytes));
  out.stop = in.stop;
  out.bad_words = in.bad_words;
  out.ignore_eos = in.ignore_eos;
  out.include_stop_in_output = in.include_stop_in_output;
  out.skip_special_tokens = in.skip_special_tokens;
  return out;
}

}  // namespace phalanx::router::core
