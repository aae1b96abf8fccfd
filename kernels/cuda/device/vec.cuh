// kernels/cuda/device/vec.cuh: values of the model dtypes, one at a time and 16 bytes at a time, as f32 and back.
// Refuses to know: operations. Thread: device code. Neighbours: every .cu here.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace phalanx::kernels::cuda {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 FromFloat<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
// To the nearest value that T has.
template <class T>
__device__ __forceinline__ float Rounded(float x) {
  return ToFloat(FromFloat<T>(x));
}

__device__ __forceinline__ float Silu(float x) { return x / (1.0f + __expf(-x)); }

// N neighbours, loaded and stored at once; data must be aligned to their size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};
template <class T>
constexpr int kPackOf = 16 / static_cast<int>(sizeof(T));  // values of 16 bytes

template <class T, int N>
__device__ __forceinline__ Pack<T, N> LoadPack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <class T, int N>
__device__ __forceinline__ void StorePack(T* to, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

}  // namespace phalanx::kernels::cuda
