// From sums to outputs, for gemm_tiles.cuh: parts of a sum from one CTA to another, bias, residual, silu * up, rounding, stores.
//
// A warpgroup's sums cover 64 weight rows x the tokens of its tile. They go through shared memory (but see WriteSilu), so that outputs
// leave in runs of 128 bytes: all columns of a token side by side, 16 bytes a thread. That is an item: kOut outputs of one token from
// kIn weight rows.
#pragma once

#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/tma.cuh"
#include "kernels/cuda/device/vec.cuh"
#include "kernels/cuda/device/warp.cuh"
#include "kernels/cuda/gemm_tiles.h"

namespace phalanx::kernels::cuda {

constexpr int kGroup = 128;      // threads of a warpgroup
constexpr int kGroupRows = 64;   // weight rows of one
constexpr int kGroups = 2;       // that multiply
constexpr int kPartTokens = 32;  // that go through shared memory together
// From one token to the next in shared memory, f32: the four more spread a warp's stores over the banks.
constexpr int kPartPitch = kGroupRows + 4;
constexpr int kSplitPitch = kGroups * kGroupRows + 4;

// With a quick division, good to 2 units in the last place of f32.
__device__ __forceinline__ float FastSilu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// Tokens [start, start + kTokens) are in a tile; its own are [start + from, start + to). The last tile begins early rather than read past
// the end of x: the copy engine takes four times as long for a row that is not there.
struct TileTokens {
  int start, from, to;
};

template <class Out, bool kSilu>
struct Outputs {
  static constexpr int kOut = 16 / static_cast<int>(sizeof(Out)), kIn = kSilu ? 2 * kOut : kOut, kAcross = kGroupRows / kIn;
  using Item = Pack<Out, kOut>;

  // Item `i` of the tokens from `first` of a tile, 64 weight rows from `row`.
  struct Place {
    Out* to;
    int token, at;  // in the tile; weight row after `row`
    int left;       // outputs of the row from here, at most 0 if nothing is to be written
    bool whole;     // 16 bytes that are aligned
  };
  static __device__ __forceinline__ Place At(const TilesParams& p, int i, int row, const TileTokens& tokens, int first) {
    Place place;
    place.token = first + i / kAcross, place.at = i % kAcross * kIn;
    const int column = (row + place.at) / (kSilu ? 2 : 1), columns = kSilu ? p.n / 2 : p.n;
    place.left = place.token >= tokens.from && place.token < tokens.to ? columns - column : 0;
    place.to = static_cast<Out*>(p.out) + (tokens.start + place.token) * p.out_stride + column;
    place.whole = p.wide && place.left >= kOut;
    return place;
  }

  // What is there before, for the residual add; not defined unless that reads it.
  static __device__ __forceinline__ Item Before(const TilesParams& p, const Place& place) {
    Item before{};
    if (!kSilu && p.add && place.whole) before = LoadPack<Out, kOut>(place.to);
    return before;
  }

  // sums(j): four sums of the item's token from weight row at + j.
  template <class Sums>
  static __device__ __forceinline__ void Write(const TilesParams& p, const Place& place, const Item& before, const Sums& sums) {
    if (place.left <= 0) return;
    float values[kOut];
#pragma unroll
    for (int j = 0; j < kIn; j += 4) {
      const float4 four = sums(j);
      if constexpr (kSilu) {
        values[j / 2] = FastSilu(four.x) * four.y;
        values[j / 2 + 1] = FastSilu(four.z) * four.w;
      } else {
        values[j] = four.x, values[j + 1] = four.y, values[j + 2] = four.z, values[j + 3] = four.w;
      }
    }
    if (place.whole) {
      Item result;
#pragma unroll
      for (int j = 0; j < kOut; ++j) result.v[j] = FromFloat<Out>(!kSilu && p.add ? ToFloat(before.v[j]) + values[j] : values[j]);
      StorePack(place.to, result);
      return;
    }
#pragma unroll
    for (int j = 0; j < kOut; ++j) {
      if (j < place.left) place.to[j] = FromFloat<Out>(!kSilu && p.add ? ToFloat(place.to[j]) + values[j] : values[j]);
    }
  }
};

// The bias of this thread's two weight rows of 64 from `row`: lane / 4 of its warp's 16, and 8 after.
struct RowBias {
  float v[2] = {0, 0};
  __device__ __forceinline__ RowBias(const TilesParams& p, int row) {
    for (int h = 0; h < 2; ++h) {
      if (p.bias != nullptr && row + 8 * h < p.n) v[h] = p.bias[row + 8 * h];
    }
  }
};
// This thread's first weight row of a warpgroup's 64, and its first token of eight.
__device__ __forceinline__ int OwnRow() { return static_cast<int>(threadIdx.x) % kGroup / kWarp * 16 + threadIdx.x % kWarp / 4; }
__device__ __forceinline__ int OwnToken() { return static_cast<int>(threadIdx.x) % 4 * 2; }

// r[i] of lane h becomes r[h] of lane i, h = lane / 8, among the four lanes with the same lane % 8.
__device__ __forceinline__ void Transpose4(uint32_t (&r)[4]) {
#pragma unroll
  for (int bit = 1; bit < 4; bit *= 2) {
    const bool upper = (static_cast<int>(threadIdx.x) % kWarp / 8 & bit) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & bit) != 0) continue;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? r[i] : r[i + bit], 8 * bit);
      if (upper) r[i] = got;
      else r[i + bit] = got;
    }
  }
}

// The outputs of a warpgroup's sums with silu * up, all 64 rows there and 16 bytes aligned: without shared memory and without a wait, since
// here are most of all outputs. Gate and up of a pair are four lanes apart: each of the two finishes one of two tokens. Then four lanes
// exchange columns for tokens, so that each has eight columns of one token.
template <int kTokens>
__device__ __forceinline__ void WriteSilu(const TilesParams& p, const float (&sums)[kTokens / 2], int row, const TileTokens& tokens) {
  const int lane = threadIdx.x % kWarp, own_token = lane / 8 * 8 + OwnToken() + lane / 4 % 2;
  const bool odd = lane / 4 % 2 != 0;
  const RowBias bias(p, row + OwnRow());
  bf16* to = static_cast<bf16*>(p.out) + tokens.start * p.out_stride + (row + OwnRow() / 16 * 16) / 2;
#pragma unroll
  for (int first = 0; first < kTokens; first += 32) {
    if (first >= tokens.to) break;
    uint32_t outputs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float values[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {  // rows of the lane, 8 apart
        const float one = sums[(first / 8 + j) * 4 + 2 * h] + bias.v[h], two = sums[(first / 8 + j) * 4 + 2 * h + 1] + bias.v[h];
        const float got = __shfl_xor_sync(0xffffffffu, odd ? one : two, 4);
        values[h] = FastSilu(odd ? got : one) * (odd ? two : got);
      }
      outputs[j] = PackPair(values[0], values[1]);
    }
    Transpose4(outputs);
    const int token = first + own_token;
    if (token < tokens.from || token >= tokens.to) continue;
    *reinterpret_cast<uint4*>(to + token * p.out_stride) =
        make_uint4(__byte_perm(outputs[0], outputs[1], 0x5410), __byte_perm(outputs[2], outputs[3], 0x5410),
                   __byte_perm(outputs[0], outputs[1], 0x7632), __byte_perm(outputs[2], outputs[3], 0x7632));
  }
}

// The outputs of a warpgroup's sums. parts: two of [kPartTokens, kPartPitch] f32; `turn` says which one is free.
template <int kTokens, class Out, bool kSilu>
__device__ __forceinline__ void WriteOutputs(const TilesParams& p, const float (&sums)[kTokens / 2], float* parts, int* turn, int group,
                                             int row, const TileTokens& tokens) {
  if constexpr (kSilu) {
    if (p.wide && row + kGroupRows <= p.n) {
      WriteSilu<kTokens>(p, sums, row, tokens);
      return;
    }
  }
  using O = Outputs<Out, kSilu>;
  constexpr int kItems = kPartTokens * O::kAcross / kGroup;
  const int thread = static_cast<int>(threadIdx.x) % kGroup, own = OwnRow(), pair = OwnToken();
  const RowBias bias(p, row + own);
  typename O::Item before[kItems];
  const auto look_ahead = [&](int first) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) before[i] = O::Before(p, O::At(p, thread + i * kGroup, row, tokens, first));
  };
  look_ahead(0);
#pragma unroll
  for (int first = 0; first < kTokens; first += kPartTokens) {
    if (first >= tokens.to) break;
    float* part = parts + *turn * kPartTokens * kPartPitch;
    *turn ^= 1;
#pragma unroll
    for (int j = 0; j < kPartTokens / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        part[(8 * j + pair + e % 2) * kPartPitch + own + e / 2 * 8] = sums[(first / 8 + j) * 4 + e] + bias.v[e / 2];
      }
    }
    NamedSync(1 + group, kGroup);
    typename O::Item now[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) now[i] = before[i];
    if (first + kPartTokens < kTokens) look_ahead(first + kPartTokens);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const typename O::Place place = O::At(p, thread + i * kGroup, row, tokens, first);
      const float* from = part + (place.token - first) * kPartPitch + place.at;
      O::Write(p, place, now[i], [&](int j) { return *reinterpret_cast<const float4*>(from + j); });
    }
  }
}

// ---- parts of a tile that other units have -------------------------------------------------------------------------

// Sums of a thread in memory: [CTAs][groups][kTokens / 8][kGroup] float4.
template <int kTokens>
__device__ __forceinline__ float4* PartialOf(const TilesParams& p, int cta, int group) {
  return p.partial + (static_cast<int64_t>(cta) * kGroups + group) * (kTokens / 8) * kGroup + threadIdx.x % kGroup;
}

template <int kTokens>
__device__ __forceinline__ void HandOver(const TilesParams& p, const float (&sums)[kTokens / 2], int group) {
  float4* to = PartialOf<kTokens>(p, blockIdx.x, group);
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    __stcg(to + j * kGroup, make_float4(sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]));
  }
  NamedSync(1 + group, kGroup);
  if (threadIdx.x % kGroup == 0) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;\n" ::"l"(p.flags + blockIdx.x * kGroups + group), "r"(1) : "memory");
  }
}

// Adds what the CTAs cta_of(1) ... cta_of(count) handed over, in this order, and clears their flags.
template <int kTokens, class CtaOf>
__device__ __forceinline__ void TakeOver(const TilesParams& p, float (&sums)[kTokens / 2], int group, int count, const CtaOf& cta_of) {
  for (int i = 1 + static_cast<int>(threadIdx.x) % kGroup; i <= count; i += kGroup) {
    uint32_t* flag = p.flags + cta_of(i) * kGroups + group;
    uint32_t there = 0;
    while (there == 0) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(there) : "l"(flag) : "memory");
    *flag = 0;
  }
  NamedSync(1 + group, kGroup);
  for (int i = 1; i <= count; ++i) {
    const float4* from = PartialOf<kTokens>(p, cta_of(i), group);
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      const float4 v = __ldcg(from + j * kGroup);
      sums[4 * j] += v.x, sums[4 * j + 1] += v.y, sums[4 * j + 2] += v.z, sums[4 * j + 3] += v.w;
    }
  }
}

// ---- parts of a tile that the CTAs of a cluster have ----------------------------------------------------------------

// Leaves the sums at `shared` [kTokens, kSplitPitch] f32 for the cluster. The first CTA adds the bias.
template <int kTokens>
__device__ __forceinline__ void LeaveForCluster(const TilesParams& p, const float (&sums)[kTokens / 2], float* shared, int rank, int group,
                                                int row) {
  const int own = OwnRow(), pair = OwnToken();
  RowBias bias(p, row + own);
  if (rank != 0) bias.v[0] = bias.v[1] = 0;
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      shared[(8 * j + pair + e % 2) * kSplitPitch + group * kGroupRows + own + e / 2 * 8] = sums[4 * j + e] + bias.v[e / 2];
    }
  }
}

// Writes this CTA's share of the tokens: the sums of all CTAs of the cluster, added in the order of their ranks.
template <int kTokens, class Out, bool kSilu>
__device__ __forceinline__ void WriteFromCluster(const TilesParams& p, uint32_t shared, int rank, int group, int row,
                                                 const TileTokens& tokens) {
  using O = Outputs<Out, kSilu>;
  const int share = kTokens / p.cluster, thread = static_cast<int>(threadIdx.x) % kGroup;
  for (int i = thread; i < share * O::kAcross; i += kGroup) {
    const typename O::Place place = O::At(p, i, row, tokens, rank * share);
    const typename O::Item before = O::Before(p, place);
    O::Write(p, place, before, [&](int j) {
      const uint32_t from = shared + (place.token * kSplitPitch + group * kGroupRows + place.at + j) * 4;
      float4 parts[kMostSplit];
#pragma unroll
      for (int s = 0; s < kMostSplit; ++s) parts[s] = s < p.cluster ? LoadFromCluster(PlaceAt(from, s)) : float4{0, 0, 0, 0};
      float4 sum = parts[0];
#pragma unroll
      for (int s = 1; s < kMostSplit; ++s) sum.x += parts[s].x, sum.y += parts[s].y, sum.z += parts[s].z, sum.w += parts[s].w;
      return sum;
    });
  }
}

}  // namespace phalanx::kernels::cuda
