// worker/follower.h: the loop of every rank but rank 0: receive a plan, run it, until rank 0 leaves. It has no scheduler, judges no plan.
// Refuses to know: requests, how a step is computed. Thread: the one that calls Follow, which is the engine thread of this rank.
// Neighbours: leader.h is the other end, worker/tp/control.h carries the plans, worker/exec runs them.
#pragma once

#include <functional>

#include "services/status.h"
#include "worker/core/executor.h"
#include "worker/tp/control.h"

namespace phalanx::worker {

// OK when rank 0 has left in good order. `stay` is asked a few times a second while no plan comes, and after each: false ends the loop with
// kAborted. Errors, each of which has then broken the group with this rank named: a device error, kInternal when rank 0 drew other tokens
// in a step, a plan that cannot be read; and the verdict of a group that others broke.
absl::Status Follow(tp::Control& control, core::Executor& executor, const std::function<bool()>& stay);

}  // namespace phalanx::worker
