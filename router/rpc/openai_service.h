// router/rpc/openai_service.h: the OpenAI door: phalanx.v1.OpenAI, bodies in, JSON or SSE bytes out.
// Refuses to know: what a field means, workers, tokenizers. Thread: RPC methods on gRPC threads, none blocks; long work (large bodies,
// tokenising, metrics) on executors of its own.
// Neighbours: router/openai parses and writes, core::Handler does the work, reply_stream.h is one streamed reply, main owns the service.
//
// Stopping: services::Server::Stop(grace) lets running replies finish for `grace`, then cancels them. The handler and this service must
// outlive the server.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "phalanx/v1/openai.grpc.pb.h"
#include "router/core/handler.h"
#include "router/openai/form.h"
#include "router/rpc/executor.h"
#include "router/rpc/model_cards.h"
#include "router/rpc/reply_stream.h"
#include "router/rpc/stall_watch.h"

namespace phalanx::router::rpc {

struct OpenAiOptions {
  openai::WriteOptions write;
  ModelSource model;
  std::string version;                         // what /version says
  StreamLimits stream;
  size_t inline_bytes_max = size_t{64} << 10;  // larger bodies are parsed off the gRPC threads
  int work_threads = 2;
  size_t work_queue_max = 256;                 // waiting jobs; more are refused with 429
  std::chrono::milliseconds stall_check{1000};
};

class OpenAiService final : public v1::OpenAI::CallbackService {
 public:
  using Body = google::api::HttpBody;
  using Writer = grpc::ServerWriteReactor<Body>;

  OpenAiService(OpenAiOptions options, core::Handler* handler);

  Writer* ChatCompletions(grpc::CallbackServerContext* context, const Body* request) override;
  Writer* Completions(grpc::CallbackServerContext* context, const Body* request) override;
  Writer* Tokenize(grpc::CallbackServerContext* context, const Body* request) override;
  Writer* Detokenize(grpc::CallbackServerContext* context, const Body* request) override;
  Writer* ListModels(grpc::CallbackServerContext* context, const google::protobuf::Empty* request) override;
  Writer* GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest* request) override;
  Writer* Version(grpc::CallbackServerContext* context, const google::protobuf::Empty* request) override;
  Writer* Metrics(grpc::CallbackServerContext* context, const google::protobuf::Empty* request) override;

  // Streamed RPCs that are open now.
  size_t open_streams() const { return watch_.size(); }

 private:
  class Stream;
  using Parse = absl::StatusOr<openai::ParsedRequest> (*)(std::string_view body);

  Writer* Generate(grpc::CallbackServerContext* context, const Body* request, Parse parse);
  // Parses, validates and starts; or refuses.
  void Begin(Stream& stream, const Body& request, Parse parse);
  absl::StatusOr<std::string> TokenizeBody(const std::string& body);
  absl::StatusOr<std::string> DetokenizeBody(const std::string& body);

  const OpenAiOptions options_;
  core::Handler* const handler_;
  StallWatch watch_;
  Executor work_;
  Executor scrape_;                            // metrics wait for workers, so they never stand before other work
};

}  // namespace phalanx::router::rpc
