// router/rpc/inference_service.h: the native door: phalanx.v1.Inference, typed requests in, typed chunks out; failures are statuses.
// Refuses to know: what a field means, workers, tokenizers. Thread: RPC methods on gRPC threads, none blocks; tokenising on an executor.
// Neighbours: parse.h makes drafts, core::Handler does the work, native_stream.h is one reply, main owns the service.
//
// Stopping: as openai_service.h. A status carries the field's name, the error code and the seconds to wait as payloads, which travel as
// binary error details (services/grpc_status.h).
#pragma once

#include <grpcpp/grpcpp.h>

#include "phalanx/v1/inference.grpc.pb.h"
#include "router/core/handler.h"
#include "router/rpc/executor.h"
#include "router/rpc/native_stream.h"
#include "router/rpc/reply_stream.h"
#include "router/rpc/stall_watch.h"

namespace phalanx::router::rpc {

struct InferenceOptions {
  StreamLimits stream;
  int work_threads = 2;
  size_t work_queue_max = 256;                 // waiting Tokenize calls; more are refused with RESOURCE_EXHAUSTED
  std::chrono::milliseconds stall_check{1000};
};

class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(const InferenceOptions& options, core::Handler* handler);

  grpc::ServerWriteReactor<v1::ChatChunk>* Chat(grpc::CallbackServerContext* context, const v1::ChatRequest* request) override;
  grpc::ServerWriteReactor<v1::CompleteChunk>* Complete(grpc::CallbackServerContext* context, const v1::CompleteRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;

 private:
  template <typename Chunk>
  grpc::ServerWriteReactor<Chunk>* Generate(grpc::CallbackServerContext* context, absl::StatusOr<core::Draft> draft);
  template <typename Chunk>
  void Begin(NativeStream<Chunk>& stream, absl::StatusOr<core::Draft> draft);
  absl::Status TokenizeInto(const v1::TokenizeRequest& request, v1::TokenizeResponse* response);

  const InferenceOptions options_;
  core::Handler* const handler_;
  StallWatch watch_;
  Executor work_;
};

}  // namespace phalanx::router::rpc
