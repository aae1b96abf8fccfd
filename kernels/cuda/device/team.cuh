// kernels/cuda/device/team.cuh: the CTAs of a cluster that work on one row: who they are, what they tell each other.
// Refuses to know: what the row holds. Thread: device code, all threads of all CTAs of the cluster together.
// Neighbours: row.cuh, part.cuh, select.cuh.
//
// Everybody reads everybody's shared memory after a barrier and comes to the same result, so one barrier an exchange is enough. What was
// read after one barrier may be written again after the next. Before compute capability 9.0 there are no clusters: a team is one CTA.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/row.cuh"
#include "kernels/cuda/sampling_config.h"

namespace phalanx::kernels::cuda {

struct TeamShared {
  uint64_t words[2][2];  // of alternate exchanges
  ReduceShared reduce;
};

class Team {
 public:
  __device__ __forceinline__ explicit Team(TeamShared& shared) : s_(shared) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank_));
    asm volatile("mov.u32 %0, %%cluster_nctarank;\n" : "=r"(size_));
#endif
  }

  __device__ __forceinline__ int rank() const { return static_cast<int>(rank_); }
  __device__ __forceinline__ int size() const { return static_cast<int>(size_); }

  __device__ __forceinline__ void Barrier() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;\n barrier.cluster.wait.acquire;\n" ::: "memory");
#else
    __syncthreads();
#endif
  }

  // The same place of another CTA's shared memory.
  template <class T>
  __device__ __forceinline__ const T* Of(const T* own, int rank) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const T* there;
    asm volatile("mapa.u64 %0, %1, %2;\n" : "=l"(there) : "l"(own), "r"(rank));
    return there;
#else
    return own;
#endif
  }

  // Over all threads of the team, in every thread.
  __device__ __forceinline__ uint64_t Max(uint64_t x) {
    x = CtaMax(x, s_.reduce);
    if (threadIdx.x == 0) s_.words[turn_][0] = x;
    Barrier();
    x = WarpMax(Word(0));
    turn_ ^= 1;
    return x;
  }
  template <int kN>
  __device__ __forceinline__ void Sum(uint64_t (&x)[kN]) {
    static_assert(kN <= 2);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      x[i] = CtaSum(x[i], s_.reduce);
      if (threadIdx.x == 0) s_.words[turn_][i] = x[i];
    }
    Barrier();
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      x[i] = Word(i);
#pragma unroll
      for (int step = kMostRanks / 2; step > 0; step /= 2) x[i] += __shfl_xor_sync(0xffffffffu, x[i], step);
    }
    turn_ ^= 1;
  }

 private:
  // In lane i the word of rank i % kMostRanks, 0 if there is none.
  __device__ __forceinline__ uint64_t Word(int index) const {
    const int from = static_cast<int>(threadIdx.x) % kMostRanks;
    return from < size() ? *Of(&s_.words[turn_][index], from) : 0;
  }

  TeamShared& s_;
  uint32_t rank_ = 0, size_ = 1;
  int turn_ = 0;
};

}  // namespace phalanx::kernels::cuda
