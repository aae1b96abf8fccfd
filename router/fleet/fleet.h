// router/fleet/fleet.h: the members of a static list of workers: who is up, with what load, what this router has there.
// Refuses to know: which worker is best, sockets. Thread: the relay's thread alone. Neighbours: relay.cc feeds it, router/policy reads it.
#pragma once

#include <cstdint>

#include "router/core/worker.h"
#include "router/fleet/snapshot.h"
#include "services/status.h"

namespace phalanx::router::fleet {

class Fleet {
 public:
  explicit Fleet(int workers) { snapshot_.workers.resize(workers); }

  // Errors: kFailedPrecondition when the worker serves something else than the fleet (vocabulary or model differ); it stays unready.
  absl::Status Up(int worker, uint64_t epoch, const core::WorkerInfo& info);
  void Report(int worker, const core::WorkerLoad& load);
  void Down(int worker);
  void Sent(int worker, int64_t prompt_tokens);   // one more sequence there
  void Gone(int worker);                          // one less

  const FleetSnapshot& snapshot() const { return snapshot_; }
  int ready_count() const;
  // The smallest limits over every worker that is or was up; zeros before the first.
  const core::WorkerInfo& served() const { return served_; }

 private:
  FleetSnapshot snapshot_;
  core::WorkerInfo served_;
};

}  // namespace phalanx::router::fleet
