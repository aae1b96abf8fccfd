// kernels/cpu/gemm_impl.h: the f32 multiply-add tile, written once over a vector vocabulary.
// Refuses to know: threads, cache blocking (gemm.cc), dot-product instructions (gemm_dot_impl.h).
// Thread: any. Included by level_*.cc; everything has internal linkage, so that no level's code can be linked into another.
// Neighbours: pack.h lays the panels out.
//
// A tile holds rows x panels x 16 sums in registers and walks k once. Each sum is one chain acc = fma(x[k], w[k], acc) with
// k rising, for every tile shape: the bits do not depend on which shape was used. Between two blocks of k the sums rest in c.
#pragma once

#include <cstring>

#include "kernels/cpu/level.h"

namespace {

using phalanx::kernels::DType;
using phalanx::kernels::cpu::GemmKernel;
using phalanx::kernels::cpu::kPanel;
using phalanx::kernels::cpu::TileArgs;

inline float ScalarFromBf16(uint16_t h) {
  uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

inline float ScalarAt(const void* x, DType dtype, int64_t i) {
  return dtype == phalanx::kernels::kF32 ? static_cast<const float*>(x)[i] : ScalarFromBf16(static_cast<const uint16_t*>(x)[i]);
}

// x as f32, [padded_k][rows].
template <class V>
void PackXFloat(const void* x, DType dtype, int64_t x_stride, int rows, int64_t k, int64_t padded_k, void* out) {
  float* to = static_cast<float*>(out);
  if (rows == 1) {
    int64_t i = 0;
    for (; i + V::kLanes <= k; i += V::kLanes) {
      V::Store(to + i, dtype == phalanx::kernels::kF32 ? V::Load(static_cast<const float*>(x) + i)
                                                       : V::LoadBf16(static_cast<const uint16_t*>(x) + i));
    }
    for (; i < k; ++i) to[i] = ScalarAt(x, dtype, i);
  } else {
    for (int r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < k; ++i) to[i * rows + r] = ScalarAt(x, dtype, r * x_stride + i);
    }
  }
  for (int64_t i = k * rows; i < padded_k * rows; ++i) to[i] = 0.0f;
}

// Rows x Panels panels of bf16 (kPair = true: pairs of k in 32-bit words) or f32 weights.
template <class V, int Rows, int Panels, bool kPair>
inline __attribute__((always_inline)) void FmaTile(const TileArgs& a, const char* weight, float* c) {
  constexpr int kVecs = kPanel / V::kLanes;
  typename V::F acc[Rows][Panels * kVecs];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Panels * kVecs; ++v) {
      acc[r][v] = a.first ? V::Zero() : V::Load(c + r * a.c_stride + v * V::kLanes);
    }
  }
  const float* x = static_cast<const float*>(a.x);
  const int64_t stride = a.panel_bytes;
  const char* next = a.next != nullptr ? a.next : weight;
  const int64_t next_step = a.next != nullptr ? a.next_step : 0;
  for (int64_t k = 0; k < a.k; k += 2) {
    __builtin_prefetch(next, 0, 2);
    next += next_step;
    for (int odd = 0; odd < 2; ++odd) {
      typename V::F w[Panels * kVecs];
      for (int p = 0; p < Panels; ++p) {
        for (int v = 0; v < kVecs; ++v) {
          if constexpr (kPair) {
            const uint16_t* at = reinterpret_cast<const uint16_t*>(weight + p * stride) + v * V::kLanes * 2;
            w[p * kVecs + v] = odd ? V::OddBf16(at) : V::EvenBf16(at);
          } else {
            w[p * kVecs + v] = V::Load(reinterpret_cast<const float*>(weight + p * stride) + odd * kPanel + v * V::kLanes);
          }
        }
      }
      for (int r = 0; r < Rows; ++r) {
        const typename V::F xr = V::Set(x[r]);
        for (int v = 0; v < Panels * kVecs; ++v) acc[r][v] = V::Fma(xr, w[v], acc[r][v]);
      }
      x += Rows;
    }
    weight += kPair ? 4 * kPanel : 8 * kPanel;
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Panels * kVecs; ++v) V::Store(c + r * a.c_stride + v * V::kLanes, acc[r][v]);
  }
}

template <class V, int Rows, int Panels, bool kPair>
void FmaTiles(const TileArgs& a) {
  int p = 0;
  for (; p + Panels <= a.panels; p += Panels) FmaTile<V, Rows, Panels, kPair>(a, a.weight + p * a.panel_bytes, a.c + p * kPanel);
  for (; p < a.panels; ++p) FmaTile<V, Rows, 1, kPair>(a, a.weight + p * a.panel_bytes, a.c + p * kPanel);
}

}  // namespace
