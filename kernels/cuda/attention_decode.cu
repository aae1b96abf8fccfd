// Attention of sequences with one query row: split-KV, read once. With rope in it (kRope): rope_append and this, of one row a sequence.
//
//   qkv   [tokens, (heads + 2 kv_heads) * head_dim]       bf16   kRope; else
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
// - With rope each CTA norms and rotates its own queries. The newest position's k and v are made by the CTAs of the last part, which put
//   them into their tile and into the cache; nobody else needs them. So all that the cache must hold was written by earlier steps, and is
//   read before the previous kernel has ended (device.h, a prefetcher). A row without a slot (padding) reads the cache instead.
#include "kernels/cuda/device.h"
#include "kernels/cuda/device/attention_tile.cuh"
#include "kernels/cuda/device/chain.cuh"
#include "kernels/cuda/device/rope_head.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kStages = 2;
static_assert(kWarps * kKeyRows == kDecodeTurn);

template <int kHeadDim>
struct alignas(16) DecodeShared {
  static constexpr int kTile = kKeyRows * kTileStride<kHeadDim>;
  static constexpr int kMergeStride = kHeadDim + 4;
  union {
    bf16 tiles[kWarps][kStages][2][kTile];                 // K, V
    float values[kWarps][kQueryRows][kMergeStride];        // after the last tile
  };
  float max[kWarps][kQueryRows], sum[kWarps][kQueryRows];  // of the warps
  float factor[kQueryRows][kWarps];                        // what each warp's values are multiplied with
  float row_max[kQueryRows], row_sum[kQueryRows];
  bool last;
};

// With rope, behind DecodeShared.
template <int kHeadDim>
struct RopeShared {
  bf16 queries[kQueryRows][kTileStride<kHeadDim>];
  bf16 fresh[2][kHeadDim];  // k and v of the newest position
};

// What a CTA works on.
struct DecodeWork {
  int sequence, kv_head, row;  // row: of q and out
  int first_head, heads;       // query heads
  int begin, end;              // positions
  int chunk, chunks;
  int newest;                  // the position whose k and v are made here; -1: all are in the cache
  int64_t pair;                // (sequence, kv head, group tile)
};

// False: nothing to do. With rope every sequence has one row, so that its index is the row's.
template <bool kRope>
__device__ __forceinline__ bool FindWork(const AttentionParams& p, const DecodeSplit& split, DecodeWork* w) {
  const int tiles = GroupTiles(p.group), tile = static_cast<int>(blockIdx.y) % tiles;
  w->sequence = static_cast<int>(blockIdx.x) / split.splits;
  w->chunk = static_cast<int>(blockIdx.x) % split.splits;
  w->kv_head = static_cast<int>(blockIdx.y) / tiles;
  w->row = kRope ? w->sequence : p.query_start[w->sequence];
  const int length = p.context_length[w->sequence];
  if (!kRope && p.query_start[w->sequence + 1] - w->row != 1) return false;
  const int from = p.window > 0 ? max(0, length - p.window) : 0;
  const ContextCut cut = CutContext(length - from, split.rule);
  w->chunks = cut.chunks;
  w->begin = from + w->chunk * cut.tokens;
  w->end = min(length, w->begin + cut.tokens);
  w->newest = -1;
  w->first_head = w->kv_head * p.group + tile * kQueryRows;
  w->heads = min(kQueryRows, p.group - tile * kQueryRows);
  w->pair = (static_cast<int64_t>(w->sequence) * p.kv_heads + w->kv_head) * tiles + tile;
  return w->chunk < w->chunks;
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// A warp's positions: every fourth tile of the part, on their way to shared memory.
template <int kHeadDim>
struct TileFeed {
  const AttentionParams& p;
  const DecodeWork& w;
  bf16 (&tiles)[kStages][2][DecodeShared<kHeadDim>::kTile];
  Pages pages;
  int first, lane;
  int next_row = -1;

  __device__ __forceinline__ TileFeed(const AttentionParams& params, const DecodeWork& work, DecodeShared<kHeadDim>& shared, int warp,
                                      int lane_of_warp)
      : p(params), w(work), tiles(shared.tiles[warp]), pages(PagesOf(params, work.sequence, work.kv_head)),
        first(work.begin + warp * kKeyRows), lane(lane_of_warp) {}

  __device__ __forceinline__ int count() const { return (w.end - first + kDecodeTurn - 1) / kDecodeTurn; }  // <= 0: none
  __device__ __forceinline__ int RowAt(int tile) const {
    const int position = first + tile * kDecodeTurn + lane % kKeyRows;
    return position < w.end && position != w.newest ? pages.RowOf(position) : -1;
  }
  __device__ __forceinline__ void Copy(int tile, int row) {
    CopyTiles<kHeadDim>(tiles[tile % kStages][0], tiles[tile % kStages][1], p.k, p.v, row, lane);
    CommitCopies();
  }
  __device__ __forceinline__ void Begin() {
#pragma unroll
    for (int i = 0; i < kStages; ++i) Copy(i, RowAt(i));
    next_row = RowAt(kStages);
  }
  __device__ __forceinline__ void Refill(int tile) {
    Copy(tile + kStages, next_row);
    next_row = RowAt(tile + kStages + 1);
  }
  // Puts the newest position's k and v [kHeadDim] into its row of a tile that has arrived, if it is in this one.
  __device__ __forceinline__ void Patch(int tile, const bf16 (&fresh)[2][kHeadDim]) {
    const int row = w.newest - first - tile * kDecodeTurn;
    if (w.newest < 0 || row < 0 || row >= kKeyRows) return;
    constexpr int kPieces = kHeadDim / 8;
    for (int piece = lane; piece < 2 * kPieces; piece += kWarp) {
      const int side = piece / kPieces, column = piece % kPieces * 8;
      *reinterpret_cast<uint4*>(&tiles[tile % kStages][side][row * kTileStride<kHeadDim> + column]) =
          *reinterpret_cast<const uint4*>(&fresh[side][column]);
    }
    __syncwarp();
  }
};

// Softmax and sums over the tiles of a warp. `head`: the first query, `step` elements apart; `fresh` is null without rope.
template <int kHeadDim>
__device__ __forceinline__ void RunTiles(TileFeed<kHeadDim>& feed, const bf16* head, int64_t step, const bf16 (*fresh)[2][kHeadDim],
                                         float (&sums)[kHeadDim / 8][4], Softmax* softmax) {
  const DecodeWork& w = feed.w;
  const int lane = feed.lane, query = lane / 4, tiles = feed.count();
  uint32_t q[kHeadDim / 16][4];
  LoadQueries<kHeadDim>(q, query < w.heads ? head + query * step : nullptr, query + 8 < w.heads ? head + (query + 8) * step : nullptr,
                        lane);
  const float scale = feed.p.scale * kLog2E;
  for (int tile = 0; tile < tiles; ++tile) {
    WaitCopies<kStages - 1>();
    __syncwarp();
    if (fresh != nullptr) feed.Patch(tile, *fresh);
    const bf16* keys = feed.tiles[tile % kStages][0];
    float scores[2][4] = {};
    AddScores<kHeadDim>(scores[0], scores[1], q, keys, lane);
    const int position = feed.first + tile * kDecodeTurn + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) scores[i][c] = position + i * 8 + c % 2 < w.end ? scores[i][c] * scale : -INFINITY;
    }
    float rescale[2];
    softmax->Update(scores, rescale);
    Rescale(sums, rescale);
    AddValues<kHeadDim>(sums, scores[0], scores[1], feed.tiles[tile % kStages][1], true, lane);
    __syncwarp();
    feed.Refill(tile);
  }
  WaitCopies<0>();
}

// ---- rope -----------------------------------------------------------------------------------------------------------

// The CTA's heads: its queries and, where the newest position is this CTA's, that one's k and v, in shared memory; those also in the cache.
template <int kHeadDim>
struct HeadMaker {
  using Part = HeadPart<2, kHeadDim>;
  const RopeParams& r;
  const DecodeWork& w;
  RopeShared<kHeadDim>& shared;
  int slot, lane;
  HeadShape shape;
  HeadAngles<2, kHeadDim> angles;

  // Item i: query i, then k, then v.
  __device__ __forceinline__ int items() const { return w.heads + (w.newest >= 0 ? 2 : 0); }
  __device__ __forceinline__ void Load(Part& part, int item) const {
    const int head = item < w.heads ? w.first_head + item : r.heads + (item - w.heads) * r.cache.kv_heads + w.kv_head;
    LoadHead(part, shape, lane, static_cast<const bf16*>(r.qkv) + w.row * r.qkv_stride + static_cast<int64_t>(head) * kHeadDim);
  }
  __device__ __forceinline__ void Finish(Part& part, int item) const {
    const bool is_q = item < w.heads, is_v = item == w.heads + 1;
    const bf16* gamma = static_cast<const bf16*>(is_q ? r.q_norm : is_v ? nullptr : r.k_norm);
    if (gamma != nullptr) NormHead(part, shape, lane, gamma, r.epsilon);
    if (!is_v) Rotate(part, angles, shape, lane);
    StoreHead<bf16>(part, shape, lane, is_q ? shared.queries[item] : shared.fresh[item - w.heads]);
    if (is_q || w.first_head != w.kv_head * (r.heads / r.cache.kv_heads)) return;  // of several CTAs of a wide group the first one
    const KvLayer& kv = r.cache;
    const int64_t row = (static_cast<int64_t>(slot / kv.block_size) * kv.kv_heads + w.kv_head) * kv.block_size + slot % kv.block_size;
    StoreHead<bf16>(part, shape, lane, static_cast<bf16*>(is_v ? kv.v : kv.k) + row * kHeadDim);
  }
  // Two heads of a warp are under way at once.
  __device__ __forceinline__ void Run(int warp) const {
    for (int item = warp; item < items(); item += 2 * kWarps) {
      const bool two = item + kWarps < items();
      Part first, second;
      Load(first, item);
      if (two) Load(second, item + kWarps);
      Finish(first, item);
      if (two) Finish(second, item + kWarps);
    }
  }
};

// Marks the newest position as made here, if this CTA has it and its row has a place in the cache. Returns the slot.
__device__ __forceinline__ int FindNewest(const AttentionParams& p, const RopeParams& r, DecodeWork* w) {
  const int slot = r.slots[w->row];
  const bool place = slot >= 0 && slot < static_cast<int64_t>(r.cache.num_blocks) * r.cache.block_size;
  if (place && w->chunk == w->chunks - 1) w->newest = p.context_length[w->sequence] - 1;
  return slot;
}

// ---- results --------------------------------------------------------------------------------------------------------

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

// Four columns of a query, merged by one thread. The first kBatch parts are loaded before anything is known of any: one trip to L2.
struct MergeItem {
  static constexpr int kBatch = 8;
  const float2* stats;  // of part 0; the parts are `rows` apart
  const float* values;  // of part 0; the parts are `step` apart
  int chunks, rows;
  int64_t step;
  float2 first_stats[kBatch];
  float4 first_values[kBatch];

  __device__ __forceinline__ float2 StatsOf(int part) const {
    return part < chunks ? __ldcg(stats + static_cast<int64_t>(part) * rows) : make_float2(-INFINITY, 0);
  }
  __device__ __forceinline__ float4 ValuesOf(int part) const {
    return part < chunks ? __ldcg(reinterpret_cast<const float4*>(values + part * step)) : make_float4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void Load() {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) first_stats[i] = StatsOf(i), first_values[i] = ValuesOf(i);
  }
  // The parts in their order.
  __device__ __forceinline__ float4 Merge() const {
    float top = -INFINITY, total = 0;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) top = fmaxf(top, first_stats[i].x);
#pragma unroll 8
    for (int part = kBatch; part < chunks; ++part) top = fmaxf(top, StatsOf(part).x);
    float4 sum = make_float4(0, 0, 0, 0);
    const auto add = [&](const float2& of, const float4& x) {
      const float factor = of.x == -INFINITY ? 0.0f : exp2f(of.x - top);
      total += factor * of.y;
      AddTo(&sum, factor, x);
    };
#pragma unroll
    for (int i = 0; i < kBatch; ++i) add(first_stats[i], first_values[i]);
#pragma unroll 4
    for (int part = kBatch; part < chunks; ++part) add(StatsOf(part), ValuesOf(part));
    return Times(sum, total == 0.0f ? 0.0f : 1.0f / total);
  }
};

// Adds up the parts of a pair, two items of a thread under way at once.
template <int kHeadDim>
__device__ __forceinline__ void MergeParts(const AttentionParams& p, const DecodeSplit& split, const DecodeWork& w,
                                           const Partials& partials) {
  constexpr int kColumns = kHeadDim / 4;
  const int64_t first = w.pair * split.splits * partials.rows;
  const int items = w.heads * kColumns;
  const auto item_of = [&](int item) {
    const int query = item / kColumns, column = item % kColumns * 4;
    return MergeItem{partials.stats + first + query, partials.values + (first + query) * kHeadDim + column, w.chunks, partials.rows,
                     static_cast<int64_t>(partials.rows) * kHeadDim};
  };
  for (int item = threadIdx.x; item < items; item += 2 * kThreads) {
    const int second = item + kThreads;
    MergeItem a = item_of(item), b = item_of(min(second, items - 1));
    a.Load();
    if (second < items) b.Load();
    StoreOut(p, w, item / kColumns, item % kColumns * 4, a.Merge());
    if (second < items) StoreOut(p, w, second / kColumns, second % kColumns * 4, b.Merge());
  }
}

// Grid: x = sequences x splits, y = kv heads x group tiles.
template <int kHeadDim, bool kRope>
__global__ void __launch_bounds__(kThreads, 3) DecodeParts(const AttentionParams p, const DecodeSplit split, const RopeParams rope) {
  extern __shared__ __align__(16) char memory[];
  DecodeShared<kHeadDim>& shared = *reinterpret_cast<DecodeShared<kHeadDim>*>(memory);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  DecodeWork w;
  if (!kRope) PassGate();
  if (!FindWork<kRope>(p, split, &w)) {
    if (kRope) PassGate();
    return;
  }
  float sums[kHeadDim / 8][4] = {};
  Softmax softmax;
  if constexpr (kRope) {
    RopeShared<kHeadDim>& heads = *reinterpret_cast<RopeShared<kHeadDim>*>(memory + sizeof(DecodeShared<kHeadDim>));
    const int slot = FindNewest(p, rope, &w);
    TileFeed<kHeadDim> feed(p, w, shared, warp, lane);
    feed.Begin();
    const HeadShape shape{rope.rotary_dim / 2, kHeadDim};
    const float* angles = rope.cos_sin + static_cast<int64_t>(rope.positions[w.row]) * rope.rotary_dim;
    const HeadMaker<kHeadDim> maker{rope, w, heads, slot, lane, shape, LoadAngles<2, kHeadDim>(shape, lane, angles)};
    WaitForPrevious();
    LetNextStart();  // earlier, the next kernel's CTAs would crowd where room is left beside the previous kernel's
    maker.Run(warp);
    __syncthreads();
    RunTiles<kHeadDim>(feed, heads.queries[0], kTileStride<kHeadDim>, &heads.fresh, sums, &softmax);
  } else {
    TileFeed<kHeadDim> feed(p, w, shared, warp, lane);
    feed.Begin();
    const bf16* head = static_cast<const bf16*>(p.q) + w.row * p.q_row + w.first_head * p.q_head;
    RunTiles<kHeadDim>(feed, head, p.q_head, nullptr, sums, &softmax);
  }
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
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t* counter = split.counters + w.pair;
    __threadfence();  // the CTA's parts, which the barrier put before this, come before the count
    shared.last = atomicAdd(counter, 1u) + 1 == static_cast<uint32_t>(w.chunks);
    if (shared.last) *counter = 0;  // nobody else comes any more
    __threadfence();
  }
  __syncthreads();
  if (shared.last) MergeParts<kHeadDim>(p, split, w, partials);
}

template <int kHeadDim, bool kRope>
void LaunchParts(const AttentionParams& p, const DecodeSplit& split, const RopeParams& rope, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(DecodeShared<kHeadDim>) + (kRope ? sizeof(RopeShared<kHeadDim>) : 0);
  static_assert(sizeof(DecodeShared<kHeadDim>) % 16 == 0);
  const auto kernel = DecodeParts<kHeadDim, kRope>;
  WantSharedMemory(reinterpret_cast<const void*>(kernel));
  const dim3 grid(static_cast<unsigned>(p.sequences) * static_cast<unsigned>(split.splits),
                  static_cast<unsigned>(p.kv_heads * GroupTiles(p.group)));
  Launch(kernel, grid, dim3(kThreads), kBytes, stream, p, split, rope);
}

template <bool kRope>
void LaunchFor(const AttentionParams& p, const DecodeSplit& split, const RopeParams& rope, cudaStream_t stream) {
  switch (p.head_dim) {
    case 64: return LaunchParts<64, kRope>(p, split, rope, stream);
    case 80: return LaunchParts<80, kRope>(p, split, rope, stream);
    case 96: return LaunchParts<96, kRope>(p, split, rope, stream);
    default: return LaunchParts<128, kRope>(p, split, rope, stream);
  }
}

}  // namespace

void LaunchDecode(const AttentionParams& p, const DecodeSplit& split, cudaStream_t stream) { LaunchFor<false>(p, split, {}, stream); }

void LaunchRopeDecode(const AttentionParams& p, const DecodeSplit& split, const RopeParams& rope, cudaStream_t stream) {
  LaunchFor<true>(p, split, rope, stream);
}

}  // namespace phalanx::kernels::cuda
