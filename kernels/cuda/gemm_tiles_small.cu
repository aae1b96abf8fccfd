// The tile kernels of gemm_tiles.cuh for 32 to 128 tokens a tile.
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

TilesKernel SmallTilesKernel(int tokens, TileCluster kind, TilesOut out) {
  switch (tokens) {
    case 32: return KernelOf<32>(kind, out);
    case 64: return KernelOf<64>(kind, out);
    case 96: return KernelOf<96>(kind, out);
    case 128: return KernelOf<128>(kind, out);
    default: return {};
  }
}

}  // namespace phalanx::kernels::cuda
