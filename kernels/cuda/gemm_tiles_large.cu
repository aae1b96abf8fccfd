// The tile kernels of gemm_tiles.cuh for 160 to 256 tokens a tile.
#include "kernels/cuda/gemm_tiles.cuh"

namespace phalanx::kernels::cuda {
namespace {

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

}  // namespace

TilesKernel LargeTilesKernel(int tokens, TileCluster kind, TilesOut out) {
  switch (tokens) {
    case 160: return KernelOf<160>(kind, out);
    case 192: return KernelOf<192>(kind, out);
    case 224: return KernelOf<224>(kind, out);
    case 256: return KernelOf<256>(kind, out);
    default: return {};
  }
}

}  // namespace phalanx::kernels::cuda
