// worker/ranks_message.h: what rank 0 sends with each plan, and how ranks compare the tokens they drew.
// Refuses to know: sockets, who is compared. Thread: any; pure.
// Neighbours: leader.cc writes, follower.cc reads, worker/tp/control.h carries the bytes.
//
// Every rank draws the same tokens by itself. If two ever differed, their caches would differ from there on and every later token would be
// nonsense that looks like text. So each plan brings a hash of the tokens that rank 0 drew in an earlier step: 16 bytes on a message that
// is sent anyway, and no message of its own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "services/status.h"
#include "worker/core/step.h"

namespace phalanx::worker {

// A step and the hash of what was drawn in it; step 0: nothing yet.
struct DrawnTokens {
  uint64_t step = 0;
  uint64_t hash = 0;
};

// Of rows and ids in the order of the slices. FNV-1a over 64-bit words, finished with a multiply-shift (MurmurHash3's finaliser).
DrawnTokens HashDrawn(const core::StepResult& result);

//   u64 step, u64 hash (of `drawn`), then the serialised plan; little-endian
std::string PlanMessage(const DrawnTokens& drawn, const core::StepPlan& plan);
struct ReceivedPlan {
  DrawnTokens drawn;
  core::StepPlan plan;
};
// kInvalidArgument on anything else.
absl::StatusOr<ReceivedPlan> ParsePlanMessage(std::string_view bytes);

}  // namespace phalanx::worker
