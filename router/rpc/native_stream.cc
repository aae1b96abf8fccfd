#include "router/rpc/native_stream.h"

#include "services/grpc_status.h"

namespace phalanx::router::rpc {

void AddText(core::ReplyPart& part, v1::ChatChunk* chunk) {
  chunk->mutable_content()->append(part.text);
  chunk->mutable_reasoning_content()->append(part.reasoning);
}

void AddText(core::ReplyPart& part, v1::CompleteChunk* chunk) { chunk->mutable_text()->append(part.echo_text).append(part.text); }

void AddLogprob(core::TokenLogprob& token, v1::TokenLogprob* out) {
  out->set_id(static_cast<uint32_t>(token.id));
  out->set_token(std::move(token.bytes));
  out->set_logprob(token.logprob);
  for (core::TokenLogprob::Top& top : token.top) {
    v1::TopLogprob* entry = out->add_top();
    entry->set_id(static_cast<uint32_t>(top.id));
    entry->set_token(std::move(top.bytes));
    entry->set_logprob(top.logprob);
  }
}

void SetUsage(const core::Usage& usage, v1::Usage* out) {
  out->set_prompt_tokens(static_cast<uint32_t>(usage.prompt_tokens));
  out->set_completion_tokens(static_cast<uint32_t>(usage.completion_tokens));
  out->set_reasoning_tokens(static_cast<uint32_t>(usage.reasoning_tokens));
  out->set_cached_tokens(static_cast<uint32_t>(usage.cached_tokens));
}

v1::FinishReason ToProto(core::Finish finish) {
  switch (finish) {
    case core::Finish::kNone: return v1::FINISH_REASON_UNSPECIFIED;
    case core::Finish::kStop: return v1::FINISH_REASON_STOP;
    case core::Finish::kLength: return v1::FINISH_REASON_LENGTH;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

grpc::Status NativeStatus(const absl::Status& status) {
  constexpr size_t kMaxMessage = 1000;
  grpc::Status out = services::ToGrpc(status);
  switch (status.code()) {
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return {out.error_code(), "The server had an internal error while processing the request.", out.error_details()};
    default: break;
  }
  if (out.error_message().size() <= kMaxMessage) return out;
  return {out.error_code(), out.error_message().substr(0, kMaxMessage), out.error_details()};
}

}  // namespace phalanx::router::rpc
