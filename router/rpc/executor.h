// router/rpc/executor.h: a few threads and a bounded queue for what must not run on gRPC's own threads.
// Refuses to know: what the work is. Thread: TryRun from any thread; work runs on this object's threads.
// Neighbours: the doors. gRPC 1.51 calls every reactor of the process from max(2, cores / 2) threads: one long tokenisation or one
// metrics call that waits for a worker would hold up half of all streams.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "services/queue.h"
#include "services/status.h"

namespace phalanx::router::rpc {

class Executor {
 public:
  Executor(int threads, size_t max_queued);
  ~Executor();  // runs what is queued, then ends

  // False if the queue is full; the work is then not run.
  bool TryRun(std::function<void()> work) { return queue_.TryPush(std::move(work)); }

 private:
  services::Queue<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
};

// What a client is told when TryRun has said no: kResourceExhausted, come again in a second.
absl::Status Busy();

}  // namespace phalanx::router::rpc
