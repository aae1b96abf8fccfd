#include "worker/ranks_message.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace phalanx::worker {
namespace {

static_assert(std::endian::native == std::endian::little);
static_assert(sizeof(DrawnTokens) == 16);

}  // namespace

DrawnTokens HashDrawn(const core::StepResult& result) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const core::SliceResult& slice : result.slices) {
    if (!slice.sampled) continue;
    hash ^= static_cast<uint64_t>(static_cast<uint32_t>(slice.row)) << 32 | static_cast<uint32_t>(slice.token.id);
    hash *= 0x100000001b3;
    hash ^= hash >> 33;
    hash *= 0xff51afd7ed558ccd;
    hash ^= hash >> 33;
  }
  return {result.step, hash};
}

std::string PlanMessage(const DrawnTokens& drawn, const core::StepPlan& plan) {
  return absl::StrCat(std::string(reinterpret_cast<const char*>(&drawn), sizeof(drawn)), core::Serialize(plan));
}

absl::StatusOr<ReceivedPlan> ParsePlanMessage(std::string_view bytes) {
  ReceivedPlan out;
  if (bytes.size() < sizeof(out.drawn)) return absl::InvalidArgumentError(absl::StrCat("a plan message of ", bytes.size(), " bytes"));
  std::memcpy(&out.drawn, bytes.data(), sizeof(out.drawn));
  PHX_ASSIGN_OR_RETURN(out.plan, core::ParseStepPlan(bytes.substr(sizeof(out.drawn))));
  return out;
}

}  // namespace phalanx::worker
