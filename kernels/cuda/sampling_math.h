// kernels/cuda/sampling_math.h: the arithmetic of a draw on single values: random words, ordered keys, fixed-point masses, bins.
// Refuses to know: rows, threads. Thread: any; host and device give the same bits, save for the last one of exp and log.
// Neighbours: sampling.cu, logprobs.cu; sampling_math_test.cc needs no GPU.
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

// ---- selection ------------------------------------------------------------------------------------------------------

// exp(x - top) in fixed point, so that sums do not depend on their order. x <= top.
PHALANX_HOST_DEVICE uint64_t Mass(float x, float top) { return static_cast<uint64_t>(expf(x - top) * 0x1p43f); }

// The least mass that reaches the share `p` of `total`; at least 1, so that the largest value always stays.
PHALANX_HOST_DEVICE uint64_t MassLimit(float p, uint64_t total) {
  const double limit = ceil(static_cast<double>(p) * static_cast<double>(total));
  return limit >= 1.0 ? static_cast<uint64_t>(limit) : 1;
}

// Bins of the distance below the maximum, 64 for a factor of e: logits spread evenly over them, other than over bits of the key.
constexpr int kBins = 2048;
PHALANX_HOST_DEVICE int BinBelow(float x, float top) { return static_cast<int>(fminf((top - x) * 64.0f, static_cast<float>(kBins - 1))); }

// What is in one bin is told apart by its value and then its id, digit by digit.
PHALANX_HOST_DEVICE uint64_t Composite(float x, int32_t id) {
  return static_cast<uint64_t>(OrderedKey(x)) << kIdBits | static_cast<uint32_t>(kMaxVocab - 1 - id);
}
struct Digit {
  int shift, bits;  // of a Composite
};
constexpr int kValueDigits = 3, kAllDigits = 5;
PHALANX_HOST_DEVICE Digit DigitOf(int level) {
  return level == 0   ? Digit{kIdBits + 21, 11}
         : level == 1 ? Digit{kIdBits + 10, 11}
         : level == 2 ? Digit{kIdBits, 10}
         : level == 3 ? Digit{kIdBits / 2, kIdBits / 2}
                      : Digit{0, kIdBits / 2};
}
// The bin of a composite at a digit: larger digits first.
PHALANX_HOST_DEVICE int DigitBin(uint64_t composite, Digit d) {
  const int last = (1 << d.bits) - 1;
  return last - (static_cast<int>(composite >> d.shift) & last);
}

}  // namespace phalanx::kernels::cuda
