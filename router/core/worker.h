// router/core/worker.h: what the relay says to a worker and hears from it, as plain data, and the two interfaces between them.
// Refuses to know: protobuf, gRPC, which worker is best. Thread: plain data; see the interfaces.
// Neighbours: router/rpc/worker_client implements WorkerLink, the relay implements WorkerListener, router/fleet keeps what was heard.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "router/core/validate.h"
#include "services/status.h"

namespace phalanx::router::core {

// One token's log-probabilities as a worker reports them.
struct TokenScore {
  int32_t id = 0;
  float logprob = 0;
  int32_t rank = 0;                            // 1-based
  std::vector<std::pair<int32_t, float>> top;  // best first
};

// One sequence to generate: one choice of a client's request.
struct Submission {
  uint64_t id = 0;                             // unique for the life of the router, not 0
  std::shared_ptr<const std::vector<int32_t>> prompt_ids;
  std::vector<int32_t> resume_output_ids;      // made elsewhere before; counted as output
  ValidSampling sampling;                      // text fields (stop, bad_words) are not sent
  std::vector<std::vector<int32_t>> bad_words; // as ids
  uint64_t seed = 0;
  uint32_t choice = 0;                         // separates the draws of n > 1
  int32_t max_tokens = 1;
  std::string cache_salt;
  int32_t priority = 0;
  uint32_t credit = 0;                         // output tokens that may come before more credit is given
};

// What happened to one sequence in one engine step.
struct WorkerEvent {
  enum class End : uint8_t { kNone, kStop, kLength, kAborted, kError, kRejected };
  uint64_t id = 0;
  bool started = false;
  int32_t cached_tokens = 0;                   // with started
  double queue_seconds = 0;                    // with started
  std::vector<int32_t> ids;                    // new output
  std::vector<TokenScore> logprobs;            // one per id, or empty
  std::vector<TokenScore> prompt_logprobs;
  End end = End::kNone;
  int32_t stop_id = -1;
  std::string error;                           // kError, kRejected
  absl::StatusCode reject_code = absl::StatusCode::kUnknown;
};

struct WorkerLoad {
  int32_t running = 0;
  int32_t waiting = 0;
  int64_t waiting_tokens = 0;                  // uncached prompt tokens of the waiting
  int32_t blocks_total = 0;
  int32_t blocks_free = 0;
  bool draining = false;
};

struct WorkerInfo {
  std::string model;
  std::string version;
  int32_t vocab_size = 0;
  int32_t max_model_len = 0;
  int32_t max_logprobs = 0;
};

// One long stream to one worker. Every method from any thread; none blocks. `epoch` is that of the OnUp the caller has seen: what is
// said to a stream that has ended since is dropped.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  virtual const std::string& address() const = 0;
  virtual void Submit(uint64_t epoch, Submission submission) = 0;
  virtual void Cancel(uint64_t epoch, uint64_t id) = 0;
  virtual void Credit(uint64_t epoch, uint64_t id, uint32_t tokens) = 0;
  // Blocks for at most `limit`. Prometheus text of the worker.
  virtual absl::StatusOr<std::string> Metrics(std::chrono::milliseconds limit) = 0;
};

// Called by the link's own thread, in order: up, batches, down, up, ...
class WorkerListener {
 public:
  virtual ~WorkerListener() = default;
  virtual void OnUp(int worker, uint64_t epoch, WorkerInfo info) = 0;
  virtual void OnBatch(int worker, uint64_t epoch, std::vector<WorkerEvent> events, const WorkerLoad& load) = 0;
  virtual void OnDown(int worker, uint64_t epoch, absl::Status why) = 0;
};

}  // namespace phalanx::router::core
