#include "worker/follower.h"

#include <algorithm>
#include <deque>

#include "absl/strings/str_cat.h"
#include "worker/ranks.h"
#include "worker/ranks_message.h"

namespace phalanx::worker {
namespace {

constexpr tp::milliseconds kTick{200};
constexpr size_t kHashesKept = 4;  // more than steps can be in flight

// What this rank drew in its last steps.
class History {
 public:
  void Add(const DrawnTokens& drawn) {
    kept_.push_back(drawn);
    if (kept_.size() > kHashesKept) kept_.pop_front();
  }
  absl::Status Compare(const DrawnTokens& leader) const {
    const auto own = std::find_if(kept_.begin(), kept_.end(), [&](const DrawnTokens& drawn) { return drawn.step == leader.step; });
    if (own == kept_.end() || own->hash == leader.hash) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("drew other tokens than rank 0 in step ", leader.step));
  }

 private:
  std::deque<DrawnTokens> kept_;
};

absl::Status RunOne(const tp::Message& message, core::Executor& executor, History& history) {
  PHX_ASSIGN_OR_RETURN(const ReceivedPlan received, ParsePlanMessage(message.bytes));
  PHX_RETURN_IF_ERROR(history.Compare(received.drawn));
  PHX_ASSIGN_OR_RETURN(const core::StepResult result, executor.Run(received.plan));
  history.Add(HashDrawn(result));
  return absl::OkStatus();
}

}  // namespace

absl::Status Follow(tp::Control& control, core::Executor& executor, const std::function<bool()>& stay) {
  History history;
  while (true) {
    const absl::StatusOr<tp::Message> message = control.Receive(tp::Now() + kTick);
    const absl::Status verdict = control.status();
    if (absl::IsCancelled(verdict)) return absl::OkStatus();
    PHX_RETURN_IF_ERROR(verdict);
    if (message.ok()) {
      const absl::Status ran = RunOne(*message, executor, history);
      if (!ran.ok()) {
        (void)BreakGroup(control, ran);
        continue;  // to the verdict, which another rank may have given first
      }
    } else if (!absl::IsDeadlineExceeded(message.status())) {
      return message.status();
    }
    if (!stay()) return absl::AbortedError("told to end while rank 0 was still there");
  }
}

}  // namespace phalanx::worker
