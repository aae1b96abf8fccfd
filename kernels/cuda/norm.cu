// rms_norm and add_rms_norm: one CTA a row.
//
//   x, out    [rows, columns]  model dtype   rows may lie apart
//   residual  [rows, columns]  model dtype   in and out (add only)
//   gamma     [columns]        model dtype
//
// Moves 2 (norm) or 4 (add) values a column. A row of a model (1-16 KB) fits the registers of its CTA, 16 bytes a thread and pack, so it is
// read from memory once; wider or odd rows take the scalar form, which reads a row twice and finds it in L1 the second time.
// Sums in f32. The normalised value is rounded to the model dtype before gamma, as the reference models do.
#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/device/chain.cuh"
#include "kernels/cuda/device/vec.cuh"
#include "kernels/cuda/device/warp.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kMaxPacks = 2;  // packs of 16 bytes that a thread keeps

struct NormArgs {
  void* residual;
  const void* x;
  const void* gamma;
  void* out;
  int64_t residual_stride, x_stride, out_stride;  // elements
  int columns;
  float epsilon;
};

template <class T>
__device__ __forceinline__ float Scaled(float x, float scale, T gamma) {
  return Rounded<T>(x * scale) * ToFloat(gamma);
}

template <class T, bool kAdd>
__global__ void NormPacks(const NormArgs a) {
  PassGate();
  constexpr int kN = kPackOf<T>;
  __shared__ float sums[kWarp];
  const int packs = a.columns / kN;
  const T* x = static_cast<const T*>(a.x) + blockIdx.x * a.x_stride;
  T* residual = static_cast<T*>(a.residual) + blockIdx.x * a.residual_stride;
  T* out = static_cast<T*>(a.out) + blockIdx.x * a.out_stride;
  Pack<T, kN> row[kMaxPacks], gamma[kMaxPacks];
  float squares = 0;
#pragma unroll
  for (int p = 0; p < kMaxPacks; ++p) {
    const int at = static_cast<int>(threadIdx.x) + p * static_cast<int>(blockDim.x);
    if (at >= packs) continue;
    row[p] = LoadPack<T, kN>(x + at * kN);
    gamma[p] = LoadPack<T, kN>(static_cast<const T*>(a.gamma) + at * kN);
    if constexpr (kAdd) {
      const Pack<T, kN> sum = LoadPack<T, kN>(residual + at * kN);
#pragma unroll
      for (int i = 0; i < kN; ++i) row[p].v[i] = FromFloat<T>(ToFloat(sum.v[i]) + ToFloat(row[p].v[i]));
      StorePack(residual + at * kN, row[p]);
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += ToFloat(row[p].v[i]) * ToFloat(row[p].v[i]);
  }
  const float scale = 1.0f / sqrtf(CtaSum(squares, sums) / static_cast<float>(a.columns) + a.epsilon);
#pragma unroll
  for (int p = 0; p < kMaxPacks; ++p) {
    const int at = static_cast<int>(threadIdx.x) + p * static_cast<int>(blockDim.x);
    if (at >= packs) continue;
#pragma unroll
    for (int i = 0; i < kN; ++i) row[p].v[i] = FromFloat<T>(Scaled<T>(ToFloat(row[p].v[i]), scale, gamma[p].v[i]));
    StorePack(out + at * kN, row[p]);
  }
}

// A thread meets the same columns in both passes, so that it reads back its own sums and `out` may be `x`.
template <class T, bool kAdd>
__global__ void NormScalar(const NormArgs a) {
  PassGate();
  __shared__ float sums[kWarp];
  const T* x = static_cast<const T*>(a.x) + blockIdx.x * a.x_stride;
  T* residual = static_cast<T*>(a.residual) + blockIdx.x * a.residual_stride;
  T* out = static_cast<T*>(a.out) + blockIdx.x * a.out_stride;
  float squares = 0;
  for (int i = threadIdx.x; i < a.columns; i += blockDim.x) {
    float value = ToFloat(x[i]);
    if constexpr (kAdd) {
      const T sum = FromFloat<T>(ToFloat(residual[i]) + value);
      residual[i] = sum;
      value = ToFloat(sum);
    }
    squares += value * value;
  }
  const float scale = 1.0f / sqrtf(CtaSum(squares, sums) / static_cast<float>(a.columns) + a.epsilon);
  for (int i = threadIdx.x; i < a.columns; i += blockDim.x) {
    const float value = ToFloat(kAdd ? residual[i] : x[i]);
    out[i] = FromFloat<T>(Scaled<T>(value, scale, static_cast<const T*>(a.gamma)[i]));
  }
}

// Whether every row starts at a multiple of 16 bytes.
bool Aligned(const void* data, int64_t stride, DType dtype) {
  return (reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(stride * static_cast<int64_t>(DTypeBytes(dtype)))) % 16 == 0;
}

template <class T, bool kAdd>
void LaunchRows(const NormArgs& a, int64_t rows, DType dtype, cudaStream_t stream) {
  const int packs = a.columns / kPackOf<T>;
  const bool aligned = a.columns % kPackOf<T> == 0 && Aligned(a.x, a.x_stride, dtype) && Aligned(a.out, a.out_stride, dtype) &&
                       Aligned(a.gamma, 0, dtype) && (!kAdd || Aligned(a.residual, a.residual_stride, dtype));
  const dim3 grid(static_cast<unsigned>(rows));
  if (aligned && packs <= kMaxPacks * 1024) {
    const int threads = std::min(1024, (packs + kWarp - 1) / kWarp * kWarp);
    Launch(NormPacks<T, kAdd>, grid, dim3(static_cast<unsigned>(threads)), 0, stream, a);
  } else {
    const int threads = std::min(1024, (a.columns + kWarp - 1) / kWarp * kWarp);
    Launch(NormScalar<T, kAdd>, grid, dim3(static_cast<unsigned>(threads)), 0, stream, a);
  }
}

template <bool kAdd>
Code Norm(Device* device, const char* what, const Tensor& residual, const Tensor& x, const void* gamma, float epsilon, const Tensor& out,
          Stream stream) {
  NormArgs a{kAdd ? residual.data : nullptr, x.data, gamma, out.data, 0, 0, 0, static_cast<int>(Columns(x)), epsilon};
  const int64_t rows = Rows(x);
  if (!IsModelDType(x.dtype) || out.dtype != x.dtype || !RowStride(x, &a.x_stride) || !RowStride(out, &a.out_stride) || Rows(out) != rows ||
      Columns(out) != Columns(x) || Columns(x) < 1 || Columns(x) > INT32_MAX || rows > INT32_MAX || gamma == nullptr) {
    return device->Fail(kBadShape, "%s: x [%lld, %lld], out [%lld, %lld]", what, static_cast<long long>(rows),
                        static_cast<long long>(Columns(x)), static_cast<long long>(Rows(out)), static_cast<long long>(Columns(out)));
  }
  if (kAdd && (residual.dtype != x.dtype || !RowStride(residual, &a.residual_stride) || Rows(residual) != rows ||
               Columns(residual) != Columns(x))) {
    return device->Fail(kBadShape, "%s: x [%lld, %lld], residual [%lld, %lld]", what, static_cast<long long>(rows),
                        static_cast<long long>(Columns(x)), static_cast<long long>(Rows(residual)),
                        static_cast<long long>(Columns(residual)));
  }
  if (rows == 0) return kOk;
  if (x.dtype == kBF16) {
    LaunchRows<bf16, kAdd>(a, rows, x.dtype, device->StreamOf(stream));
  } else {
    LaunchRows<float, kAdd>(a, rows, x.dtype, device->StreamOf(stream));
  }
  return device->Launched(what);
}

}  // namespace

Code RmsNorm(Device* device, Tensor x, const void* gamma, float epsilon, Tensor out, Stream stream) {
  return Norm<false>(device, "rms_norm", x, x, gamma, epsilon, out, stream);
}

Code AddRmsNorm(Device* device, Tensor residual, Tensor x, const void* gamma, float epsilon, Tensor out, Stream stream) {
  return Norm<true>(device, "add_rms_norm", residual, x, gamma, epsilon, out, stream);
}

}  // namespace phalanx::kernels::cuda
