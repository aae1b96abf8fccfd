// kernels/cuda/device/warp.cuh: sums over a warp and over a CTA, in an order that never changes.
// Refuses to know: operations. Thread: device code, all lanes of the warp (all threads of the CTA) together.
// Neighbours: norm.cu, rope.cu.
#pragma once

namespace phalanx::kernels::cuda {

constexpr int kWarp = 32;

// The sum over the warp, in every lane.
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// The largest over the warp, in every lane.
__device__ __forceinline__ uint32_t WarpMax(uint32_t x) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, x);
#else
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
#endif
}

// The sum over a CTA of whole warps (at most 32), in every thread. `shared` has 32 floats; call it once between barriers.
__device__ __forceinline__ float CtaSum(float x, float* shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  x = WarpSum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return WarpSum(lane < warps ? shared[lane] : 0.0f);
}

}  // namespace phalanx::kernels::cuda
