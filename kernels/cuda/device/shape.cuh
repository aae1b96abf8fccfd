// kernels/cuda/device/shape.cuh: what the options do to a row's values before the draw: mask, biases, penalties, temperature.
// Refuses to know: the draw. Thread: device code, all threads of a CTA of kRowThreads together, whole warps.
// Neighbours: row.cuh; sampling.cu, sampling_truncated.cu.
//
// A thread has values x[turn][j] of the ids At(begin, turn) + j; `begin` is a multiple of kPack. Ids past the vocabulary are not read.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/row.cuh"
#include "kernels/cuda/sampling.h"

namespace phalanx::kernels::cuda {

constexpr float kNever = -INFINITY;

enum class Draw { kGreedy, kPlain, kTruncated };

__device__ __forceinline__ Draw DrawOf(const SamplingRow& o) {
  if (o.temperature < 1e-5f) return Draw::kGreedy;
  return o.min_p > 0 || o.top_k > 0 || o.top_p < 1.0f ? Draw::kTruncated : Draw::kPlain;
}

// A row that names a table which is not there cannot be drawn as asked.
__device__ __forceinline__ bool HasTables(const DrawParams& p, const SamplingRow& o) {
  return (o.mask < 0 || p.masks != nullptr) && (o.state < 0 || (p.prompt_seen != nullptr && p.output_counts != nullptr)) &&
         (o.bias_end <= o.bias_begin || (p.bias_ids != nullptr && p.bias_values != nullptr));
}

__device__ __forceinline__ int At(int begin, int turn) { return begin + (turn * kRowThreads + static_cast<int>(threadIdx.x)) * kPack; }

template <int kTurns>
__device__ __forceinline__ void ApplyMask(const DrawParams& p, const SamplingRow& o, int begin, float (&x)[kTurns][kPack]) {
  const uint32_t* mask = p.masks + o.mask * ((p.width + 31) / 32);
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    const int at = At(begin, t);
    const uint32_t bits = at < p.logits.vocab ? mask[at / 32] >> (at % 32) : 0;
#pragma unroll
    for (int j = 0; j < kPack; ++j) x[t][j] = bits >> j & 1 ? x[t][j] : kNever;
  }
}

// In the list's order: an id may come twice. A warp looks at 32 entries at once for those among its CTA's ids.
template <int kTurns>
__device__ __forceinline__ void ApplyBiases(const DrawParams& p, const SamplingRow& o, int begin, float (&x)[kTurns][kPack]) {
  for (int first = o.bias_begin; first < o.bias_end; first += kWarp) {
    const int entry = first + static_cast<int>(threadIdx.x) % kWarp;
    const int32_t id = entry < o.bias_end ? p.bias_ids[entry] : -1;
    const float value = entry < o.bias_end ? p.bias_values[entry] : 0.0f;
    uint32_t here = __ballot_sync(0xffffffffu, id >= begin && id < begin + kTurns * kTurn && id < p.logits.vocab);
    for (; here != 0; here &= here - 1) {
      const int lane = __ffs(static_cast<int>(here)) - 1;
      const int32_t biased = __shfl_sync(0xffffffffu, id, lane);
      const float bias = __shfl_sync(0xffffffffu, value, lane);
#pragma unroll
      for (int t = 0; t < kTurns; ++t) {
#pragma unroll
        for (int j = 0; j < kPack; ++j) x[t][j] = biased == At(begin, t) + j ? x[t][j] + bias : x[t][j];
      }
    }
  }
}

// Rounds after each operation, as the contract's order is written; no multiply-add.
__device__ __forceinline__ float Penalised(const SamplingRow& o, float x, bool seen, int32_t count) {
  if (o.repetition_penalty != 1.0f && (seen || count > 0)) {
    x = x > 0 ? __fdiv_rn(x, o.repetition_penalty) : __fmul_rn(x, o.repetition_penalty);
  }
  if (count <= 0) return x;
  return __fsub_rn(__fsub_rn(x, __fmul_rn(o.frequency_penalty, static_cast<float>(count))), o.presence_penalty);
}

template <int kTurns>
__device__ __forceinline__ void ApplyPenalties(const DrawParams& p, const SamplingRow& o, int begin, float (&x)[kTurns][kPack]) {
  if (o.repetition_penalty == 1.0f && o.frequency_penalty == 0.0f && o.presence_penalty == 0.0f) return;
  const uint32_t* seen = p.prompt_seen + o.state * ((p.width + 31) / 32);
  const int32_t* counts = p.output_counts + o.state * p.width;
  const bool aligned = reinterpret_cast<uintptr_t>(counts) % 16 == 0;
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    const int at = At(begin, t);
    if (at >= p.logits.vocab) continue;
    const uint32_t bits = seen[at / 32] >> (at % 32);
    int32_t count[kPack];
    if (aligned && at + kPack <= p.width) {
      const int4 four = *reinterpret_cast<const int4*>(counts + at);
      count[0] = four.x, count[1] = four.y, count[2] = four.z, count[3] = four.w;
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) count[j] = at + j < p.logits.vocab ? counts[at + j] : 0;
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) x[t][j] = Penalised(o, x[t][j], bits >> j & 1, count[j]);
  }
}

template <int kTurns>
__device__ __forceinline__ void ShapeTile(const DrawParams& p, const SamplingRow& o, Draw draw, int begin, float (&x)[kTurns][kPack]) {
  if (o.mask >= 0) ApplyMask(p, o, begin, x);
  if (o.bias_end > o.bias_begin) ApplyBiases(p, o, begin, x);
  if (o.state >= 0) ApplyPenalties(p, o, begin, x);
  if (draw == Draw::kGreedy || o.temperature == 1.0f) return;
  const float inverse = __frcp_rn(o.temperature);
  const bool quick = CanDivideBy(o.temperature);
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      x[t][j] = quick && CanDivide(x[t][j]) ? Divide(x[t][j], o.temperature, inverse) : __fdiv_rn(x[t][j], o.temperature);
    }
  }
}

// Gumbel-max over the values a thread is shown; the warp shares how much there is to beat.
struct Contest {
  uint64_t best = kNobody;
  float to_beat = -INFINITY;

  // Whatever its noise.
  __device__ __forceinline__ bool Hopeless(float x) const { return to_beat - x > kMostGumbel; }
  // x + g can only win if u <= exp(x - to_beat), because -log1p(-u) >= u. The margin covers the rounding of both sides.
  __device__ __forceinline__ void Enter(const SamplingRow& o, float x, int32_t id) {
    const float u = Uniform(o, id);
    if (u > 1.01f * __expf(x - to_beat)) return;
    const uint64_t candidate = Candidate(x + Gumbel(u), id);
    best = candidate > best ? candidate : best;
  }
  // All lanes together.
  __device__ __forceinline__ void Share() {
    const uint32_t key = WarpMax(static_cast<uint32_t>(best >> 32));
    if (key != 0) to_beat = FromKey(key);
  }
};

}  // namespace phalanx::kernels::cuda
