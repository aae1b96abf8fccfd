// kernels/cuda/sampling_math.h: the arithmetic of a draw on single values: random words, ordered keys, fixed-point masses, bins.
// Refuses to know: rows, threads. Thread: any; host and device give the same bits, save for the last one of exp and log.
// Neighbours: device/select.cuh, sampling*.cu, logprobs.cu; sampling_math_test.cc needs no GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/kernels.h"

#ifndef PHALANX_HOST_DEVICE
#ifdef __CUDACC__
#define PHALANX_HOST_DEVICE __host__ __device__ inline
#else
#define PHALANX_HOST_DEVICE inline
#endif
#endif

namespace phalanx::kernels::cuda {

constexpr int kIdBits = 20;
constexpr int32_t kMaxVocab = 1 << kIdBits;  // so many masses of 1 fit 64 bits

// ---- random numbers -------------------------------------------------------------------------------------------------

// Philox4x32-10, first output word. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
PHALANX_HOST_DEVICE uint32_t Philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c0;
}

// The uniform number in (0, 1) of a token.
PHALANX_HOST_DEVICE float Uniform(const SamplingRow& o, int32_t id) {
  const uint32_t word = Philox(o.seed, static_cast<uint32_t>(o.position), static_cast<uint32_t>(id), o.stream, 0);
  return fminf(fmaf(static_cast<float>(word), 0x1p-32f, 0x1p-33f), 0x1.fffffep-1f);
}

PHALANX_HOST_DEVICE float Gumbel(float u) { return -logf(-log1pf(-u)); }
constexpr float kMostGumbel = 22.9f;  // of the smallest u, 2^-33

// ---- order ----------------------------------------------------------------------------------------------------------

PHALANX_HOST_DEVICE uint32_t FloatBits(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}
PHALANX_HOST_DEVICE float BitsFloat(uint32_t x) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(x);
#else
  return __builtin_bit_cast(float, x);
#endif
}

// Rises with x; the two zeros are equal. Never 0 and never all ones, unless x is NaN.
PHALANX_HOST_DEVICE uint32_t OrderedKey(float x) {
  const uint32_t bits = FloatBits(x + 0.0f);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}
PHALANX_HOST_DEVICE float FromKey(uint32_t key) { return BitsFloat(key & 0x80000000u ? key ^ 0x80000000u : ~key); }

// A value and its id in one word: the larger value wins, then the lower id. 0 = nobody, all ones = the row cannot be used.
constexpr uint64_t kNobody = 0, kBadRow = ~uint64_t{0};
PHALANX_HOST_DEVICE uint64_t Candidate(float x, int32_t id) {
  return static_cast<uint64_t>(OrderedKey(x)) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
PHALANX_HOST_DEVICE float ValueOf(uint64_t candidate) { return FromKey(static_cast<uint32_t>(candidate >> 32)); }
PHALANX_HOST_DEVICE int32_t IdOf(uint64_t candidate) {
  return candidate == kNobody || candidate == kBadRow ? -1 : static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(candidate));
}

// ---- shaping --------------------------------------------------------------------------------------------------------

// x / t rounded to nearest, with y = 1 / t rounded to nearest, for what CanDivide accepts.
// Source: Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990, theorem 7.
PHALANX_HOST_DEVICE bool CanDivide(float x) { return ((FloatBits(x) >> 23) & 0xff) - 67 < 120; }  // 2^-60 to 2^60
PHALANX_HOST_DEVICE bool CanDivideBy(float t) { return t > 1e-6f && t < 1e6f; }
PHALANX_HOST_DEVICE float Divide(float x, float t, float y) {
  const float first = x * y, second = fmaf(fmaf(-t, first, x), y, first);
  return fmaf(fmaf(-t, second, x), y, second);
}

// ---- selection ------------------------------------------------------------------------------------------------------

// exp(x - top) to about 2^-21 of itself. x <= top.
PHALANX_HOST_DEVICE float ExpBelow(float x, float top) {
  const float power = (x - top) * 1.44269504f;
#ifdef __CUDA_ARCH__
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(power));
  return out;
#else
  return exp2f(power);
#endif
}
// The same in fixed point, so that sums do not depend on their order.
PHALANX_HOST_DEVICE uint64_t Mass(float x, float top) { return static_cast<uint64_t>(ExpBelow(x, top) * 0x1p43f); }

// The least mass that reaches the share `p` of `total`; at least 1, so that the largest value always stays.
PHALANX_HOST_DEVICE uint64_t MassLimit(float p, uint64_t total) {
  const double limit = ceil(static_cast<double>(p) * static_cast<double>(total));
  return limit >= 1.0 ? static_cast<uint64_t>(limit) : 1;
}

constexpr int kBins = 512;

// First level: bins of the distance below the largest value, `per_unit` of them for a factor of e. The last one holds all the rest.
constexpr float kWidestSpan = 32.0f;  // exp(-32) has no mass
constexpr float kNarrowestSpan = 1e-3f;
PHALANX_HOST_DEVICE int BinBelow(float x, float top, float per_unit) {
  return static_cast<int>(fminf((top - x) * per_unit, static_cast<float>(kBins - 1)));
}
// So far below the maximum lies nothing that a top-p of `p` leaves: `count` values there weigh less than the share 1 - p of the maximum.
PHALANX_HOST_DEVICE float SpanOfTopP(float p, int32_t count) {
  return fminf(logf(static_cast<float>(count) / (1.0f - p)) + 0.25f, kWidestSpan);
}
// Bounds of the mass of one value in a bin; the margin of 2^-15 covers the rounding of the bin's border and of exp.
PHALANX_HOST_DEVICE uint64_t MostMass(int bin, float per_unit) {
  const uint64_t mass = Mass(-static_cast<float>(bin) / per_unit, 0.0f);
  return mass + (mass >> 15) + 1;
}
PHALANX_HOST_DEVICE uint64_t LeastMass(int bin, float per_unit) {
  const uint64_t mass = Mass(-static_cast<float>(bin + 1) / per_unit, 0.0f);
  return mass - (mass >> 15) - (mass > 0 ? 1 : 0);
}
// Bounds of the mass of the first bins, from those of these bins and of what is behind them.
struct Prefix {
  uint64_t most, least, exactly;  // of all bins

  PHALANX_HOST_DEVICE uint64_t Most(uint64_t first_most, uint64_t first_least) const {
    const uint64_t seen_from_behind = exactly - (least - first_least);
    return first_most < seen_from_behind ? first_most : seen_from_behind;
  }
  PHALANX_HOST_DEVICE uint64_t Least(uint64_t first_most, uint64_t first_least) const {
    const uint64_t behind = most - first_most, seen_from_behind = exactly > behind ? exactly - behind : 0;
    return first_least > seen_from_behind ? first_least : seen_from_behind;
  }
};
// The key of the largest value in or behind bin `bin` >= 1: BinBelow never rises with the value, so this border is exact.
PHALANX_HOST_DEVICE uint32_t LastKeyFrom(int bin, float top, float per_unit) {
  constexpr float kNear = 0.002f;  // of a bin: more than rounding moves a border, unless the values are that coarse
  uint32_t in = OrderedKey(top - (static_cast<float>(bin) + kNear) / per_unit);
  uint32_t out = OrderedKey(top - (static_cast<float>(bin) - kNear) / per_unit);
  if (BinBelow(FromKey(in), top, per_unit) < bin) in = OrderedKey(-INFINITY);
  if (BinBelow(FromKey(out), top, per_unit) >= bin) out = OrderedKey(top);
  while (out - in > 1) {
    const uint32_t middle = in + (out - in) / 2;
    if (BinBelow(FromKey(middle), top, per_unit) >= bin) in = middle; else out = middle;
  }
  return in;
}

// Later levels: ranges of a value and then its id in one number, cut into bins of a power of two from the upper end.
PHALANX_HOST_DEVICE uint64_t Composite(float x, int32_t id) {
  return static_cast<uint64_t>(OrderedKey(x)) << kIdBits | static_cast<uint32_t>(kMaxVocab - 1 - id);
}
PHALANX_HOST_DEVICE float ValueOfComposite(uint64_t composite) { return FromKey(static_cast<uint32_t>(composite >> kIdBits)); }
struct Range {
  uint64_t low, high;  // both belong to it

  PHALANX_HOST_DEVICE bool Holds(uint64_t composite) const { return composite >= low && composite <= high; }
  PHALANX_HOST_DEVICE bool OneValue() const { return low >> kIdBits == high >> kIdBits; }
};
// All ids of the values with the keys from `low` to `high`.
PHALANX_HOST_DEVICE Range RangeOfKeys(uint32_t low, uint32_t high) {
  return {static_cast<uint64_t>(low) << kIdBits, ((static_cast<uint64_t>(high) + 1) << kIdBits) - 1};
}
// The smallest bins that suffice, but none smaller than 2^least.
PHALANX_HOST_DEVICE int ShiftOf(Range range, int least) {
  int shift = least;
  while ((range.high - range.low) >> shift >= kBins) ++shift;
  return shift;
}
PHALANX_HOST_DEVICE int BinInRange(Range range, uint64_t composite, int shift) {
  return static_cast<int>((range.high - composite) >> shift);
}
PHALANX_HOST_DEVICE Range RangeOfBin(Range range, int bin, int shift) {
  const uint64_t high = range.high - (static_cast<uint64_t>(bin) << shift), size = (uint64_t{1} << shift) - 1;
  return {high - range.low > size ? high - size : range.low, high};
}

}  // namespace phalanx::kernels::cuda
