// Linear layers that no fast kernel takes: f32 values, odd k, rows that are not aligned. Plain f32 arithmetic, any shape; and the small
// kernels around a library product.
//
//   x [m, k]   weight [n, k]   out [m, n] or [m, n / 2]   each bf16 or f32
//
// Rows: a warp computes two weight rows (a gate and its up) against all m <= 8 rows of x, lanes over k. Reads the weight once.
// Tiles: 64 x 64 outputs a CTA, 16 of k at a time through shared memory, 4 x 4 outputs a thread. About 10 TFLOP/s: for tests of parity in
// f32, not for serving.
#include <algorithm>

#include "kernels/cuda/device/vec.cuh"
#include "kernels/cuda/device/warp.cuh"
#include "kernels/cuda/gemm.h"

namespace phalanx::kernels::cuda {
namespace {

// Writes outputs (row, column) and (row, column + 1) of the product, or their silu * up; `column` is even.
__device__ __forceinline__ void Finish(const ProductArgs& a, int64_t row, int64_t column, float first, float second) {
  float values[2] = {first, second};
  for (int i = 0; i < 2; ++i) {
    if (a.bias != nullptr && column + i < a.n) values[i] += a.bias[column + i];
  }
  const bool silu = a.epilogue == kEpilogueSiluMul;
  if (silu) values[0] = Silu(values[0]) * values[1];
  for (int i = 0; i < (silu ? 1 : 2); ++i) {
    if (column + i >= a.n) continue;
    const int64_t at = row * a.out_stride + (silu ? column / 2 : column + i);
    if (a.out_dtype == kF32) {
      float* out = static_cast<float*>(a.out) + at;
      *out = a.epilogue == kEpilogueAdd ? *out + values[i] : values[i];
    } else {
      bf16* out = static_cast<bf16*>(a.out) + at;
      *out = FromFloat<bf16>(a.epilogue == kEpilogueAdd ? ToFloat(*out) + values[i] : values[i]);
    }
  }
}

constexpr int kRowsWarps = 4;

// Grid: pairs of weight rows / kRowsWarps.
template <class X, class W>
__global__ void __launch_bounds__(kRowsWarps* kWarp) PlainRows(const ProductArgs a) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kRowsWarps + threadIdx.x / kWarp) * 2;
  const int lane = threadIdx.x % kWarp, m = static_cast<int>(a.m);
  if (column >= a.n) return;
  const X* x = static_cast<const X*>(a.x);
  const W* first = static_cast<const W*>(a.weight) + column * a.k;
  const W* second = column + 1 < a.n ? first + a.k : first;
  float sums[kPlainRows][2] = {};
  for (int64_t k = lane; k < a.k; k += kWarp) {
    const float w0 = ToFloat(first[k]), w1 = ToFloat(second[k]);
#pragma unroll
    for (int i = 0; i < kPlainRows; ++i) {
      if (i >= m) continue;
      const float value = ToFloat(x[i * a.x_stride + k]);
      sums[i][0] += value * w0;
      sums[i][1] += value * w1;
    }
  }
#pragma unroll
  for (int i = 0; i < kPlainRows; ++i) {
    if (i >= m) continue;
    const float s0 = WarpSum(sums[i][0]), s1 = WarpSum(sums[i][1]);
    if (lane == 0) Finish(a, i, column, s0, s1);
  }
}

constexpr int kSide = 64;    // outputs of a tile, both ways
constexpr int kDepth = 16;   // of k
constexpr int kThreads = 256;
constexpr int kEach = 4;     // outputs of a thread, both ways
constexpr int kPitch = kSide + 4;

// tile[k][row] = rows [first, first + 64), k [k0, k0 + 16) of a dense or strided matrix; zeros outside.
template <class T>
__device__ __forceinline__ void Fetch(float (*tile)[kPitch], const T* from, int64_t stride, int64_t first, int64_t rows, int64_t k0,
                                      int64_t k_end) {
#pragma unroll
  for (int i = 0; i < kSide * kDepth / kThreads; ++i) {
    const int e = static_cast<int>(threadIdx.x) + i * kThreads, k = e % kDepth, row = e / kDepth;
    const bool there = first + row < rows && k0 + k < k_end;
    tile[k][row] = there ? ToFloat(from[(first + row) * stride + k0 + k]) : 0.0f;
  }
}

// Grid: x = tiles of n, y = tiles of m.
template <class X, class W>
__global__ void __launch_bounds__(kThreads, 2) PlainTiles(const ProductArgs a) {
  __shared__ alignas(16) float x_tile[kDepth][kPitch];
  __shared__ alignas(16) float w_tile[kDepth][kPitch];
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kSide, column0 = static_cast<int64_t>(blockIdx.x) * kSide;
  const int down = static_cast<int>(threadIdx.x) / (kSide / kEach) * kEach;
  const int across = static_cast<int>(threadIdx.x) % (kSide / kEach) * kEach;
  float sums[kEach][kEach] = {};
  for (int64_t k0 = 0; k0 < a.k; k0 += kDepth) {
    Fetch(x_tile, static_cast<const X*>(a.x), a.x_stride, row0, a.m, k0, a.k);
    Fetch(w_tile, static_cast<const W*>(a.weight), a.k, column0, a.n, k0, a.k);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const Pack<float, kEach> x = LoadPack<float, kEach>(&x_tile[k][down]), w = LoadPack<float, kEach>(&w_tile[k][across]);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[i][j] += x.v[i] * w.v[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; j += 2) {
      const int64_t row = row0 + down + i, column = column0 + across + j;
      if (row < a.m && column < a.n) Finish(a, row, column, sums[i][j], sums[i][j + 1]);
    }
  }
}

// Grid: x = rows, y = parts of a row. kN outputs a thread.
template <class T, int kN>
__global__ void SiluMulPairs(const T* product, const float* bias, T* out, int64_t out_stride, int64_t n) {
  const int64_t at = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kN;
  if (at >= n) return;
  const Pack<T, 2 * kN> pairs = LoadPack<T, 2 * kN>(product + (blockIdx.x * n + at) * 2);
  Pack<T, kN> result;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    float gate = ToFloat(pairs.v[2 * i]), up = ToFloat(pairs.v[2 * i + 1]);
    if (bias != nullptr) {
      gate += bias[(at + i) * 2];
      up += bias[(at + i) * 2 + 1];
    }
    result.v[i] = FromFloat<T>(Silu(gate) * up);
  }
  StorePack(out + blockIdx.x * out_stride + at, result);
}

template <class T>
void SiluMulOf(const void* product, const float* bias, void* out, int64_t out_stride, int64_t rows, int64_t n, cudaStream_t stream) {
  constexpr int kN = kPackOf<T> / 2;
  constexpr int kMost = 256;
  const bool aligned = reinterpret_cast<uintptr_t>(product) % 16 == 0 && reinterpret_cast<uintptr_t>(out) % 8 == 0 && n % kN == 0 &&
                       out_stride % kN == 0;
  const int64_t units = aligned ? n / kN : n;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>((units + kMost - 1) / kMost));
  const T* from = static_cast<const T*>(product);
  T* to = static_cast<T*>(out);
  if (aligned) {
    SiluMulPairs<T, kN><<<grid, kMost, 0, stream>>>(from, bias, to, out_stride, n);
  } else {
    SiluMulPairs<T, 1><<<grid, kMost, 0, stream>>>(from, bias, to, out_stride, n);
  }
}

__global__ void Round(const float* from, bf16* to, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) to[i] = FromFloat<bf16>(from[i]);
}

}  // namespace

void LaunchPlainRows(const ProductArgs& a, cudaStream_t stream) {
  const bool x_f32 = a.x_dtype == kF32, w_f32 = a.weight_dtype == kF32;
  const auto kernel = x_f32 ? (w_f32 ? PlainRows<float, float> : PlainRows<float, bf16>)
                            : (w_f32 ? PlainRows<bf16, float> : PlainRows<bf16, bf16>);
  const int64_t pairs = (a.n + 1) / 2;
  kernel<<<static_cast<unsigned>((pairs + kRowsWarps - 1) / kRowsWarps), kRowsWarps * kWarp, 0, stream>>>(a);
}

void LaunchPlainTiles(const ProductArgs& a, cudaStream_t stream) {
  const bool x_f32 = a.x_dtype == kF32, w_f32 = a.weight_dtype == kF32;
  const auto kernel = x_f32 ? (w_f32 ? PlainTiles<float, float> : PlainTiles<float, bf16>)
                            : (w_f32 ? PlainTiles<bf16, float> : PlainTiles<bf16, bf16>);
  const dim3 grid(static_cast<unsigned>((a.n + kSide - 1) / kSide), static_cast<unsigned>((a.m + kSide - 1) / kSide));
  kernel<<<grid, kThreads, 0, stream>>>(a);
}

void LaunchSiluMulPairs(const void* product, const float* bias, void* out, int64_t out_stride, DType dtype, int64_t rows, int64_t n,
                        cudaStream_t stream) {
  if (dtype == kF32) {
    SiluMulOf<float>(product, bias, out, out_stride, rows, n, stream);
  } else {
    SiluMulOf<bf16>(product, bias, out, out_stride, rows, n, stream);
  }
}

void LaunchRound(const float* from, void* to, int64_t n, cudaStream_t stream) {
  Round<<<static_cast<unsigned>((n + 255) / 256), 256, 0, stream>>>(from, static_cast<bf16*>(to), n);
}

}  // namespace phalanx::kernels::cuda
