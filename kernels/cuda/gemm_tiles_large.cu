// The tile kernels of gemm_tiles.cuh for 160 to 256 tokens a tile.
#include "kernels/cuda/gemm_tiles_pick.cuh"

namespace phalanx::kernels::cuda {

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
