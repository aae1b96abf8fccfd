// kernels/cpu/gemm_dot_impl.h: tiles on AVX512_BF16 dot products: bf16 pairs of activations times bf16 pairs of weights.
// Refuses to know: threads, cache blocking. Thread: any. Included by levels compiled with -mavx512bf16; internal linkage.
// Neighbours: gemm_impl.h is the f32 form with the same walk: one chain a sum, pairs of k rising, whatever the tile.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/gemm_impl.h"

namespace {

// bf16 x as [padded_k / 2][rows] pairs.
inline void PackXPairs(const void* x, DType, int64_t x_stride, int rows, int64_t k, int64_t padded_k, void* out) {
  const uint16_t* from = static_cast<const uint16_t*>(x);
  uint16_t* to = static_cast<uint16_t*>(out);
  for (int64_t i = 0; i < padded_k; i += 2) {
    for (int r = 0; r < rows; ++r) {
      *to++ = i < k ? from[r * x_stride + i] : 0;
      *to++ = i + 1 < k ? from[r * x_stride + i + 1] : 0;
    }
  }
}

template <int Rows, int Panels>
inline __attribute__((always_inline)) void DotTile(const TileArgs& a, const char* weight, float* c) {
  __m512 acc[Rows][Panels];
  for (int r = 0; r < Rows; ++r) {
    for (int p = 0; p < Panels; ++p) acc[r][p] = a.first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + r * a.c_stride + p * kPanel);
  }
  const char* x = static_cast<const char*>(a.x);
  const char* next = a.next != nullptr ? a.next : weight;
  const int64_t next_step = a.next != nullptr ? a.next_step : 0;
  for (int64_t k = 0; k < a.k; k += 2) {
    __builtin_prefetch(next, 0, 2);
    next += next_step;
    __m512bh w[Panels];
    for (int p = 0; p < Panels; ++p) w[p] = (__m512bh)_mm512_loadu_si512(weight + p * a.panel_bytes);
    for (int r = 0; r < Rows; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, x + 4 * r, 4);
      const __m512bh xr = (__m512bh)_mm512_set1_epi32(pair);
      for (int p = 0; p < Panels; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], w[p], xr);
    }
    x += 4 * Rows;
    weight += 64;
  }
  for (int r = 0; r < Rows; ++r) {
    for (int p = 0; p < Panels; ++p) _mm512_storeu_ps(c + r * a.c_stride + p * kPanel, acc[r][p]);
  }
}

template <class Shape, int Rows = Shape::kRows>
void DotByRows(const TileArgs& a) {
  if constexpr (Rows > 0) {
    if (a.rows != Rows) return DotByRows<Shape, Rows - 1>(a);
    constexpr int kPanels = Shape::Panels(Rows);
    int p = 0;
    for (; p + kPanels <= a.panels; p += kPanels) DotTile<Rows, kPanels>(a, a.weight + p * a.panel_bytes, a.c + p * kPanel);
    for (; p < a.panels; ++p) DotTile<Rows, 1>(a, a.weight + p * a.panel_bytes, a.c + p * kPanel);
  }
}

}  // namespace
