// kernels/cuda/device/attention_tile.cuh: what attention kernels share: pages, and one warp's work on 16 queries x 16 positions.
// Refuses to know: grids, splits, masks. Thread: device code, all lanes of a warp together.
// Neighbours: attention_decode.cu, attention_prefill.cu; attention_plain.cu for pages only.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/vec.cuh"
#include "kernels/cuda/device/warp.cuh"

namespace phalanx::kernels::cuda {

constexpr int kKeyRows = 16;  // positions of a tile
constexpr float kLog2E = 1.4426950408889634f;

// Elements from one row of a tile in shared memory to the next: 16 bytes of padding put eight rows into different banks.
template <int kHeadDim>
constexpr int kTileStride = kHeadDim + 8;

// Which row of the cache holds a position of one sequence and kv head.
struct Pages {
  const int32_t* table;  // [max_blocks] of the sequence
  unsigned block_size;
  int kv_heads, kv_head;
  __device__ __forceinline__ int RowOf(int position) const {
    const unsigned block = static_cast<unsigned>(position) / block_size;
    const int offset = static_cast<int>(static_cast<unsigned>(position) - block * block_size);
    return (table[block] * kv_heads + kv_head) * static_cast<int>(block_size) + offset;
  }
};

__device__ __forceinline__ Pages PagesOf(const AttentionParams& p, int sequence, int kv_head) {
  return {p.block_table + static_cast<int64_t>(sequence) * p.max_blocks, static_cast<unsigned>(p.block_size), p.kv_heads, kv_head};
}

// The largest s in [0, count) with starts_by(s), which is true up to some s >= 0 and false after it. A warp looks at 32 places at once.
template <class Fn>
__device__ __forceinline__ int LastThat(int count, Fn starts_by) {
  const int lane = threadIdx.x % kWarp;
  int low = 0, span = count;
  while (span > 1) {
    const int step = (span + kWarp - 1) / kWarp, at = lane * step;
    const bool yes = at < span && starts_by(low + at);
    const int last = (__popc(__ballot_sync(0xffffffffu, yes)) - 1) * step;
    low += last;
    span = min(step, span - last);
  }
  return low;
}

// Starts copying 16 rows of k and v [rows, head_dim] to tiles [16, kTileStride]. Lane l knows the row of tile row l % 16; -1: zeros.
template <int kHeadDim>
__device__ __forceinline__ void CopyTiles(bf16* keys, bf16* values, const void* k, const void* v, int row, int lane) {
  constexpr int kPieces = kHeadDim / 8;  // of 16 bytes, in a row
  static_assert(kKeyRows * kPieces % kWarp == 0);
#pragma unroll
  for (int i = 0; i < kKeyRows * kPieces / kWarp; ++i) {
    const int piece = lane + i * kWarp, token = piece / kPieces, column = piece % kPieces * 8;
    const int source = __shfl_sync(0xffffffffu, row, token), to = token * kTileStride<kHeadDim> + column;
    const int64_t from = static_cast<int64_t>(max(source, 0)) * kHeadDim + column;
    CopyAsync(keys + to, static_cast<const bf16*>(k) + from, source >= 0);
    CopyAsync(values + to, static_cast<const bf16*>(v) + from, source >= 0);
  }
}

// Fragments of 16 queries. `first` and `second` are the lane's rows l / 4 and l / 4 + 8, or null for zeros.
template <int kHeadDim>
__device__ __forceinline__ void LoadQueries(uint32_t (&q)[kHeadDim / 16][4], const bf16* first, const bf16* second, int lane) {
  const int pair = lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    const int at = i * 16 + pair;
    q[i][0] = first == nullptr ? 0 : *reinterpret_cast<const uint32_t*>(first + at);
    q[i][1] = second == nullptr ? 0 : *reinterpret_cast<const uint32_t*>(second + at);
    q[i][2] = first == nullptr ? 0 : *reinterpret_cast<const uint32_t*>(first + at + 8);
    q[i][3] = second == nullptr ? 0 : *reinterpret_cast<const uint32_t*>(second + at + 8);
  }
}

// s0 += scores of positions 0-7 of the tile, s1 += of 8-15.
template <int kHeadDim>
__device__ __forceinline__ void AddScores(float (&s0)[4], float (&s1)[4], const uint32_t (&q)[kHeadDim / 16][4], const bf16* keys,
                                          int lane) {
  const bf16* row = keys + (lane / 16 * 8 + lane % 8) * kTileStride<kHeadDim> + lane / 8 % 2 * 8;
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    uint32_t k[4];
    LoadMatrices(k, row + i * 16);
    Mma(s0, q[i], k[0], k[1]);
    Mma(s1, q[i], k[2], k[3]);
  }
}

// sums += weights * values of the tile's 16 positions. A weight is rounded to bf16; `exact` adds what that loses, so that few positions
// with large weights keep f32 precision.
template <int kHeadDim>
__device__ __forceinline__ void AddValues(float (&sums)[kHeadDim / 8][4], const float (&w0)[4], const float (&w1)[4], const bf16* values,
                                          bool exact, int lane) {
  const uint32_t w[4] = {PackPair(w0[0], w0[1]), PackPair(w0[2], w0[3]), PackPair(w1[0], w1[1]), PackPair(w1[2], w1[3])};
  const uint32_t rest[4] = {PackPair(w0[0] - LowOf(w[0]), w0[1] - HighOf(w[0])), PackPair(w0[2] - LowOf(w[1]), w0[3] - HighOf(w[1])),
                            PackPair(w1[0] - LowOf(w[2]), w1[1] - HighOf(w[2])), PackPair(w1[2] - LowOf(w[3]), w1[3] - HighOf(w[3]))};
  const bf16* row = values + lane % 16 * kTileStride<kHeadDim> + lane / 16 * 8;
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    uint32_t v[4];
    LoadMatricesTransposed(v, row + i * 16);
    Mma(sums[2 * i], w, v[0], v[1]);
    Mma(sums[2 * i + 1], w, v[2], v[3]);
    if (exact) {
      Mma(sums[2 * i], rest, v[0], v[1]);
      Mma(sums[2 * i + 1], rest, v[2], v[3]);
    }
  }
}

// Over the four lanes that share a row of a fragment.
__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float QuadSum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Running softmax of a lane's two rows, in powers of two. `sum` is this lane's part.
struct Softmax {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};

  // Turns scaled scores of kPairs x 16 positions (-infinity = not seen) into weights and returns in `rescale` what older sums of
  // values must be multiplied with. scores[i][c] belongs to row c / 2.
  template <int kTiles>
  __device__ __forceinline__ void Update(float (&scores)[kTiles][4], float (&rescale)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float top = max[row];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) top = fmaxf(top, fmaxf(scores[i][2 * row], scores[i][2 * row + 1]));
      top = QuadMax(top);
      const float shift = top == -INFINITY ? 0.0f : top;  // nothing seen yet: all weights are 0
      rescale[row] = exp2f(max[row] - shift);
      max[row] = top;
      float sum_of_row = 0;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int c = 2 * row; c < 2 * row + 2; ++c) {
          scores[i][c] = exp2f(scores[i][c] - shift);
          sum_of_row += scores[i][c];
        }
      }
      sum[row] = sum[row] * rescale[row] + sum_of_row;
    }
  }
};

template <int kTiles>
__device__ __forceinline__ void Rescale(float (&sums)[kTiles][4], const float (&rescale)[2]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) sums[i][c] *= rescale[c / 2];
  }
}

}  // namespace phalanx::kernels::cuda
