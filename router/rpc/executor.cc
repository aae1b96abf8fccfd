#include "router/rpc/executor.h"

#include "router/core/validate.h"

namespace phalanx::router::rpc {

Executor::Executor(int threads, size_t max_queued) : queue_(max_queued) {
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this] {
      while (auto work = queue_.Pop()) (*work)();
    });
  }
}

Executor::~Executor() {
  queue_.Close();
  for (std::thread& thread : threads_) thread.join();
}

absl::Status Busy() {
  const absl::Status full = absl::ResourceExhaustedError("The server has too many requests waiting.");
  return core::WithRetryAfter(core::WithErrorCode(full, "queue_full"), 1);
}

}  // namespace phalanx::router::rpc
