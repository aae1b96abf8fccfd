// worker/tp/reduce.h: the sum of the ranks' parts on a CPU: f32, in the order of ranks, rounded once.
// Refuses to know: where the parts came from. Thread: any. Neighbours: gloo_group.cc.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kernels.h"

namespace phalanx::worker::tp {

// out[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) + ...; bf16 rounds to nearest even, and NaN stays NaN.
//   parts  [ranks][count]  f32 or bf16
//   out    [count]         same dtype; may be one of the parts
void SumInRankOrder(kernels::DType dtype, std::span<const void* const> parts, void* out, int64_t count);

}  // namespace phalanx::worker::tp
