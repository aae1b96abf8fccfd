// worker/leader.h: rank 0's executor of a group: hands each plan to the other ranks, then runs it as they do.
// Refuses to know: how plans are made, how a step is computed. Thread: the engine's, like any executor.
// Neighbours: worker/engine drives it without knowing of ranks, follower.h is the other end, worker/tp/control.h carries the plans.
//
// The result of a step is rank 0's own: no rank waits for another outside the sums of the model. An error here, of the device or of the
// group, breaks the group for good and with its reason.
#pragma once

#include <memory>

#include "worker/core/executor.h"
#include "worker/ranks_message.h"
#include "worker/tp/control.h"

namespace phalanx::worker {

class LeaderExecutor final : public core::Executor {
 public:
  // `control` (of rank 0) outlives this. Every rank's executor has `own`'s limits (RankGroup::AwaitLoaded).
  LeaderExecutor(tp::Control* control, std::unique_ptr<core::Executor> own) : control_(control), own_(std::move(own)) {}

  const core::ExecutorInfo& info() const override { return own_->info(); }
  absl::Status Launch(const core::StepPlan& plan) override;
  absl::StatusOr<core::StepResult> Collect() override;
  // Nothing: the other ranks would have to prepare the same at the same time.
  absl::StatusOr<bool> Prepare() override { return false; }
  void RangePush(const char* name) override { own_->RangePush(name); }
  void RangePop() override { own_->RangePop(); }

 private:
  tp::Control* const control_;
  const std::unique_ptr<core::Executor> own_;
  DrawnTokens drawn_;  // in the last step that was collected
};

}  // namespace phalanx::worker
