#include "worker/leader.h"

#include "worker/ranks.h"

namespace phalanx::worker {
namespace {

constexpr tp::milliseconds kSendLimit{10000};  // for followers that do not read; a hung one is found by its silence long before

}  // namespace

absl::Status LeaderExecutor::Launch(const core::StepPlan& plan) {
  PHX_RETURN_IF_ERROR(control_->Broadcast(plan.step, PlanMessage(drawn_, plan), tp::Now() + kSendLimit));
  const absl::Status launched = own_->Launch(plan);
  return launched.ok() ? launched : BreakGroup(*control_, launched);
}

absl::StatusOr<core::StepResult> LeaderExecutor::Collect() {
  absl::StatusOr<core::StepResult> result = own_->Collect();
  if (!result.ok()) return BreakGroup(*control_, result.status());
  drawn_ = HashDrawn(*result);
  return result;
}

}  // namespace phalanx::worker
