// router/core/handler.h: the one interface between the doors and the relay.
// Refuses to know: JSON, protobuf, gRPC. Thread: Start from any thread; a sink is called by one thread at a time, never under a lock.
// Neighbours: router/rpc calls Handler and implements ReplySink, router/relay.cc implements Handler.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "router/core/reply.h"
#include "router/core/validate.h"

namespace phalanx::router::core {

// Where the reply of one request goes. Exactly one OnEnd, after which nothing comes.
class ReplySink {
 public:
  virtual ~ReplySink() = default;
  // One call per engine step and request: all parts that this step gave, over the request's choices.
  virtual void OnParts(std::vector<ReplyPart> parts, const Usage& so_far) = 0;
  // OK: every choice has had its finish part. Else nothing was finished; parts may have been sent before.
  virtual void OnEnd(const absl::Status& status, const Usage& usage) = 0;
};

// A running request. Dropping it does not cancel.
class Call {
 public:
  virtual ~Call() = default;
  virtual void Cancel() = 0;               // the client left; OnEnd(kCancelled) follows; idempotent
  // The door has written `tokens` more tokens to the client: the relay may grant the worker more credit.
  virtual void Consumed(int tokens) = 0;
};

struct TokenizeResult {
  std::vector<int32_t> ids;
  std::vector<std::string> pieces;         // text of each id
  int32_t max_model_len = 0;
};

class Handler {
 public:
  virtual ~Handler() = default;
  // Limits of the model now served. max_model_len is 0 until a worker has been seen.
  virtual Limits limits() const = 0;
  // Renders, encodes, admits and runs the request. Every failure comes through sink->OnEnd. Never blocks.
  virtual std::shared_ptr<Call> Start(ValidRequest request, std::shared_ptr<ReplySink> sink) = 0;
  // /tokenize: a draft with one prompt or with messages; /detokenize. Call from any thread; may take milliseconds.
  virtual absl::StatusOr<TokenizeResult> Tokenize(const Draft& draft) = 0;
  virtual absl::StatusOr<std::string> Detokenize(const std::vector<int64_t>& ids) = 0;
  // Prometheus text of the router and of its workers.
  virtual std::string Metrics() = 0;
  // True when at least one worker can serve.
  virtual bool Ready() const = 0;
};

}  // namespace phalanx::router::core
