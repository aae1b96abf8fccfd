// kernels/cuda/gemm_config.h: which kernel a matrix product takes and how it is cut: pure choices from shapes.
// Refuses to know: CUDA, devices, pointers. Thread: any. Neighbours: gemm.cc acts on it; gemm_config_test.cc needs no GPU.
#pragma once

#include <compare>
#include <cstdint>

#include "kernels/cuda/host_device.h"
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
  bool tiles;    // the card has the tile kernels, and they win here (gemm_tiles_config.h)
  bool tensor_cores = true;  // for bf16: compute capability 8.0 and later; without, neither gemv.cu nor the library takes bf16
};

enum class ProductWay {
  kNothing,      // no rows
  kStream,       // gemv.cu: bf16, few rows, the weight streamed once
  kTiles,        // gemm_tiles.cuh: bf16, many rows, Hopper
  kLibrary,      // cuBLASLt: bf16, many rows
  kPlainRows,    // gemm_plain.cu: a warp an output
  kPlainTiles,   // gemm_plain.cu: tiles in shared memory
};

ProductWay ChooseWay(const ProductShape& shape);

// How gemv.cu cuts a product. CTA c computes weight rows [StreamFirstRow(c), StreamFirstRow(c + 1)), kStreamTile at a time; its warps share
// k in units, which they copy ahead of use into a ring in shared memory.
constexpr int kStreamTile = 16;    // weight rows
constexpr int kStreamWarps = 8;
constexpr int kStreamUnit = 64;    // of k
constexpr int kStreamDeep = 6;     // units that a warp has under way; the kernel is built for two depths
constexpr int kStreamShallow = 4;

struct StreamConfig {
  int ctas;          // one an SM, if there are rows enough
  int stages;        // kStreamDeep or kStreamShallow
  int slots;         // units of a warp's ring: `stages`, or all the units that a warp has
  int shared_bytes;  // of a CTA
  bool brief;        // the ring holds all that the CTA reads: the next kernel may start before the previous one has ended
  int ahead_bytes;   // of a CTA's weights behind those in the ring, brought into L2 before the previous kernel has ended
  auto operator<=>(const StreamConfig&) const = default;
};

// Pairs of rows, so that gate and up stay together, spread evenly.
PHALANX_HOST_DEVICE int StreamFirstRow(int cta, int ctas, int n) {
  const int64_t pairs = (n + 1) / 2, row = 2 * (pairs * cta / ctas);
  return row < n ? static_cast<int>(row) : n;
}

// What a device has for it.
struct StreamDevice {
  int sm_count;
  int shared_bytes;  // most shared memory of a CTA
};

// `norm`: the kernel normalises x itself.
StreamConfig ChooseStream(int64_t m, int64_t n, int64_t k, bool norm, const StreamDevice& device);

// Whether gemv.cu has room to normalise m rows of k by itself.
bool StreamTakesNorm(int64_t m, int64_t k, const StreamDevice& device);

// Units of one tile.
constexpr int64_t StreamUnits(int64_t k) { return (k + kStreamUnit - 1) / kStreamUnit; }
// Elements from one normalised row in shared memory to the next: half a line more than whole units spreads rows over the banks.
constexpr int64_t StreamNormedPitch(int64_t k) { return StreamUnits(k) * kStreamUnit + 32; }
// Shared memory of a CTA beside the ring: two buffers of partial sums [warps, kStreamTile, tokens + 2] f32, tokens = m rounded up to 8;
// sums of squares [tokens, warps] f32; with a norm gamma and the normalised rows in bf16.
constexpr int64_t StreamRestBytes(int64_t m, int64_t k, bool norm) {
  const int64_t tokens = m <= 8 ? 8 : 16;
  const int64_t sums = kStreamWarps * (2 * kStreamTile * (tokens + 2) + tokens) * 4;
  return sums + (norm ? StreamUnits(k) * kStreamUnit * 2 + m * StreamNormedPitch(k) * 2 : 0);
}

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
