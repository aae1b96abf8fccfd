// kernels/cuda/device/prefill_softmax.cuh: from scores to weights, for the 64 x 128 scores of a warpgroup.
// Refuses to know: where scores come from and what weights are multiplied with. Thread: device code, all lanes of a warp together.
// Neighbours: attention_prefill_wgmma.cu. The places of a lane's scores are in wgmma_attention.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include <climits>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/device/attention_tile.cuh"

namespace phalanx::kernels::cuda {

constexpr int kKeys = 128;  // positions of a tile

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// A lane's two rows of its warp's sixteen. Scores are raw; `scale` turns them into powers of two.
struct RunningSoftmax {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // this lane's part

  // Scores of kKeys positions (-infinity = not seen) become weights; `rescale` is what older sums of values must be multiplied with.
  __device__ __forceinline__ void Update(float (&s)[kKeys / 2], float scale, float (&rescale)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float top = max[row];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) top = fmaxf(top, fmaxf(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]));
      top = QuadMax(top);
      const float base = top == -INFINITY ? 0.0f : top, shift = base * scale;  // nothing seen yet: all weights are 0
      rescale[row] = Exp2((max[row] - base) * scale);  // 1 exactly where the maximum stays
      max[row] = top;
      float added[2] = {0, 0};
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[4 * j + 2 * row + e];
          x = Exp2(fmaf(x, scale, -shift));
          added[e] += x;
        }
      }
      sum[row] = sum[row] * rescale[row] + (added[0] + added[1]);
    }
  }
};

// -infinity where a row does not see a position; `first` is the lane's first position.
__device__ __forceinline__ void MaskTile(float (&s)[kKeys / 2], const int (&own)[2], int first, int window) {
  const int oldest[2] = {window > 0 ? own[0] - window + 1 - first : INT32_MIN, window > 0 ? own[1] - window + 1 - first : INT32_MIN};
  const int newest[2] = {own[0] - first, own[1] - first};
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) {
    const int at = i / 4 * 8 + i % 2, row = i / 2 % 2;
    if (at > newest[row] || at < oldest[row]) s[i] = -INFINITY;
  }
}

__device__ __forceinline__ void PackWeights(uint32_t (&weights)[kKeys / 16][4], const float (&s)[kKeys / 2]) {
#pragma unroll
  for (int i = 0; i < kKeys / 4; ++i) weights[i / 4][i % 4] = PackPair(s[2 * i], s[2 * i + 1]);
}

}  // namespace phalanx::kernels::cuda
