// The tile kernels of gemm_tiles.cuh for 32 to 128 tokens a tile.
#include "kernels/cuda/gemm_tiles_pick.cuh"

namespace phalanx::kernels::cuda {

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
