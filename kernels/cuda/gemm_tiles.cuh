// Linear layers for many rows on Hopper: tiles of weight rows x tokens.
//
//   x       [m, k]   bf16   rows aligned to 16 bytes
//   weight  [n, k]   bf16   dense, rows aligned to 16 bytes
//   out     [m, n]   bf16 or f32; [m, n / 2] bf16 with silu * up of interleaved rows
//
// 2 m n k operations; reads the weight and x once from memory if x fits the cache. A tile is kTileRows weight rows x kTokens tokens.
// - A producer thread copies [rows, 64] boxes of both operands into a ring; two warpgroups multiply 64 weight rows each, so that tokens
//   are the free side of wgmma and any multiple of 32 of them fills a tile: few padded tokens, and tile counts that fit the SMs.
// - The warpgroups never wait for each other, only for the ring: while one writes its outputs, the other has the tensor cores.
// - One CTA an SM takes tile after tile (TileSchedule). Whole tiles come first; the rest may be shared out by k, so that every SM ends at
//   the same time. A part of a tile that does not start at k = 0 goes to memory in f32; who has the start adds the parts in the order of
//   k: the same bits each time. It waits for CTAs with lower numbers only, which have started before it: no deadlock.
// - TileCluster::kPair: two CTAs take neighbouring weight tiles of the same tokens, and each copies half of the tokens for both: the copy
//   rate from the cache (about 41 bytes a cycle and SM) is what bounds one alone.
// - TileCluster::kSplit: for few tiles. The CTAs of a cluster share one tile's k, add up through each other's shared memory, in the order
//   of k, and each writes some of the tokens.
// - It starts beside its predecessor and copies weights before it waits (device.h, "launches that overlap": a prefetcher).
// What a box has outside a matrix is read as zeros, or not at all. Tokens are columns of the product: a NaN stays in its row of out.
// Source: CUTLASS's and DeepGEMM's documentation of warp-specialised kernels; Osama et al., Stream-K, 2023.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/device/chain.cuh"
#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/gemm_tiles_out.cuh"

namespace phalanx::kernels::cuda {

static_assert((1 + kGroups) * kGroup == kTilesThreads && kGroups * kGroupRows == kTileRows);

// Shared memory: the ring, two parts of outputs a warpgroup, the barriers. What a cluster adds up lies in the ring.
template <int kTokens>
struct TilesLayout {
  static constexpr int kWeightBytes = kTileRows * kTileK * 2;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kTileK * 2;
  static constexpr int kPartsFloats = 2 * kPartTokens * kPartPitch;  // of a warpgroup
  static constexpr int kBarrierBytes = 256;
  static constexpr int kFit = (227 * 1024 - kGroups * kPartsFloats * 4 - kBarrierBytes) / kStageBytes;
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static constexpr int kParts = kStages * kStageBytes;  // offsets
  static constexpr int kBarriers = kParts + kGroups * kPartsFloats * 4;
  static constexpr int kBytes = kBarriers + kBarrierBytes;
  static_assert(kTokens * kSplitPitch * 4 <= kParts);
};

// A tile, or a part of one: blocks [k_begin, k_end) of k.
struct TileWork {
  int tile, k_begin, k_end;
};

// The work of one unit, in order; the same for every thread of it.
class TileSchedule {
 public:
  __device__ TileSchedule(const TilesParams& p, int unit) : p_(p), next_(unit), order_(p.units - 1 - unit) {
    at_ = Cut(order_), end_ = Cut(order_ + 1);
  }
  __device__ bool Next(TileWork* work) {
    if (next_ < p_.whole_tiles) {
      *work = {next_, 0, p_.k_blocks};
      next_ += p_.units;
      return true;
    }
    if (at_ >= end_) return false;
    const int tile = at_ / p_.k_blocks, k = at_ - tile * p_.k_blocks, left = end_ - at_;
    *work = {p_.whole_tiles + tile, k, min(p_.k_blocks, k + left)};
    at_ += work->k_end - k;
    return true;
  }
  // How many units have the rest of `work`'s tile, which this unit has begun; and the i-th of them, from 1.
  __device__ int Followers(const TileWork& work) const {
    const int tile_end = (work.tile - p_.whole_tiles + 1) * p_.k_blocks;
    int count = 0;
    while (order_ + count + 1 < p_.units && Cut(order_ + count + 1) < tile_end) ++count;
    return count;
  }
  __device__ int Follower(int i) const { return p_.units - 1 - (order_ + i); }

 private:
  // The first shared block of the unit with place `order`.
  __device__ int Cut(int order) const { return static_cast<int>(int64_t{p_.shared_blocks} * order / p_.units); }

  const TilesParams& p_;
  int next_;
  int order_;     // place in the shared blocks: last unit first
  int at_, end_;  // shared blocks
};

// Where a tile lies. Tiles of the same weight rows are neighbours, as long as their tokens, `group_tokens` tiles, fit the cache.
template <int kTokens>
struct TilePlace {
  int weight;         // weight unit
  TileTokens tokens;
  __device__ __forceinline__ TilePlace(const TilesParams& p, int tile) {
    const int in_group = p.group_tokens * p.weight_units, group = tile / in_group, first = group * p.group_tokens;
    const int wide = min(p.group_tokens, p.token_tiles - first), rest = tile - group * in_group;
    const int own = (first + rest % wide) * kTokens;
    weight = rest / wide;
    tokens.start = max(0, min(own, p.m - kTokens));
    tokens.from = own - tokens.start;
    tokens.to = min(kTokens, p.m - tokens.start);
  }
};

// One CTA's part of the work: its place in the grid, its ring.
template <int kTokens, TileCluster kCluster>
struct TilesCta {
  using L = TilesLayout<kTokens>;
  const TilesParams& p;
  uint32_t ring, full, empty;  // shared addresses
  int rank, unit;

  // Weight rows of this CTA of a tile.
  __device__ int WeightRow(int weight) const { return (kCluster == TileCluster::kPair ? weight * 2 + rank : weight) * kTileRows; }
  // A split unit has one tile, and this CTA a part of its k; then nothing.
  __device__ bool Next(TileSchedule* schedule, TileWork* work) const {
    if (!schedule->Next(work)) return false;
    if constexpr (kCluster == TileCluster::kSplit) {
      work->k_begin = p.k_blocks * rank / p.cluster, work->k_end = p.k_blocks * (rank + 1) / p.cluster;
    }
    return true;
  }
};

template <int kTokens, TileCluster kCluster>
__device__ __forceinline__ void Produce(const TilesCta<kTokens, kCluster>& c, const CUtensorMap* weight, const CUtensorMap* x) {
  using L = TilesLayout<kTokens>;
  constexpr bool kPair = kCluster == TileCluster::kPair;
  const int bytes = L::kWeightBytes + min(kTokens, c.p.m) * kTileK * 2;  // of a stage
  const int half = kPair ? c.rank * (kTokens / 2) : 0;                  // tokens that the other CTA of the pair copies before
  const auto copy_weight = [&](int stage, int row, int k) {
    ArriveExpecting(c.full + stage * 8, bytes);
    CopyTile(c.ring + stage * L::kStageBytes, weight, k * kTileK, row, c.full + stage * 8);
  };
  const auto copy_x = [&](int stage, int token, int k) {
    const uint32_t to = c.ring + stage * L::kStageBytes + L::kWeightBytes + half * kTileK * 2;
    if constexpr (kPair) {
      CopyTileToBoth(to, x, k * kTileK, token + half, c.full + stage * 8);
    } else {
      CopyTile(to, x, k * kTileK, token, c.full + stage * 8);
    }
  };
  TileSchedule schedule(c.p, c.unit);
  int stage = 0;
  uint32_t phase = 0;
  bool first = true;
  for (TileWork work; c.Next(&schedule, &work);) {
    const TilePlace<kTokens> place(c.p, work.tile);
    const int row = c.WeightRow(place.weight);
    int k = work.k_begin;
    if (first) {  // the ring is empty, and x may still be being written
      const int ahead = min(L::kStages, work.k_end - k);
      for (int i = 0; i < ahead; ++i) copy_weight(i, row, k + i);
      WaitForPrevious();
      for (int i = 0; i < ahead; ++i) copy_x(i, place.tokens.start, k + i);
      first = false;
      k += ahead, stage = ahead % L::kStages, phase = ahead / L::kStages;
    }
    for (; k < work.k_end; ++k) {
      BarrierWait(c.empty + stage * 8, phase ^ 1);
      copy_weight(stage, row, k);
      copy_x(stage, place.tokens.start, k);
      if (++stage == L::kStages) stage = 0, phase ^= 1;
    }
  }
}

// The place in the ring of a warpgroup that multiplies.
struct RingPlace {
  int stage = 0;
  uint32_t phase = 0;
};

// sums = the product over `work`'s blocks.
template <int kTokens, TileCluster kCluster>
__device__ __forceinline__ void Multiply(const TilesCta<kTokens, kCluster>& c, const TileWork& work, int group, RingPlace* at,
                                         float (&sums)[kTokens / 2]) {
  using L = TilesLayout<kTokens>;
  const int lane = threadIdx.x % kWarp;
  const auto release = [&](int stage) {  // by every warp, to every CTA that copies into the stage
    if constexpr (kCluster == TileCluster::kPair) {
      if (lane < 2) ArriveAt(c.empty + stage * 8, static_cast<uint32_t>(lane));
    } else {
      if (lane == 0) Arrive(c.empty + stage * 8);
    }
  };
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) sums[i] = 0;
  int last = -1;  // stage that is being read
  for (int k = work.k_begin; k < work.k_end; ++k) {
    BarrierWait(c.full + at->stage * 8, at->phase);
    const uint32_t from = c.ring + at->stage * L::kStageBytes;
    const uint64_t weight = WgmmaOperand(from + group * kGroupRows * kTileK * 2), x = WgmmaOperand(from + L::kWeightBytes);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kTileK / 16; ++i) Wgmma<kTokens>(sums, weight + 2 * i, x + 2 * i);
    WgmmaCommit();
    WgmmaWait<1>();
    if (last >= 0) release(last);
    last = at->stage;
    if (++at->stage == L::kStages) at->stage = 0, at->phase ^= 1;
  }
  WgmmaWait<0>();
  release(last);
}

template <int kTokens, TileCluster kCluster, class Out, bool kSilu>
__device__ __forceinline__ void Consume(const TilesCta<kTokens, kCluster>& c, float* parts) {
  const int group = static_cast<int>(threadIdx.x) / kGroup - 1;
  parts += group * TilesLayout<kTokens>::kPartsFloats;
  WaitForPrevious();  // before anything is written
  TileSchedule schedule(c.p, c.unit);
  RingPlace at;
  int turn = 0;
  for (TileWork work; c.Next(&schedule, &work);) {
    float sums[kTokens / 2];
    Multiply(c, work, group, &at, sums);
    if (work.k_begin > 0) {
      HandOver<kTokens>(c.p, sums, group);
      continue;
    }
    if (work.k_end < c.p.k_blocks) {
      TakeOver<kTokens>(c.p, sums, group, schedule.Followers(work),
                        [&](int i) { return kCluster == TileCluster::kPair ? schedule.Follower(i) * 2 + c.rank : schedule.Follower(i); });
    }
    const TilePlace<kTokens> place(c.p, work.tile);
    const int row = c.WeightRow(place.weight) + group * kGroupRows;
    if (row < c.p.n) WriteOutputs<kTokens, Out, kSilu>(c.p, sums, parts, &turn, group, row, place.tokens);
  }
}

// A split unit's one tile.
template <int kTokens, class Out, bool kSilu>
__device__ __forceinline__ void ConsumeSplit(const TilesCta<kTokens, TileCluster::kSplit>& c, float* ring) {
  const int group = static_cast<int>(threadIdx.x) / kGroup - 1;
  TileSchedule schedule(c.p, c.unit);
  RingPlace at;
  TileWork work;
  c.Next(&schedule, &work);
  const TilePlace<kTokens> place(c.p, work.tile);
  const int row = c.WeightRow(place.weight) + group * kGroupRows;
  float sums[kTokens / 2];
  Multiply(c, work, group, &at, sums);
  NamedSync(1, kGroups * kGroup);  // nobody reads the ring any more
  LeaveForCluster<kTokens>(c.p, sums, ring, c.rank, group, row);
  ClusterSync();
  WaitForPrevious();
  if (row < c.p.n) WriteFromCluster<kTokens, Out, kSilu>(c.p, c.ring, c.rank, group, row, place.tokens);
}

// Grid: units of one CTA, of two (kPair), of p.cluster (kSplit), which are clusters.
template <int kTokens, TileCluster kCluster, class Out, bool kSilu>
__global__ void __launch_bounds__(kTilesThreads, 1)
    Tiles(const __grid_constant__ CUtensorMap weight, const __grid_constant__ CUtensorMap x, const TilesParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // launched on no other card (TilesSupported)
  using L = TilesLayout<kTokens>;
  extern __shared__ __align__(1024) unsigned char shared[];
  LetNextStart();
  const uint32_t ring = SharedAddress(shared), full = ring + L::kBarriers, empty = full + L::kStages * 8;
  const int rank = kCluster == TileCluster::kNone ? 0 : static_cast<int>(ClusterRank());
  const TilesCta<kTokens, kCluster> cta{p, ring, full, empty, rank, static_cast<int>(blockIdx.x) / p.cluster};
  if (threadIdx.x == 0) {
    FetchMap(&weight);
    FetchMap(&x);
    for (int i = 0; i < L::kStages; ++i) {
      BarrierInit(full + i * 8, 1);
      BarrierInit(empty + i * 8, kGroups * (kGroup / kWarp) * (kCluster == TileCluster::kPair ? 2 : 1));
    }
    BarrierInitDone();
  }
  if constexpr (kCluster == TileCluster::kPair) {
    ClusterMeet();
  } else {
    __syncthreads();
  }
  if (threadIdx.x < kGroup) {
    GiveRegisters<40>();
    if (threadIdx.x == 0) Produce(cta, &weight, &x);
    if constexpr (kCluster == TileCluster::kSplit) ClusterSync();
  } else {
    TakeRegisters<232>();
    if constexpr (kCluster == TileCluster::kSplit) {
      ConsumeSplit<kTokens, Out, kSilu>(cta, reinterpret_cast<float*>(shared));
    } else {
      Consume<kTokens, kCluster, Out, kSilu>(cta, reinterpret_cast<float*>(shared + L::kParts));
    }
  }
  if constexpr (kCluster != TileCluster::kNone) ClusterMeet();  // the others may still read or write here
#endif
}

}  // namespace phalanx::kernels::cuda
