// Attention of sequences with several query rows: causal, paged, online softmax in registers (FlashAttention-2's order of loops).
//
//   q     [tokens, heads, head_dim]                 bf16
//   k, v  [blocks, kv_heads, block_size, head_dim]  bf16   through the block table
//   out   [tokens, heads * head_dim]                bf16
//
// 4 * head_dim * positions operations a query and head. Query rows and the heads of a group are packed into tiles of 64 (row 0 head 0,
// row 0 head 1, ...), so that a page serves the whole group and short chunks fill a tile; a warp has 16 of them, their queries and sums in
// registers. Keys and values come in tiles of 64 positions, gathered through the block table by cp.async, one tile ahead; one barrier a
// tile. Positions outside [first seen, last seen] of the CTA are zeros in shared memory and are never read.
// CTAs find their sequence from the row starts: nothing is planned on the host. Late rows see most, so they start first.
// attention_prefill_wgmma.cu takes most steps of a Hopper card instead.
// Source: Dao, FlashAttention-2, 2023.
#include "kernels/cuda/device/attention_tile.cuh"
#include "kernels/cuda/device/prefill_work.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kStages = 2;
constexpr int kKeys = kWarps * kKeyRows;  // positions of a tile: a warp copies 16
constexpr int kParts = kKeys / kKeyRows;
constexpr int kManyKeys = 64;             // from so many positions on, rounding of single weights averages out
static_assert(kWarps * kQueryRows == kPrefillRows);

template <int kHeadDim>
struct PrefillShared {
  bf16 tiles[kStages][2][kKeys * kTileStride<kHeadDim>];  // K, V
};

// -infinity where a query does not see a position; scales the others.
__device__ __forceinline__ void MaskScores(float (&scores)[2 * kParts][4], const LaneRows& queries, int position, int window,
                                           float scale) {
#pragma unroll
  for (int i = 0; i < 2 * kParts; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int at = position + i * 8 + c % 2, own = queries.own[c / 2];
      const bool seen = at <= own && (window <= 0 || at > own - window);
      scores[i][c] = seen ? scores[i][c] * scale : -INFINITY;
    }
  }
}

// Grid: x = PrefillTileCount, y = kv heads.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2) PrefillTiles(const AttentionParams p) {
  extern __shared__ __align__(16) char memory[];
  PrefillShared<kHeadDim>& shared = *reinterpret_cast<PrefillShared<kHeadDim>*>(memory);
  PrefillWork w;
  if (!FindPrefillWork<kPrefillRows>(p, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), &w)) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first_tile = w.begin / kKeys, tiles = (w.end + kKeys - 1) / kKeys;

  const Pages pages = PagesOf(p, w.sequence, w.kv_head);
  const auto row_at = [&](int tile) {
    const int position = tile * kKeys + warp * kKeyRows + lane % kKeyRows;
    return position >= w.begin && position < w.end ? pages.RowOf(position) : -1;
  };
  const auto copy = [&](int tile, int row) {
    const int at = warp * kKeyRows * kTileStride<kHeadDim>;
    CopyTiles<kHeadDim>(shared.tiles[tile % kStages][0] + at, shared.tiles[tile % kStages][1] + at, p.k, p.v, row, lane);
    CommitCopies();
  };
  copy(first_tile, row_at(first_tile));
  int next_row = row_at(first_tile + 1);

  const LaneRows queries = RowsOf(p, w, w.first_packed + warp * kQueryRows);
  const auto head_of = [&](int i) {
    return static_cast<const bf16*>(p.q) + queries.row[i] * p.q_row + queries.head[i] * p.q_head;
  };
  uint32_t q[kHeadDim / 16][4];
  LoadQueries<kHeadDim>(q, queries.there[0] ? head_of(0) : nullptr, queries.there[1] ? head_of(1) : nullptr, lane);
  // Of the warp: positions up to here are seen by all its queries, and none past there by any.
  const int warp_first = w.OwnOf(w.first_packed + warp * kQueryRows, p.group);
  const int warp_last = w.OwnOf(w.first_packed + warp * kQueryRows + kQueryRows - 1, p.group);
  const float scale = p.scale * kLog2E;
  const bool few_keys = p.window > 0 && p.window < kManyKeys;

  float sums[kHeadDim / 8][4] = {};
  Softmax softmax;
  for (int tile = first_tile; tile < tiles; ++tile) {
    WaitCopies<0>();
    __syncthreads();  // this tile is there, and everybody is done with the one before
    if (tile + 1 < tiles) {
      copy(tile + 1, next_row);
      next_row = row_at(tile + 2);
    }
    if (tile * kKeys > warp_last) continue;
    const bf16* keys = shared.tiles[tile % kStages][0];
    const bf16* values = shared.tiles[tile % kStages][1];
    float scores[2 * kParts][4] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      AddScores<kHeadDim>(scores[2 * part], scores[2 * part + 1], q, keys + part * kKeyRows * kTileStride<kHeadDim>, lane);
    }
    if (p.window > 0 || tile * kKeys + kKeys - 1 > warp_first) {
      MaskScores(scores, queries, tile * kKeys + lane % 4 * 2, p.window, scale);
    } else {
#pragma unroll
      for (int i = 0; i < 2 * kParts; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[i][c] *= scale;
      }
    }
    float rescale[2];
    softmax.Update(scores, rescale);
    Rescale(sums, rescale);
    const bool exact = few_keys || tile == 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      AddValues<kHeadDim>(sums, scores[2 * part], scores[2 * part + 1], values + part * kKeyRows * kTileStride<kHeadDim>, exact, lane);
    }
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = QuadSum(softmax.sum[i]);
    if (!queries.there[i]) continue;
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    bf16* out = static_cast<bf16*>(p.out) + queries.row[i] * p.out_row + static_cast<int64_t>(queries.head[i]) * kHeadDim + lane % 4 * 2;
#pragma unroll
    for (int d = 0; d < kHeadDim / 8; ++d) {
      *reinterpret_cast<uint32_t*>(out + d * 8) = PackPair(sums[d][2 * i] * factor, sums[d][2 * i + 1] * factor);
    }
  }
}

template <int kHeadDim>
void Launch(const AttentionParams& p, cudaStream_t stream) {
  constexpr int kBytes = static_cast<int>(sizeof(PrefillShared<kHeadDim>));
  cudaFuncSetAttribute(PrefillTiles<kHeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  const dim3 grid(static_cast<unsigned>(PrefillTileCount(p.tokens, p.sequences, p.group, kPrefillRows)), static_cast<unsigned>(p.kv_heads));
  PrefillTiles<kHeadDim><<<grid, kThreads, kBytes, stream>>>(p);
}

}  // namespace

void LaunchPrefill(const AttentionParams& p, cudaStream_t stream) {
  switch (p.head_dim) {
    case 64: return Launch<64>(p, stream);
    case 80: return Launch<80>(p, stream);
    case 96: return Launch<96>(p, stream);
    default: return Launch<128>(p, stream);
  }
}

}  // namespace phalanx::kernels::cuda
