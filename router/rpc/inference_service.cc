#include "router/rpc/inference_service.h"

#include <memory>
#include <utility>

#include "router/core/validate.h"
#include "router/rpc/native_stream.h"
#include "router/rpc/parse.h"
#include "router/rpc/request_id.h"

namespace phalanx::router::rpc {
InferenceService::InferenceService(const InferenceOptions& options, core::Handler* handler)
    : options_(options), handler_(handler), watch_(options.stall_check), work_(options.work_threads, options.work_queue_max) {}

template <typename Chunk>
grpc::ServerWriteReactor<Chunk>* InferenceService::Generate(grpc::CallbackServerContext* context, absl::StatusOr<core::Draft> draft) {
  auto stream = std::make_shared<NativeStream<Chunk>>(context, &watch_, options_.stream);
  stream->Open();
  Begin(*stream, std::move(draft));
  return stream.get();
}

template <typename Chunk>
void InferenceService::Begin(NativeStream<Chunk>& stream, absl::StatusOr<core::Draft> draft) {
  if (!draft.ok()) return stream.Refuse(draft.status());
  draft->request_id = RequestId(*stream.context(), "");
  absl::StatusOr<core::ValidRequest> valid = core::Validate(*std::move(draft), handler_->limits());
  if (!valid.ok()) return stream.Refuse(valid.status());
  stream.SetHead({valid->draft.request_id, valid->served_name, valid->sampling.n});
  stream.Run(*handler_, *std::move(valid));
}

grpc::ServerWriteReactor<v1::ChatChunk>* InferenceService::Chat(grpc::CallbackServerContext* context, const v1::ChatRequest* request) {
  return Generate<v1::ChatChunk>(context, ParseChat(*request));
}

grpc::ServerWriteReactor<v1::CompleteChunk>* InferenceService::Complete(grpc::CallbackServerContext* context,
                                                                        const v1::CompleteRequest* request) {
  return Generate<v1::CompleteChunk>(context, ParseComplete(*request));
}

absl::Status InferenceService::TokenizeInto(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
  PHX_RETURN_IF_ERROR(core::ServedName(request.model(), handler_->limits()).status());
  PHX_ASSIGN_OR_RETURN(const core::TokenizeResult result, handler_->Tokenize(ParseTokenize(request)));
  response->mutable_ids()->Add(result.ids.begin(), result.ids.end());
  response->set_max_model_len(static_cast<uint32_t>(result.max_model_len));
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  auto* reactor = context->DefaultReactor();
  const bool queued =
      work_.TryRun([this, reactor, request, response] { reactor->Finish(NativeStatus(TokenizeInto(*request, response))); });
  if (!queued) reactor->Finish(NativeStatus(Busy()));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest*,
                                                       v1::ListModelsResponse* response) {
  const core::Limits limits = handler_->limits();
  for (const std::string& name : limits.served_names) {
    v1::ModelInfo* model = response->add_models();
    model->set_id(name);
    model->set_max_model_len(static_cast<uint32_t>(limits.max_model_len));
  }
  auto* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace phalanx::router::rpc
