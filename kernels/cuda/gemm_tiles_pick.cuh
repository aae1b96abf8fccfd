// kernels/cuda/gemm_tiles_pick.cuh: the tile kernel of one width, by its cluster and what it writes.
// Refuses to know: which is best. Thread: host code. Neighbours: gemm_tiles_small.cu and gemm_tiles_large.cu share the widths, so that two
// compilers can work at a time.
#pragma once

#include "kernels/cuda/gemm_tiles.cuh"

namespace phalanx::kernels::cuda {

template <int kTokens, TileCluster kCluster>
TilesKernel KernelOf(TilesOut out) {
  constexpr int kBytes = TilesLayout<kTokens>::kBytes;
  switch (out) {
    case TilesOut::kBf16: return {reinterpret_cast<const void*>(&Tiles<kTokens, kCluster, bf16, false>), kBytes};
    case TilesOut::kBf16Silu: return {reinterpret_cast<const void*>(&Tiles<kTokens, kCluster, bf16, true>), kBytes};
    case TilesOut::kF32: return {reinterpret_cast<const void*>(&Tiles<kTokens, kCluster, float, false>), kBytes};
  }
  return {};
}

template <int kTokens>
TilesKernel KernelOf(TileCluster kind, TilesOut out) {
  switch (kind) {
    case TileCluster::kNone: return KernelOf<kTokens, TileCluster::kNone>(out);
    case TileCluster::kPair:
      if constexpr (kTokens >= kFewestPairTokens) return KernelOf<kTokens, TileCluster::kPair>(out);
      break;
    case TileCluster::kSplit:
      if constexpr (kTokens <= kMostSplitTokens) return KernelOf<kTokens, TileCluster::kSplit>(out);
      break;
  }
  return {};
}

}  // namespace phalanx::kernels::cuda
