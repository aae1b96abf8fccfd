#include "worker/rpc/admit.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace phalanx::worker::rpc {
namespace {

constexpr int kMaxStopIds = 1024;
constexpr int kMaxLogitBias = 4096;
constexpr int kMaxBadWords = 1024;
constexpr int kMaxBadWordIds = 256;
constexpr int kMaxSaltBytes = 1024;

absl::Status Bad(absl::string_view field, absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat(field, ": ", what)); }

// Copies ids that lie in the vocabulary; one that does not would read another row's memory further down.
template <typename Ids>
absl::Status CopyIds(absl::string_view field, const Ids& from, int32_t vocab_size, std::vector<int32_t>& to) {
  to.reserve(to.size() + from.size());
  for (uint32_t id : from) {
    if (id >= static_cast<uint32_t>(vocab_size)) {
      return Bad(field, absl::StrCat("id ", id, " is outside the vocabulary of ", vocab_size));
    }
    to.push_back(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

struct Range {
  float low;
  float high;
  bool open_low = false;
};

// NaN fails every comparison, so it is refused like any value out of range.
absl::Status TakeFloat(absl::string_view field, float value, Range range, float& to) {
  const bool ok = (range.open_low ? value > range.low : value >= range.low) && value <= range.high;
  if (!ok) {
    return Bad(field, absl::StrCat("must be in ", range.open_low ? "(" : "[", range.low, ", ", range.high, "], got ", value));
  }
  to = value;
  return absl::OkStatus();
}

absl::Status TakeLogprobs(absl::string_view field, int32_t value, int32_t most, int32_t& to) {
  if (value < 0 || value > most) return Bad(field, absl::StrCat("must be in [0, ", most, "], got ", value));
  to = value;
  return absl::OkStatus();
}

absl::Status TakeLists(const v1::Sampling& in, const AdmitLimits& limits, core::SamplingOptions& out) {
  if (in.logit_bias_size() > kMaxLogitBias) return Bad("logit_bias", absl::StrCat("has more than ", kMaxLogitBias, " entries"));
  for (const auto& entry : in.logit_bias()) {
    if (entry.id() >= static_cast<uint32_t>(limits.vocab_size)) {
      return Bad("logit_bias", absl::StrCat("id ", entry.id(), " is outside the vocabulary of ", limits.vocab_size));
    }
    float bias = 0;
    PHX_RETURN_IF_ERROR(TakeFloat("logit_bias", entry.bias(), {-100, 100}, bias));
    out.logit_bias.emplace_back(static_cast<int32_t>(entry.id()), bias);
  }
  if (in.allowed_ids_size() > limits.vocab_size) return Bad("allowed_ids", "has more entries than the vocabulary");
  PHX_RETURN_IF_ERROR(CopyIds("allowed_ids", in.allowed_ids(), limits.vocab_size, out.allowed_ids));
  if (in.bad_words_size() > kMaxBadWords) return Bad("bad_words", absl::StrCat("has more than ", kMaxBadWords, " entries"));
  for (const auto& word : in.bad_words()) {
    if (word.ids_size() < 1 || word.ids_size() > kMaxBadWordIds) {
      return Bad("bad_words", absl::StrCat("an entry must have 1 to ", kMaxBadWordIds, " ids"));
    }
    out.bad_words.emplace_back();
    PHX_RETURN_IF_ERROR(CopyIds("bad_words", word.ids(), limits.vocab_size, out.bad_words.back()));
  }
  return absl::OkStatus();
}

absl::Status TakeSampling(const v1::Sampling& in, const AdmitLimits& limits, core::SamplingOptions& out) {
  constexpr float kMost = 1e6f;  // far above any use; keeps inf out
  if (in.has_temperature()) PHX_RETURN_IF_ERROR(TakeFloat("temperature", in.temperature(), {0, kMost}, out.temperature));
  if (in.has_top_p()) PHX_RETURN_IF_ERROR(TakeFloat("top_p", in.top_p(), {0, 1, true}, out.top_p));
  if (in.has_min_p()) PHX_RETURN_IF_ERROR(TakeFloat("min_p", in.min_p(), {0, 1}, out.min_p));
  if (in.has_repetition_penalty()) {
    PHX_RETURN_IF_ERROR(TakeFloat("repetition_penalty", in.repetition_penalty(), {0, kMost, true}, out.repetition_penalty));
  }
  if (in.has_frequency_penalty()) {
    PHX_RETURN_IF_ERROR(TakeFloat("frequency_penalty", in.frequency_penalty(), {-2, 2}, out.frequency_penalty));
  }
  if (in.has_presence_penalty()) {
    PHX_RETURN_IF_ERROR(TakeFloat("presence_penalty", in.presence_penalty(), {-2, 2}, out.presence_penalty));
  }
  if (in.has_top_k()) {
    if (in.top_k() < -1) return Bad("top_k", absl::StrCat("must be -1 or 0 (off) or positive, got ", in.top_k()));
    out.top_k = std::max(0, in.top_k());
  }
  out.seed = in.seed();
  out.stream = in.choice();
  if (in.has_logprobs()) PHX_RETURN_IF_ERROR(TakeLogprobs("logprobs", in.logprobs(), limits.max_logprobs, out.num_logprobs));
  if (in.has_prompt_logprobs()) {
    PHX_RETURN_IF_ERROR(TakeLogprobs("prompt_logprobs", in.prompt_logprobs(), limits.max_logprobs, out.prompt_logprobs));
  }
  return TakeLists(in, limits, out);
}

absl::Status TakeLengths(const v1::Submit& in, const AdmitLimits& limits, core::Request& out) {
  if (in.prompt_ids_size() < 1) return Bad("prompt_ids", "must not be empty");
  const int64_t known = int64_t{in.prompt_ids_size()} + in.resume_output_ids_size();
  if (known >= limits.max_model_len) {
    return Bad("prompt_ids", absl::StrCat("has ", known, " tokens with the resumed output; the model's context is ", limits.max_model_len,
                                          " tokens and one is needed for the output"));
  }
  if (in.max_tokens() < 1 || in.max_tokens() > static_cast<uint32_t>(INT32_MAX)) {
    return Bad("max_tokens", absl::StrCat("must be in [1, ", INT32_MAX, "], got ", in.max_tokens()));
  }
  if (static_cast<uint32_t>(in.resume_output_ids_size()) >= in.max_tokens()) {
    return Bad("resume_output_ids", absl::StrCat("has ", in.resume_output_ids_size(), " ids, which leaves nothing of max_tokens ",
                                                 in.max_tokens()));
  }
  if (in.min_tokens() > in.max_tokens()) {
    return Bad("min_tokens", absl::StrCat("must not be above max_tokens ", in.max_tokens(), ", got ", in.min_tokens()));
  }
  // What is left of the context bounds the output anyway, and small numbers cannot overflow in sums.
  out.max_tokens = static_cast<int32_t>(std::min<uint32_t>(in.max_tokens(), limits.max_model_len));
  out.min_tokens = static_cast<int32_t>(std::min<uint32_t>(in.min_tokens(), limits.max_model_len));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<core::Request> Admit(const v1::Submit& submit, const AdmitLimits& limits, core::SequenceId id) {
  core::Request request;
  request.id = id;
  PHX_RETURN_IF_ERROR(TakeLengths(submit, limits, request));
  PHX_RETURN_IF_ERROR(CopyIds("prompt_ids", submit.prompt_ids(), limits.vocab_size, request.prompt_ids));
  PHX_RETURN_IF_ERROR(CopyIds("resume_output_ids", submit.resume_output_ids(), limits.vocab_size, request.resume_output_ids));
  PHX_RETURN_IF_ERROR(TakeSampling(submit.sampling(), limits, request.sampling));
  if (submit.stop_ids_size() > kMaxStopIds) return Bad("stop_ids", absl::StrCat("has more than ", kMaxStopIds, " ids"));
  PHX_RETURN_IF_ERROR(CopyIds("stop_ids", submit.stop_ids(), limits.vocab_size, request.stop_ids));
  request.ignore_eos = submit.ignore_eos();
  if (!submit.ignore_eos()) request.stop_ids.insert(request.stop_ids.end(), limits.eos_ids.begin(), limits.eos_ids.end());
  std::sort(request.stop_ids.begin(), request.stop_ids.end());
  request.stop_ids.erase(std::unique(request.stop_ids.begin(), request.stop_ids.end()), request.stop_ids.end());
  if (submit.cache_salt().size() > kMaxSaltBytes) return Bad("cache_salt", absl::StrCat("has more than ", kMaxSaltBytes, " bytes"));
  request.cache_salt = submit.cache_salt();
  request.priority = submit.priority();
  request.credit = submit.credit() == 0 ? UINT32_MAX : std::min(submit.credit(), UINT32_MAX - 1);
  return request;
}

}  // namespace phalanx::worker::rpc
