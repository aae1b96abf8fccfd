// router/fleet/snapshot.h: what is known of every worker, as plain data: the input of a policy.
// Refuses to know: which worker is best. Thread: plain data. Neighbours: fleet.h fills it, router/policy reads it.
#pragma once

#include <cstdint>
#include <vector>

#include "router/core/worker.h"

namespace phalanx::router::fleet {

struct WorkerView {
  bool ready = false;                // a stream is open and the worker takes submissions
  uint64_t epoch = 0;                // of that stream
  core::WorkerInfo info;
  core::WorkerLoad load;             // as last reported
  int32_t in_flight = 0;             // sequences this router has there
  int64_t sent_tokens = 0;           // prompt tokens sent since the last report: corrects a report that is late
};

struct FleetSnapshot {
  std::vector<WorkerView> workers;   // by the static list's order
};

}  // namespace phalanx::router::fleet
