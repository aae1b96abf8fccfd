#include "worker/rpc/translate.h"

namespace phalanx::worker::rpc {
namespace {

void ToProto(const core::TokenInfo& token, v1::TokenLogprob* out) {
  out->set_id(static_cast<uint32_t>(token.id));
  out->set_logprob(token.logprob);
  out->set_rank(static_cast<uint32_t>(token.rank));
  for (const core::TopLogprob& top : token.top) {
    v1::TopLogprob* entry = out->add_top();
    entry->set_id(static_cast<uint32_t>(top.id));
    entry->set_logprob(top.logprob);
  }
}

v1::FinishReason ToProto(const core::SequenceEvent& event) {
  switch (event.reason) {
    case core::FinishReason::kStop: return v1::FINISH_REASON_STOP;
    case core::FinishReason::kLength: return v1::FINISH_REASON_LENGTH;
    case core::FinishReason::kAbort: return v1::FINISH_REASON_ABORT;
    case core::FinishReason::kError: break;
  }
  return event.reject_code != 0 ? v1::FINISH_REASON_REJECTED : v1::FINISH_REASON_ERROR;
}

}  // namespace

void ToProto(const core::SequenceEvent& event, bool want_logprobs, v1::SequenceEvent* out) {
  if (event.started) {
    out->mutable_started()->set_cached_tokens(static_cast<uint32_t>(event.cached_tokens));
    out->mutable_started()->set_queue_seconds(event.queue_seconds);
  }
  for (const core::TokenInfo& token : event.tokens) {
    out->add_ids(static_cast<uint32_t>(token.id));
    if (want_logprobs) ToProto(token, out->add_logprobs());
  }
  for (const core::TokenInfo& token : event.prompt) ToProto(token, out->add_prompt_logprobs());
  if (!event.finished) return;
  out->set_finish(ToProto(event));
  if (event.stop_id >= 0) out->set_stop_id(static_cast<uint32_t>(event.stop_id));
  out->set_error(event.error);
  out->set_reject_code(event.reject_code);
}

void ToProto(const core::LoadReport& load, v1::Load* out) {
  out->set_running(static_cast<uint32_t>(load.running));
  out->set_waiting(static_cast<uint32_t>(load.waiting));
  out->set_waiting_tokens(static_cast<uint64_t>(load.waiting_tokens));
  out->set_blocks_total(static_cast<uint32_t>(load.blocks_total));
  out->set_blocks_free(static_cast<uint32_t>(load.blocks_free));
  out->set_steps(load.steps);
  out->set_draining(load.draining);
}

}  // namespace phalanx::worker::rpc
