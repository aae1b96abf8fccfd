// Attention of sequences with one query row: split-KV, read once.
//
//   q     [tokens, heads, head_dim]                       bf16
//   k, v  [blocks, kv_heads, block_size, head_dim]        bf16   through the block table
//   out   [tokens, heads * head_dim]                      bf16
//   workspace: per (sequence, kv head, part)  values [group, head_dim], then for all of them (maximum, sum) [group]   f32
//
// Moves 4 * head_dim bytes a position and kv head, and that is all that costs: an SM has to keep some 30 KB under way.
// - A CTA has one (sequence, kv head, part of the context) and all query heads of the group (16 at a time), padded to the 16 rows of
//   mma.m16n8k16, so that a page is read once and a group of 1...16 costs the same.
// - Its four warps never wait for each other: each takes 16 positions of every 64, copies its own rows two tiles ahead (cp.async, rows
//   gathered through the block table, whose entry is fetched one tile earlier still) and keeps its own softmax. They merge at the end.
// - How many parts a sequence has follows from its own length, on the device (CutContext): a captured graph stays valid. CTAs past the
//   last part leave at once. The last CTA of a (sequence, kv head) to finish adds up the parts in their order: same bits each time.
#include "kernels/cuda/device/attention_tile.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kStages = 2;
static_assert(kWarps * kKeyRows == kDecodeTurn && kMaxSplits <= kWarp);

template <int kHeadDim>
struct DecodeShared {
  static constexpr int kTile = kKeyRows * kTileStride<kHeadDim>;
  static constexpr int kMergeStride = kHeadDim + 4;
  union {
    bf16 tiles[kWarps][kStages][2][kTile];                 // K, V
    float values[kWarps][kQueryRows][kMergeStride];        // after the last tile
  };
  float max[kWarps][kQueryRows], sum[kWarps][kQueryRows];  // of the warps
  float factor[kQueryRows][kWarp];                         // what each warp's, then each part's values are multiplied with
  float row_max[kQueryRows], row_sum[kQueryRows];
  bool last;
};

// What a CTA works on.
struct DecodeWork {
  int sequence, kv_head, row;  // row: of q and out
  int first_head, heads;       // query heads
  int begin, end;              // positions
  int chunk, chunks;
  int64_t pair;                // (sequence, kv head, group tile)
};

// False: nothing to do.
__device__ __forceinline__ bool FindWork(const AttentionParams& p, const DecodeSplit& split, DecodeWork* w) {
  const int tiles = GroupTiles(p.group), tile = static_cast<int>(blockIdx.y) % tiles;
  w->sequence = static_cast<int>(blockIdx.x) / split.splits;
  w->chunk = static_cast<int>(blockIdx.x) % split.splits;
  w->kv_head = static_cast<int>(blockIdx.y) / tiles;
  w->row = p.query_start[w->sequence];
  const int length = p.context_length[w->sequence];
  if (p.query_start[w->sequence + 1] - w->row != 1) return false;
  const int from = p.window > 0 ? max(0, length - p.window) : 0;
  const ContextCut cut = CutContext(length - from, split.splits, split.min_chunk);
  w->chunks = cut.chunks;
  w->begin = from + w->chunk * cut.tokens;
  w->end = min(length, w->begin + cut.tokens);
  w->first_head = w->kv_head * p.group + tile * kQueryRows;
  w->heads = min(kQueryRows, p.group - tile * kQueryRows);
  w->pair = (static_cast<int64_t>(w->sequence) * p.kv_heads + w->kv_head) * tiles + tile;
  return w->chunk < w->chunks;
}

// One warp's positions: every fourth tile of the part.
template <int kHeadDim>
__device__ __forceinline__ void RunTiles(const AttentionParams& p, const DecodeWork& w, DecodeShared<kHeadDim>& shared, int warp, int lane,
                                         float (&sums)[kHeadDim / 8][4], Softmax* softmax) {
  const Pages pages = PagesOf(p, w.sequence, w.kv_head);
  const int first = w.begin + warp * kKeyRows;
  const auto row_at = [&](int tile) {
    const int position = first + tile * kDecodeTurn + lane % kKeyRows;
    return position < w.end ? pages.RowOf(position) : -1;
  };
  const auto copy = [&](int tile, int row) {
    bf16(&to)[2][DecodeShared<kHeadDim>::kTile] = shared.tiles[warp][tile % kStages];
    CopyTiles<kHeadDim>(to[0], to[1], p.k, p.v, row, lane);
    CommitCopies();
  };
  const int tiles = (w.end - first + kDecodeTurn - 1) / kDecodeTurn;  // <= 0: none
#pragma unroll
  for (int i = 0; i < kStages; ++i) copy(i, row_at(i));
  int next_row = row_at(kStages);

  const bf16* head = static_cast<const bf16*>(p.q) + w.row * p.q_row + w.first_head * p.q_head;
  const int query = lane / 4;
  uint32_t q[kHeadDim / 16][4];
  LoadQueries<kHeadDim>(q, query < w.heads ? head + query * p.q_head : nullptr,
                        query + 8 < w.heads ? head + (query + 8) * p.q_head : nullptr, lane);
  const float scale = p.scale * kLog2E;
  for (int tile = 0; tile < tiles; ++tile) {
    WaitCopies<kStages - 1>();
    __syncwarp();
    const bf16* keys = shared.tiles[warp][tile % kStages][0];
    float scores[2][4] = {};
    AddScores<kHeadDim>(scores[0], scores[1], q, keys, lane);
    const int position = first + tile * kDecodeTurn + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) scores[i][c] = position + i * 8 + c % 2 < w.end ? scores[i][c] * scale : -INFINITY;
    }
    float rescale[2];
    softmax->Update(scores, rescale);
    Rescale(sums, rescale);
    AddValues<kHeadDim>(sums, scores[0], scores[1], shared.tiles[warp][tile % kStages][1], true, lane);
    __syncwarp();
    copy(tile + kStages, next_row);
    next_row = row_at(tile + kStages + 1);
  }
  WaitCopies<0>();
}

// Puts the warps' results into shared memory and finds what each is multiplied with: row_max, row_sum and factor[row][warp].
template <int kHeadDim>
__device__ __forceinline__ void ShareSums(DecodeShared<kHeadDim>& shared, int warp, int lane, const float (&sums)[kHeadDim / 8][4],
                                          const Softmax& softmax) {
  __syncthreads();  // all tiles are done with: `values` lies where they were
  const int row = lane / 4, pair = lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = QuadSum(softmax.sum[half]);
    if (lane % 4 == 0) {
      shared.max[warp][row + half * 8] = softmax.max[half];
      shared.sum[warp][row + half * 8] = sum;
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      float2* to = reinterpret_cast<float2*>(&shared.values[warp][row + half * 8][i * 8 + pair]);
      *to = make_float2(sums[i][2 * half], sums[i][2 * half + 1]);
    }
  }
  __syncthreads();
  if (threadIdx.x < kQueryRows) {
    const int query = threadIdx.x;
    float top = shared.max[0][query], total = 0;
#pragma unroll
    for (int i = 1; i < kWarps; ++i) top = fmaxf(top, shared.max[i][query]);
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      const float factor = shared.max[i][query] == -INFINITY ? 0.0f : exp2f(shared.max[i][query] - top);
      shared.factor[query][i] = factor;
      total += factor * shared.sum[i][query];
    }
    shared.row_max[query] = top;
    shared.row_sum[query] = total;
  }
  __syncthreads();
}

__device__ __forceinline__ void AddTo(float4* sum, float factor, const float4& x) {
  sum->x += factor * x.x;
  sum->y += factor * x.y;
  sum->z += factor * x.z;
  sum->w += factor * x.w;
}

__device__ __forceinline__ float4 Times(const float4& x, float factor) { return {x.x * factor, x.y * factor, x.z * factor, x.w * factor}; }

__device__ __forceinline__ void StoreOut(const AttentionParams& p, const DecodeWork& w, int query, int column, const float4& x) {
  bf16* out = static_cast<bf16*>(p.out) + w.row * p.out_row + static_cast<int64_t>(w.first_head + query) * p.head_dim + column;
  *reinterpret_cast<uint2*>(out) = make_uint2(PackPair(x.x, x.y), PackPair(x.z, x.w));
}

// Where the parts of all pairs lie; `rows` queries each.
struct Partials {
  float* values;  // [pairs, splits, rows, head_dim]
  float2* stats;  // [pairs, splits, rows]: maximum, sum
  int rows;
};

__device__ __forceinline__ Partials PartialsOf(const AttentionParams& p, const DecodeSplit& split) {
  const int rows = min(p.group, kQueryRows);
  const int64_t count = static_cast<int64_t>(p.sequences) * gridDim.y * split.splits * rows;
  float* values = static_cast<float*>(split.workspace);
  return {values, reinterpret_cast<float2*>(values + count * p.head_dim), rows};
}

// Adds up the parts of a pair, a warp a query for the factors, then a thread four columns.
template <int kHeadDim>
__device__ __forceinline__ void MergeParts(const AttentionParams& p, const DecodeSplit& split, const DecodeWork& w,
                                           const Partials& partials, DecodeShared<kHeadDim>& shared, int warp, int lane) {
  const int64_t first = w.pair * split.splits;
  for (int query = warp; query < w.heads; query += kWarps) {
    float2 stats = make_float2(-INFINITY, 0);
    if (lane < w.chunks) stats = __ldcg(partials.stats + (first + lane) * partials.rows + query);
    float top = stats.x;
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    const float factor = stats.x == -INFINITY ? 0.0f : exp2f(stats.x - top);
    const float total = WarpSum(factor * stats.y);
    shared.factor[query][lane] = total == 0.0f ? 0.0f : factor / total;
  }
  __syncthreads();
  constexpr int kColumns = kHeadDim / 4;
  for (int item = threadIdx.x; item < w.heads * kColumns; item += kThreads) {
    const int query = item / kColumns, column = item % kColumns * 4;
    const float* from = partials.values + (first * partials.rows + query) * kHeadDim + column;
    const int64_t step = static_cast<int64_t>(partials.rows) * kHeadDim;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int part = 0; part < w.chunks; ++part) {
      AddTo(&sum, shared.factor[query][part], __ldcg(reinterpret_cast<const float4*>(from + part * step)));
    }
    StoreOut(p, w, query, column, sum);
  }
}

// Grid: x = sequences x splits, y = kv heads x group tiles.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 3) DecodeParts(const AttentionParams p, const DecodeSplit split) {
  extern __shared__ __align__(16) char memory[];
  DecodeShared<kHeadDim>& shared = *reinterpret_cast<DecodeShared<kHeadDim>*>(memory);
  DecodeWork w;
  if (!FindWork(p, split, &w)) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  float sums[kHeadDim / 8][4] = {};
  Softmax softmax;
  RunTiles<kHeadDim>(p, w, shared, warp, lane, sums, &softmax);
  ShareSums<kHeadDim>(shared, warp, lane, sums, softmax);

  const Partials partials = PartialsOf(p, split);
  const int64_t part = (w.pair * split.splits + w.chunk) * partials.rows;
  constexpr int kColumns = kHeadDim / 4;
  for (int item = threadIdx.x; item < w.heads * kColumns; item += kThreads) {
    const int query = item / kColumns, column = item % kColumns * 4;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      AddTo(&sum, shared.factor[query][i], *reinterpret_cast<const float4*>(&shared.values[i][query][column]));
    }
    if (w.chunks == 1) {
      const float total = shared.row_sum[query];
      StoreOut(p, w, query, column, Times(sum, total == 0.0f ? 0.0f : 1.0f / total));
    } else {
      *reinterpret_cast<float4*>(partials.values + (part + query) * kHeadDim + column) = sum;
    }
  }
  if (w.chunks == 1) return;
  if (threadIdx.x < w.heads) partials.stats[part + threadIdx.x] = make_float2(shared.row_max[threadIdx.x], shared.row_sum[threadIdx.x]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t* counter = split.counters + w.pair;
    shared.last = atomicAdd(counter, 1u) + 1 == static_cast<uint32_t>(w.chunks);
    if (shared.last) *counter = 0;  // nobody else comes any more
  }
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  MergeParts<kHeadDim>(p, split, w, partials, shared, warp, lane);
}

template <int kHeadDim>
void Launch(const AttentionParams& p, const DecodeSplit& split, cudaStream_t stream) {
  constexpr int kBytes = static_cast<int>(sizeof(DecodeShared<kHeadDim>));
  cudaFuncSetAttribute(DecodeParts<kHeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  const dim3 grid(static_cast<unsigned>(p.sequences) * static_cast<unsigned>(split.splits),
                  static_cast<unsigned>(p.kv_heads * GroupTiles(p.group)));
  DecodeParts<kHeadDim><<<grid, kThreads, kBytes, stream>>>(p, split);
}

}  // namespace

void LaunchDecode(const AttentionParams& p, const DecodeSplit& split, cudaStream_t stream) {
  switch (p.head_dim) {
    case 64: return Launch<64>(p, split, stream);
    case 80: return Launch<80>(p, split, stream);
    case 96: return Launch<96>(p, split, stream);
    default: return Launch<128>(p, split, stream);
  }
}

}  // namespace phalanx::kernels::cuda
