// kernels/cuda/gemm_config.h: which kernel a matrix product takes and how it is cut: pure choices from shapes.
// Refuses to know: CUDA, devices, pointers. Thread: any. Neighbours: gemm.cc acts on it; gemm_config_test.cc needs no GPU.
#pragma once

#include <compare>
#include <cstdint>

#include "kernels/kernels.h"

namespace phalanx::kernels::cuda {

// Most rows of x that the streaming kernel takes: above, the weights are shared by enough rows for the library's tiles to win.
constexpr int64_t kSmallRows = 16;
// Most rows that the plain row kernel takes (any dtype, any alignment); above, the plain tile kernel.
constexpr int64_t kPlainRows = 8;

// A product x [m, k] * weight [n, k]^T with what its kernels depend on.
struct ProductShape {
  int64_t m, n, k;
  DType x, weight;
  bool aligned;  // rows of x and of the weight start at multiples of 16 bytes
};

enum class ProductWay {
  kNothing,      // no rows
  kStream,       // gemv.cu: bf16, few rows, the weight streamed once
  kLibrary,      // cuBLASLt: bf16, many rows
  kPlainRows,    // gemm_plain.cu: a warp an output
  kPlainTiles,   // gemm_plain.cu: tiles in shared memory
};

ProductWay ChooseWay(const ProductShape& shape);

constexpr int kStreamTile = 16;  // weight rows that a CTA of gemv.cu takes at a time

// How gemv.cu cuts a product. CTA c computes weight rows [c * rows, (c + 1) * rows); its warps share k.
struct StreamConfig {
  int ctas;
  int rows;   // even, so that gate and up stay together
  int warps;  // 8, 16 or 32
  auto operator<=>(const StreamConfig&) const = default;
};

StreamConfig ChooseStream(int64_t m, int64_t n, int64_t k, int sm_count);

// Shared memory of gemv.cu's partial sums: two buffers [warps, kStreamTile, tokens + 2] f32, tokens = m rounded up to 8.
constexpr int StreamSharedBytes(int64_t m, int warps) { return 2 * warps * kStreamTile * (m <= 8 ? 10 : 18) * 4; }

// The size that stands for all m near it, so that one algorithm serves them and rounding changes at few places only: the next of
// 16, 24, 32, 48, 64, 96, 128, ...
int64_t RowBucket(int64_t m);

// What an algorithm of the library is chosen for.
struct LibraryKey {
  int64_t m;  // a RowBucket, or an exact m where the bucket's algorithm did not fit
  int64_t n, k;
  int64_t x_stride, out_stride;
  DType out;
  bool bias, add;
  uint32_t x_alignment, weight_alignment, out_alignment;  // bytes, powers of two up to 256
  auto operator<=>(const LibraryKey&) const = default;
};

// The largest power of two, at most 256, that divides an address.
uint32_t AlignmentOf(uint64_t address);

// Rows of x at a time, so that `row_bytes` a row fit `bytes`: equal parts, whole multiples of 128 where possible. 0: not even one fits.
int64_t ChunkRows(int64_t m, int64_t row_bytes, int64_t bytes);

}  // namespace phalanx::kernels::cuda
