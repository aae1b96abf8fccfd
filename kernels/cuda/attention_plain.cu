// Attention for every dtype, head_dim and alignment that the tensor core kernels do not take: correct first, f32 throughout.
//
//   q     [tokens, heads, head_dim]                 bf16 or f32
//   k, v  [blocks, kv_heads, block_size, head_dim]  bf16 or f32   through the block table
//   out   [tokens, heads * head_dim]                as q
//
// A CTA has one query row and head; its eight warps take four positions at a time each, a lane every 32nd column, with a softmax of their
// own, and merge at the end in their order. Reads a page once a query head, from L2 for all but the first of a group.
#include "kernels/cuda/device/attention_tile.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kBatch = 4;                             // positions a warp takes at once
constexpr int kColumns = kPlainMaxHeadDim / kWarp;    // of a lane

struct PlainShared {
  float values[kWarps][kPlainMaxHeadDim];
  float max[kWarps], sum[kWarps];
};

// One warp's part of a row: positions begin + 4 warp, ... up to `own`.
struct WarpSums {
  float max = -INFINITY, sum = 0;
  float values[kColumns] = {};
};

template <class Cache>
__device__ __forceinline__ void AddPositions(const AttentionParams& p, const Pages& pages, int first, int own, const float (&q)[kColumns],
                                             int lane, WarpSums* w) {
  const Cache* k = static_cast<const Cache*>(p.k);
  const Cache* v = static_cast<const Cache*>(p.v);
  int64_t at[kBatch];
  float scores[kBatch];
  float top = w->max;
#pragma unroll
  for (int j = 0; j < kBatch; ++j) {
    const bool seen = first + j <= own;
    at[j] = seen ? static_cast<int64_t>(pages.RowOf(first + j)) * p.head_dim : -1;
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int column = lane + i * kWarp;
      if (seen && column < p.head_dim) dot += q[i] * ToFloat(k[at[j] + column]);
    }
    dot = WarpSum(dot) * p.scale;
    scores[j] = seen ? dot : -INFINITY;
    top = fmaxf(top, scores[j]);
  }
  const float shift = top == -INFINITY ? 0.0f : top, rescale = expf(w->max - shift);
  w->max = top;
  w->sum *= rescale;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) w->values[i] *= rescale;
#pragma unroll
  for (int j = 0; j < kBatch; ++j) {
    if (at[j] < 0) continue;
    const float weight = expf(scores[j] - shift);
    w->sum += weight;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int column = lane + i * kWarp;
      if (column < p.head_dim) w->values[i] += weight * ToFloat(v[at[j] + column]);
    }
  }
}

// Grid: x = tokens, y = heads.
template <class T, class Cache>
__global__ void __launch_bounds__(kThreads) PlainRows(const AttentionParams p) {
  __shared__ PlainShared shared;
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int sequence = LastThat(p.sequences, [&](int s) { return p.query_start[s] <= row; });
  const int next_start = p.query_start[sequence + 1];
  if (row >= next_start) return;  // a row of no sequence
  const int own = p.context_length[sequence] - (next_start - row);
  const int begin = p.window > 0 ? max(0, own - p.window + 1) : 0;

  float q[kColumns];
  const T* from = static_cast<const T*>(p.q) + row * p.q_row + head * p.q_head;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) q[i] = lane + i * kWarp < p.head_dim ? ToFloat(from[lane + i * kWarp]) : 0.0f;
  const Pages pages = PagesOf(p, sequence, head / p.group);
  WarpSums sums;
  for (int first = begin + warp * kBatch; first <= own; first += kWarps * kBatch) AddPositions<Cache>(p, pages, first, own, q, lane, &sums);

  if (lane == 0) shared.max[warp] = sums.max, shared.sum[warp] = sums.sum;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) shared.values[warp][lane + i * kWarp] = sums.values[i];
  __syncthreads();
  float top = shared.max[0], total = 0, factors[kWarps];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) top = fmaxf(top, shared.max[i]);
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    factors[i] = shared.max[i] == -INFINITY ? 0.0f : expf(shared.max[i] - top);
    total += factors[i] * shared.sum[i];
  }
  T* out = static_cast<T*>(p.out) + row * p.out_row + static_cast<int64_t>(head) * p.head_dim;
  for (int column = threadIdx.x; column < p.head_dim; column += kThreads) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += factors[i] * shared.values[i][column];
    out[column] = FromFloat<T>(total == 0.0f ? 0.0f : sum / total);
  }
}

template <class T, class Cache>
void Launch(const AttentionParams& p, cudaStream_t stream) {
  PlainRows<T, Cache><<<dim3(static_cast<unsigned>(p.tokens), static_cast<unsigned>(p.heads)), kThreads, 0, stream>>>(p);
}

}  // namespace

void LaunchPlainAttention(const AttentionParams& p, DType q, DType cache, cudaStream_t stream) {
  if (q == kBF16) return cache == kBF16 ? Launch<bf16, bf16>(p, stream) : Launch<bf16, float>(p, stream);
  return cache == kBF16 ? Launch<float, bf16>(p, stream) : Launch<float, float>(p, stream);
}

}  // namespace phalanx::kernels::cuda
