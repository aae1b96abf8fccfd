// worker/tp/nccl_group.h: forwards to the collectives of a kernel table (NCCL inside the CUDA plug-in) and gives their codes names.
// Refuses to know: NCCL, CUDA. Thread: the engine's. Neighbours: group.h; kernels.h has the entries.
//
// Rank 0's identity bytes travel over the control channel's store; `group_create` then meets by NCCL's own means, within the plug-in's own
// time limit. The order of a sum is NCCL's: the same bits on every rank, not necessarily the order of ranks.
#pragma once

#include <memory>

#include "worker/tp/group.h"

namespace phalanx::worker::tp {

constexpr size_t kUniqueIdBytes = 128;  // ncclUniqueId

// Errors: kUnimplemented naming the missing entry or identity maker, kInternal with the back end's reason, the verdict.
absl::StatusOr<std::unique_ptr<Group>> MakeNcclGroup(const kernels::Table& table, kernels::Device* device, Control& control,
                                                     const GroupOptions& options, const UniqueIdMaker& make_unique_id);

}  // namespace phalanx::worker::tp
