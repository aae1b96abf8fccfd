// kernels/cpu/pack.h: the packed form of a weight.
// Refuses to know: how it is multiplied. Thread: any. Neighbours: gemm.cc and pointwise.cc (embedding) read it.
//
//   panel p holds outputs [16 p, 16 p + 16), all k; outputs past n are zero rows.
//   bf16 (layout 1):  [ceil(k / 32) * 16 k-pairs][16 outputs][2]     64 bytes a pair: one cache line, one row of an AMX tile of B
//   f32  (layout 2):  [ceil(k / 2) * 2 k][16 outputs]                64 bytes a k
// A product with one row reads panels from end to end: a plain stream.
#pragma once

#include "kernels/cpu/level.h"

namespace phalanx::kernels::cpu {

constexpr int32_t kLayoutBf16 = 1;
constexpr int32_t kLayoutF32 = 2;

inline int64_t RoundUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
inline int64_t PaddedK(int64_t k, DType dtype) { return RoundUp(k, dtype == kBF16 ? kKAlign : 2); }
inline int64_t Panels(int64_t n) { return (n + kPanel - 1) / kPanel; }
inline int64_t PanelBytes(int64_t k, DType dtype) { return PaddedK(k, dtype) * kPanel * static_cast<int64_t>(DTypeBytes(dtype)); }
inline uint64_t PackedBytes(int64_t n, int64_t k, DType dtype) { return static_cast<uint64_t>(Panels(n) * PanelBytes(k, dtype)); }

// Packs panel `panel` of rows [n, k] (row-major, bf16 or f32) to its place in `to`.
void PackPanel(const void* rows, int64_t n, int64_t k, DType dtype, int64_t panel, void* to);

// Reads row `row` back, as f32 [k].
void UnpackRow(const Weight& weight, int64_t row, float* out);

}  // namespace phalanx::kernels::cpu
