#include "kernels/cpu/pack.h"

#include <algorithm>
#include <cstring>

namespace phalanx::kernels::cpu {
namespace {

template <class T, int kPair>
void Pack(const T* rows, int64_t n, int64_t k, int64_t padded_k, int64_t panel, T* to) {
  to += panel * padded_k * kPanel;
  const int64_t valid = std::min<int64_t>(kPanel, n - panel * kPanel);
  const T* from = rows + panel * kPanel * k;
  for (int64_t i = 0; i < padded_k; i += kPair) {
    for (int64_t o = 0; o < kPanel; ++o) {
      for (int64_t j = 0; j < kPair; ++j) *to++ = o < valid && i + j < k ? from[o * k + i + j] : T{};
    }
  }
}

}  // namespace

void PackPanel(const void* rows, int64_t n, int64_t k, DType dtype, int64_t panel, void* to) {
  if (dtype == kBF16) {
    Pack<uint16_t, 2>(static_cast<const uint16_t*>(rows), n, k, PaddedK(k, dtype), panel, static_cast<uint16_t*>(to));
  } else {
    Pack<float, 1>(static_cast<const float*>(rows), n, k, PaddedK(k, dtype), panel, static_cast<float*>(to));
  }
}

void UnpackRow(const Weight& weight, int64_t row, float* out) {
  const char* panel = static_cast<const char*>(weight.data) + row / kPanel * PanelBytes(weight.k, weight.dtype);
  const int64_t o = row % kPanel;
  if (weight.dtype == kF32) {
    for (int64_t i = 0; i < weight.k; ++i) out[i] = reinterpret_cast<const float*>(panel)[i * kPanel + o];
    return;
  }
  for (int64_t i = 0; i < weight.k; ++i) {
    const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(panel)[(i / 2 * kPanel + o) * 2 + i % 2]) << 16;
    std::memcpy(out + i, &bits, 4);
  }
}

}  // namespace phalanx::kernels::cpu
