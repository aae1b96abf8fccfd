#include "worker/tp/reduce.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "services/check.h"

namespace phalanx::worker::tp {
namespace {

constexpr int64_t kBlock = 1024;  // elements summed at a time: 4 KiB of f32, in the first-level cache

float ToFloat(float x) { return x; }
float ToFloat(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

void FromFloat(float x, float* out) { *out = x; }
void FromFloat(float x, uint16_t* out) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40;
  *out = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

template <typename T>
void Sum(std::span<const void* const> parts, T* out, int64_t count) {
  float sum[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = std::min(kBlock, count - begin);
    const T* const first = static_cast<const T*>(parts[0]) + begin;
    for (int64_t i = 0; i < size; ++i) sum[i] = ToFloat(first[i]);
    for (const void* part : parts.subspan(1)) {
      const T* const next = static_cast<const T*>(part) + begin;
      for (int64_t i = 0; i < size; ++i) sum[i] += ToFloat(next[i]);
    }
    for (int64_t i = 0; i < size; ++i) FromFloat(sum[i], out + begin + i);
  }
}

}  // namespace

void SumInRankOrder(kernels::DType dtype, std::span<const void* const> parts, void* out, int64_t count) {
  PHX_CHECK(dtype == kernels::kF32 || dtype == kernels::kBF16);
  if (dtype == kernels::kF32) {
    Sum(parts, static_cast<float*>(out), count);
  } else {
    Sum(parts, static_cast<uint16_t*>(out), count);
  }
}

}  // namespace phalanx::worker::tp
