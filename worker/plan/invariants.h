// worker/plan/invariants.h: the laws of the scheduler's ledger, as one function over its state.
// Refuses to know: how a plan is made. Thread: the engine thread (tests, and debug runs after every step).
// Neighbours: plan/scheduler is what it reads.
#pragma once

#include <string>

#include "worker/core/step.h"
#include "worker/plan/scheduler.h"

namespace phalanx::worker::plan {

struct Invariants {
  // Empty if every law holds, else the first one broken. O(blocks + tokens of all block tables).
  static std::string Check(const Scheduler& scheduler);
  // What a plan promises to whoever runs it, given the scheduler that has just made it.
  static std::string CheckPlan(const Scheduler& scheduler, const core::StepPlan& plan);

 private:
  static std::string CheckFlying(const Scheduler& scheduler);
};

}  // namespace phalanx::worker::plan
