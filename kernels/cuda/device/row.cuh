// kernels/cuda/device/row.cuh: one CTA on one row of logits: reading it, reducing over the CTA.
// Refuses to know: what is looked for. Thread: device code, all threads of the CTA together.
// Neighbours: select.cuh, sampling.cu, logprobs.cu.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/warp.cuh"
#include "kernels/cuda/sampling_math.h"

namespace phalanx::kernels::cuda {

constexpr int kRowThreads = 512;
constexpr int kRowWarps = kRowThreads / kWarp;
constexpr int kPack = 4;                          // neighbours that a thread takes
constexpr int kTurn = kRowThreads * kPack;        // values that a CTA takes at once

// Values begin + (turn * kRowThreads + thread) * 4 + j as x[turn][j]; -infinity past the row's end. Not through L1: other CTAs may have
// written them.
template <int kTurns>
__device__ __forceinline__ void LoadTile(const float* row, int begin, int n, bool aligned, float (&x)[kTurns][kPack]) {
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    const int at = begin + (t * kRowThreads + static_cast<int>(threadIdx.x)) * kPack;
    if (aligned && at + kPack <= n) {
      const float4 v = __ldcg(reinterpret_cast<const float4*>(row + at));
      x[t][0] = v.x, x[t][1] = v.y, x[t][2] = v.z, x[t][3] = v.w;
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) x[t][j] = at + j < n ? __ldcg(row + at + j) : -INFINITY;
    }
  }
}

struct RowView {
  const float* x;
  int n;
  bool aligned;
};

// fn(value, id) for the whole row; after each pack every thread calls between(), also those whose values are past the end.
template <class Fn, class Between>
__device__ __forceinline__ void ForRow(const RowView& row, Fn fn, Between between) {
  constexpr int kTurns = 4;
  for (int begin = 0; begin < row.n; begin += kTurns * kTurn) {
    float x[kTurns][kPack];
    LoadTile(row.x, begin, row.n, row.aligned, x);
#pragma unroll
    for (int t = 0; t < kTurns; ++t) {
      const int at = begin + (t * kRowThreads + static_cast<int>(threadIdx.x)) * kPack;
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        if (at + j < row.n) fn(x[t][j], at + j);
      }
      between();
    }
  }
}
template <class Fn>
__device__ __forceinline__ void ForRow(const RowView& row, Fn fn) {
  ForRow(row, fn, [] {});
}

struct ReduceShared {
  uint64_t words[kRowWarps];
};

__device__ __forceinline__ uint64_t WarpMax(uint64_t x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, x, step);
    x = other > x ? other : x;
  }
  return x;
}

// The largest, in every thread.
__device__ __forceinline__ uint64_t CtaMax(uint64_t x, ReduceShared& shared) {
  x = WarpMax(x);
  __syncthreads();  // `shared` may be in use from the last time
  if (threadIdx.x % kWarp == 0) shared.words[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = shared.words[0];
#pragma unroll
  for (int i = 1; i < kRowWarps; ++i) x = shared.words[i] > x ? shared.words[i] : x;
  return x;
}

// The sum, in every thread.
__device__ __forceinline__ uint64_t CtaSum(uint64_t x, ReduceShared& shared) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared.words[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = 0;
#pragma unroll
  for (int i = 0; i < kRowWarps; ++i) x += shared.words[i];
  return x;
}

}  // namespace phalanx::kernels::cuda
