// worker/tp/fault.h: the one verdict over a group: whole, or broken for good and why. The first reason wins and never changes.
// Refuses to know: what may break, how the process ends. Thread: any, every method.
// Neighbours: monitor, control and the groups break it and ask it; monitor.h tells the owner of the process.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "services/status.h"
#include "worker/tp/socket.h"

namespace phalanx::worker::tp {

class Fault {
 public:
  Fault();
  ~Fault() = default;
  Fault(const Fault&) = delete;
  Fault& operator=(const Fault&) = delete;

  // One load; for hot paths.
  bool broken() const { return broken_.load(std::memory_order_acquire); }
  // OK while whole.
  absl::Status status() const;
  // Breaks the group, unless it is broken. `why` must be an error.
  void Break(const absl::Status& why);
  // For one who saw a connection end and cannot tell whose fault it was: gives the others a moment to name the rank that really left, then
  // breaks the group with `why`. Returns the verdict.
  absl::Status BreakUnlessKnown(const absl::Status& why);
  // Readable once broken, for good; for poll(2).
  int fd() const { return event_.fd(); }

 private:
  std::atomic<bool> broken_{false};
  Socket event_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  absl::Status status_;
};

}  // namespace phalanx::worker::tp
