// kernels/cuda/device/part.cuh: a CTA's part of a row of logits, kept while the row is worked on; and which rows a team works on.
// Refuses to know: what is looked for. Thread: device code, all threads of a CTA of kRowThreads together.
// Neighbours: team.cuh, select.cuh; sampling_truncated.cu, logprobs.cu.
//
// A thread meets the same values in every pass, so that passes need no barrier between them.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/team.cuh"

namespace phalanx::kernels::cuda {

struct Part {
  float* x;       // shared memory, or the workspace where that is too small; multiples of kPack, NaN past the end
  int32_t first;  // id of x[0], a multiple of kPack
  int32_t count;
};

static_assert(kPack == 4);  // PartSize

__device__ __forceinline__ Part PartOf(float* memory, int32_t vocab, const Team& team) {
  const int32_t size = PartSize(vocab, team.size()), first = min(team.rank() * size, vocab);
  return {memory, first, min(size, vocab - first)};
}

// fn(value, id) for the whole part; after each pack every thread calls between(), also those past the end.
template <class Fn, class Between>
__device__ __forceinline__ void ForPart(const Part& part, Fn fn, Between between) {
#pragma unroll 2
  for (int32_t begin = 0; begin < part.count; begin += kTurn) {
    const int32_t at = begin + static_cast<int32_t>(threadIdx.x) * kPack;
    if (at < part.count) {
      const float4 v = *reinterpret_cast<const float4*>(part.x + at);
      fn(v.x, part.first + at);
      fn(v.y, part.first + at + 1);
      fn(v.z, part.first + at + 2);
      fn(v.w, part.first + at + 3);
    }
    between();
  }
}
template <class Fn>
__device__ __forceinline__ void ForPart(const Part& part, Fn fn) {
  ForPart(part, fn, [] {});
}

// Brings a part over from its row in global memory. `in_shared`: the part lies in shared memory.
__device__ __forceinline__ void LoadPart(const Part& part, const float* row, bool aligned, bool in_shared) {
  const float* from = row + part.first;
  for (int32_t at = static_cast<int32_t>(threadIdx.x) * kPack; at < part.count; at += kTurn) {
    if (aligned && in_shared && at + kPack <= part.count) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
      const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(part.x + at));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(from + at) : "memory");
#else
      *reinterpret_cast<float4*>(part.x + at) = __ldcg(reinterpret_cast<const float4*>(from + at));
#endif
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) part.x[at + j] = at + j < part.count ? __ldcg(from + at + j) : NAN;
    }
  }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
}

struct QueueShared {
  uint16_t row[kRowThreads];
  uint32_t warp_count[kRowWarps];
};

// Of the rows [begin, begin + kRowThreads) below `rows` those for which wanted(row) holds go to the teams in turn. Writes this team's to
// the queue, as distances from `begin`, and returns how many: every CTA of the team finds the same.
template <class Wanted>
__device__ __forceinline__ int QueueRows(QueueShared& q, int64_t begin, int64_t rows, int team, int teams, Wanted wanted) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const bool mine = begin + threadIdx.x < rows && wanted(begin + threadIdx.x);
  const uint32_t votes = __ballot_sync(0xffffffffu, mine);
  __syncthreads();  // the queue may be in use
  if (lane == 0) q.warp_count[warp] = __popc(votes);
  __syncthreads();
  uint32_t before = __popc(votes & ((1u << lane) - 1)), total = 0;
#pragma unroll
  for (int i = 0; i < kRowWarps; ++i) {
    if (i < warp) before += q.warp_count[i];
    total += q.warp_count[i];
  }
  if (mine && static_cast<int>(before) % teams == team) q.row[before / teams] = static_cast<uint16_t>(threadIdx.x);
  __syncthreads();
  return (static_cast<int>(total) - team + teams - 1) / teams;
}

}  // namespace phalanx::kernels::cuda
