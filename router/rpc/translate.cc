#include "router/rpc/translate.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::router::rpc {
namespace {

constexpr uint32_t kInt32Max = std::numeric_limits<int32_t>::max();

int32_t Clamp32(uint64_t value) { return static_cast<int32_t>(std::min<uint64_t>(value, kInt32Max)); }

void ToProto(const core::ValidSampling& in, worker::v1::Sampling* out) {
  out->set_temperature(in.temperature);
  out->set_top_p(in.top_p);
  if (in.top_k > 0) out->set_top_k(in.top_k);
  if (in.min_p > 0) out->set_min_p(in.min_p);
  if (in.repetition_penalty != 1) out->set_repetition_penalty(in.repetition_penalty);
  if (in.frequency_penalty != 0) out->set_frequency_penalty(in.frequency_penalty);
  if (in.presence_penalty != 0) out->set_presence_penalty(in.presence_penalty);
  for (const auto& [id, bias] : in.logit_bias) {
    worker::v1::LogitBias* entry = out->add_logit_bias();
    entry->set_id(static_cast<uint32_t>(id));
    entry->set_bias(bias);
  }
  out->mutable_allowed_ids()->Add(in.allowed_token_ids.begin(), in.allowed_token_ids.end());
  if (in.logprobs >= 0) out->set_logprobs(in.logprobs);
  if (in.prompt_logprobs >= 0) out->set_prompt_logprobs(in.prompt_logprobs);
}

absl::Status Malformed(absl::string_view what) { return absl::InternalError(absl::StrCat("the worker sent a malformed event: ", what)); }

// Checks and copies ids and scores of one worker's vocabulary.
class Reader {
 public:
  explicit Reader(int32_t vocab_size) : vocab_size_(static_cast<uint32_t>(vocab_size)) {}

  absl::Status Ids(const google::protobuf::RepeatedField<uint32_t>& in, std::vector<int32_t>* out) const {
    out->reserve(in.size());
    for (const uint32_t id : in) {
      if (id >= vocab_size_) return OutOfRange(id);
      out->push_back(static_cast<int32_t>(id));
    }
    return absl::OkStatus();
  }

  absl::Status Scores(const google::protobuf::RepeatedPtrField<worker::v1::TokenLogprob>& in, std::vector<core::TokenScore>* out) const {
    out->reserve(in.size());
    for (const worker::v1::TokenLogprob& token : in) {
      if (token.id() >= vocab_size_) return OutOfRange(token.id());
      core::TokenScore& score = out->emplace_back();
      score.id = static_cast<int32_t>(token.id());
      score.logprob = token.logprob();
      score.rank = Clamp32(token.rank());
      score.top.reserve(token.top_size());
      for (const worker::v1::TopLogprob& top : token.top()) {
        if (top.id() >= vocab_size_) return OutOfRange(top.id());
        score.top.emplace_back(static_cast<int32_t>(top.id()), top.logprob());
      }
    }
    return absl::OkStatus();
  }

  absl::Status Event(const worker::v1::SequenceEvent& in, core::WorkerEvent* out) const {
    if (in.request_id() == 0) return Malformed("request_id is 0");
    out->id = in.request_id();
    if (in.has_started()) {
      out->started = true;
      out->cached_tokens = Clamp32(in.started().cached_tokens());
      out->queue_seconds = in.started().queue_seconds();
    }
    PHX_RETURN_IF_ERROR(Ids(in.ids(), &out->ids));
    PHX_RETURN_IF_ERROR(Scores(in.logprobs(), &out->logprobs));
    PHX_RETURN_IF_ERROR(Scores(in.prompt_logprobs(), &out->prompt_logprobs));
    if (!out->logprobs.empty() && out->logprobs.size() != out->ids.size()) return Malformed("logprobs and ids differ in number");
    return End(in, out);
  }

 private:
  absl::Status End(const worker::v1::SequenceEvent& in, core::WorkerEvent* out) const {
    using End = core::WorkerEvent::End;
    switch (in.finish()) {
      case worker::v1::FINISH_REASON_UNSPECIFIED: return absl::OkStatus();
      case worker::v1::FINISH_REASON_STOP: out->end = End::kStop; break;
      case worker::v1::FINISH_REASON_LENGTH: out->end = End::kLength; break;
      case worker::v1::FINISH_REASON_ABORT: out->end = End::kAborted; break;
      case worker::v1::FINISH_REASON_ERROR: out->end = End::kError; break;
      case worker::v1::FINISH_REASON_REJECTED: out->end = End::kRejected; break;
      default: return Malformed(absl::StrCat("finish reason ", static_cast<int>(in.finish())));
    }
    if (in.has_stop_id()) {
      if (in.stop_id() >= vocab_size_) return OutOfRange(in.stop_id());
      out->stop_id = static_cast<int32_t>(in.stop_id());
    }
    out->error = in.error();
    const bool known = in.reject_code() > 0 && in.reject_code() <= static_cast<int>(absl::StatusCode::kUnauthenticated);
    if (known) out->reject_code = static_cast<absl::StatusCode>(in.reject_code());
    return absl::OkStatus();
  }

  absl::Status OutOfRange(uint32_t id) const {
    return Malformed(absl::StrCat("id ", id, " is outside the vocabulary of ", vocab_size_));
  }

  const uint32_t vocab_size_;
};

}  // namespace

void ToProto(const core::Submission& in, uint64_t epoch, worker::v1::Submit* out) {
  const core::ValidSampling& sampling = in.sampling;
  out->set_request_id(in.id);
  out->set_epoch(epoch);
  if (in.prompt_ids != nullptr) out->mutable_prompt_ids()->Add(in.prompt_ids->begin(), in.prompt_ids->end());
  out->mutable_resume_output_ids()->Add(in.resume_output_ids.begin(), in.resume_output_ids.end());
  ToProto(sampling, out->mutable_sampling());
  for (const std::vector<int32_t>& word : in.bad_words) {
    out->mutable_sampling()->add_bad_words()->mutable_ids()->Add(word.begin(), word.end());
  }
  out->mutable_sampling()->set_seed(in.seed);
  out->mutable_sampling()->set_choice(in.choice);
  out->set_max_tokens(static_cast<uint32_t>(std::max(0, in.max_tokens)));
  out->set_min_tokens(static_cast<uint32_t>(std::max(0, sampling.min_tokens)));
  out->mutable_stop_ids()->Add(sampling.stop_token_ids.begin(), sampling.stop_token_ids.end());
  out->set_ignore_eos(sampling.ignore_eos);
  out->set_cache_salt(in.cache_salt);
  out->set_priority(in.priority);
  out->set_credit(in.credit);
}

absl::StatusOr<core::WorkerInfo> FromProto(const worker::v1::GetInfoResponse& in) {
  const auto sane = [](uint32_t value) { return value > 0 && value <= kInt32Max; };
  if (!sane(in.vocab_size())) return absl::InternalError(absl::StrCat("the worker says vocab_size ", in.vocab_size()));
  if (!sane(in.max_model_len())) return absl::InternalError(absl::StrCat("the worker says max_model_len ", in.max_model_len()));
  core::WorkerInfo out;
  out.model = in.model();
  out.version = in.version();
  out.vocab_size = static_cast<int32_t>(in.vocab_size());
  out.max_model_len = static_cast<int32_t>(in.max_model_len());
  out.max_logprobs = Clamp32(in.max_logprobs());
  return out;
}

core::WorkerLoad FromProto(const worker::v1::Load& in) {
  core::WorkerLoad out;
  out.running = Clamp32(in.running());
  out.waiting = Clamp32(in.waiting());
  out.waiting_tokens = static_cast<int64_t>(std::min<uint64_t>(in.waiting_tokens(), std::numeric_limits<int64_t>::max()));
  out.blocks_total = Clamp32(in.blocks_total());
  out.blocks_free = Clamp32(in.blocks_free());
  out.draining = in.draining();
  return out;
}

absl::StatusOr<std::vector<core::WorkerEvent>> FromProto(const worker::v1::WorkerMessage& in, uint64_t epoch, int32_t vocab_size) {
  const Reader reader(vocab_size);
  std::vector<core::WorkerEvent> out;
  out.reserve(in.events_size());
  for (const worker::v1::SequenceEvent& event : in.events()) {
    if (event.epoch() != epoch) continue;
    PHX_RETURN_IF_ERROR(reader.Event(event, &out.emplace_back()));
  }
  return out;
}

}  // namespace phalanx::router::rpc
