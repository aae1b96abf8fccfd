// kernels/cuda/device/rope_head.cuh: one warp on one head of a qkv row: load, per-head norm, rotation, store.
// Refuses to know: grids, caches, which head it is. Thread: device code, all lanes of a warp together.
// Neighbours: rope.cu, attention_decode.cu.
//
// A lane holds pairs (i, i + rotary_dim / 2) and the values past rotary_dim, kN neighbours at a time, so that norm and rotation stay in
// registers. kN = 2 where every row is aligned to two values, which fills 128 bytes a load at head_dim 128.
#pragma once

#include "kernels/cuda/device/vec.cuh"
#include "kernels/cuda/device/warp.cuh"

namespace phalanx::kernels::cuda {

// A lane's part of a head of at most kMost values: pair p is (first[p], second[p]), rest[p] is not rotated.
template <int kN, int kMost>
struct HeadPart {
  static constexpr int kPairs = (kMost / 2 + kWarp * kN - 1) / (kWarp * kN);
  static constexpr int kRest = (kMost + kWarp * kN - 1) / (kWarp * kN);
  float first[kPairs][kN], second[kPairs][kN], rest[kRest][kN];
};

// Cosines and sines of a lane's pairs.
template <int kN, int kMost>
struct HeadAngles {
  float cosine[HeadPart<kN, kMost>::kPairs][kN], sine[HeadPart<kN, kMost>::kPairs][kN];
};

// What all heads of a launch share. half = rotary_dim / 2.
struct HeadShape {
  int half, head_dim;
};

// Calls `fn(values, index in the head)` for each pack of a lane.
template <int kN, int kMost, class Fn>
__device__ __forceinline__ void ForPacks(HeadPart<kN, kMost>& part, const HeadShape& shape, int lane, Fn fn) {
#pragma unroll
  for (int p = 0; p < HeadPart<kN, kMost>::kPairs; ++p) {
    const int at = (lane + p * kWarp) * kN;
    if (at >= shape.half) continue;
    fn(part.first[p], at);
    fn(part.second[p], at + shape.half);
  }
#pragma unroll
  for (int p = 0; p < HeadPart<kN, kMost>::kRest; ++p) {
    const int at = 2 * shape.half + (lane + p * kWarp) * kN;
    if (at < shape.head_dim) fn(part.rest[p], at);
  }
}

template <class T, int kN, int kMost>
__device__ __forceinline__ void LoadHead(HeadPart<kN, kMost>& part, const HeadShape& shape, int lane, const T* from) {
  ForPacks(part, shape, lane, [&](float* x, int at) {
    const Pack<T, kN> pack = LoadPack<T, kN>(from + at);
#pragma unroll
    for (int i = 0; i < kN; ++i) x[i] = ToFloat(pack.v[i]);
  });
}

template <class T, int kN, int kMost>
__device__ __forceinline__ void NormHead(HeadPart<kN, kMost>& part, const HeadShape& shape, int lane, const T* gamma, float epsilon) {
  float squares = 0;
  ForPacks(part, shape, lane, [&](float* x, int) {
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += x[i] * x[i];
  });
  const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(shape.head_dim) + epsilon);
  ForPacks(part, shape, lane, [&](float* x, int at) {
    const Pack<T, kN> g = LoadPack<T, kN>(gamma + at);
#pragma unroll
    for (int i = 0; i < kN; ++i) x[i] = Rounded<T>(Rounded<T>(x[i] * scale) * ToFloat(g.v[i]));
  });
}

// `from` [rotary_dim]: cosines, then sines.
template <int kN, int kMost>
__device__ __forceinline__ HeadAngles<kN, kMost> LoadAngles(const HeadShape& shape, int lane, const float* from) {
  HeadAngles<kN, kMost> angles;
#pragma unroll
  for (int p = 0; p < HeadPart<kN, kMost>::kPairs; ++p) {
    const int at = (lane + p * kWarp) * kN;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      angles.cosine[p][i] = at < shape.half ? from[at + i] : 0.0f;
      angles.sine[p][i] = at < shape.half ? from[shape.half + at + i] : 0.0f;
    }
  }
  return angles;
}

// Turns each pair by its angle.
template <int kN, int kMost>
__device__ __forceinline__ void Rotate(HeadPart<kN, kMost>& part, const HeadAngles<kN, kMost>& angles, const HeadShape& shape, int lane) {
#pragma unroll
  for (int p = 0; p < HeadPart<kN, kMost>::kPairs; ++p) {
    if ((lane + p * kWarp) * kN >= shape.half) continue;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float cosine = angles.cosine[p][i], sine = angles.sine[p][i], a = part.first[p][i], b = part.second[p][i];
      part.first[p][i] = a * cosine - b * sine;
      part.second[p][i] = b * cosine + a * sine;
    }
  }
}

// Rounds to the model dtype T, then to what is stored.
template <class T, class To, int kN, int kMost>
__device__ __forceinline__ void StoreHead(HeadPart<kN, kMost>& part, const HeadShape& shape, int lane, To* to) {
  ForPacks(part, shape, lane, [&](float* x, int at) {
    Pack<To, kN> pack;
#pragma unroll
    for (int i = 0; i < kN; ++i) pack.v[i] = FromFloat<To>(Rounded<T>(x[i]));
    StorePack(to + at, pack);
  });
}

}  // namespace phalanx::kernels::cuda
