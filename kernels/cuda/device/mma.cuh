// kernels/cuda/device/mma.cuh: one warp's tensor core step, m16n8k16 in bf16 with f32 sums, and the loads that feed it.
// Refuses to know: what the matrices mean. Thread: device code, all lanes of a warp together.
// Neighbours: attention_tile.cuh.
//
// sm_80 and later. Before, kernels that use this compile, so that one plug-in can hold code for every card, but are never chosen
// (`tensor_cores` in gemm_config.h and attention_config.h), and trap.
//
// Fragments of lane l, with row = l / 4 and pair = 2 * (l % 4):
//   a  [16, 16]  a[0] (row, pair), a[1] (row + 8, pair), a[2] (row, pair + 8), a[3] (row + 8, pair + 8); two neighbours each
//   b  [16, 8]   b0 (k = pair, n = row), b1 (k = pair + 8, n = row); two neighbours in k each
//   c  [16, 8]   c[0], c[1] (row, pair), c[2], c[3] (row + 8, pair)
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace phalanx::kernels::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define PHALANX_TENSOR_CORES 1
#endif

// c += a * b.
__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifndef PHALANX_TENSOR_CORES
  __trap();
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Four 8 x 8 matrices of bf16; lane l gives the address of row l % 8 of matrix l / 8, 16 bytes. Lane l receives, of each, row l / 4,
// columns 2 * (l % 4) and the next.
__device__ __forceinline__ void LoadMatrices(uint32_t (&out)[4], const void* shared_row) {
#ifdef PHALANX_TENSOR_CORES
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
#endif
}

// The same, each matrix transposed: lane l receives column l / 4 of rows 2 * (l % 4) and the next.
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&out)[4], const void* shared_row) {
#ifdef PHALANX_TENSOR_CORES
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
#endif
}

// Two values as one register, `low` in the lower half: the neighbour with the smaller index.
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float LowOf(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float HighOf(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// ---- copies from global to shared memory in the background ----------------------------------------------------------

// 16 bytes; zeros if not `wanted`, and then nothing is read.
__device__ __forceinline__ void CopyAsync(void* shared, const void* global, bool wanted) {
#ifdef PHALANX_TENSOR_CORES
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(shared)), "l"(global), "r"(wanted ? 16 : 0)
               : "memory");
#endif
}
// Brings memory into L2: `bytes` and the address are multiples of 16. Does nothing before sm_90.
__device__ __forceinline__ void PrefetchToL2(const void* global, int bytes) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;\n" ::"l"(global), "r"(bytes) : "memory");
#endif
}
// Closes a batch of this thread's copies, which may be empty.
__device__ __forceinline__ void CommitCopies() {
#ifdef PHALANX_TENSOR_CORES
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}
// Until at most `kLeft` of this thread's batches are under way; a barrier must follow before other threads' copies are read.
template <int kLeft>
__device__ __forceinline__ void WaitCopies() {
#ifdef PHALANX_TENSOR_CORES
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace phalanx::kernels::cuda
