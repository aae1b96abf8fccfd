// kernels/cuda/gemm_tiles.h: launches of the Hopper kernels of gemm_tiles.cuh: tensor maps, shared memory, the grid.
// Refuses to know: which products they take (gemm_config.h). Thread: the device's. Neighbours: gemm.cc; gemm_tiles_*.cu hold the kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_tiles_config.h"
#include "kernels/kernels.h"

namespace phalanx::kernels::cuda {

// What a kernel reads beside the two matrices.
struct TilesParams {
  float4* partial;     // sums of parts of tiles: one a CTA, see TilesPartialBytes
  uint32_t* flags;     // [CTAs, 2], zero before and after
  const float* bias;   // [n] or null
  void* out;           // [m, n] or [m, n / 2]
  int64_t out_stride;  // elements
  int m, n;
  int k_blocks;        // of kTileK, the last may be short
  int weight_units, token_tiles;
  int group_tokens;    // token tiles that are taken together
  int cluster;         // CTAs of a unit
  int units, whole_tiles, shared_blocks;
  bool add;            // out += product
  bool wide;           // rows of out start at multiples of 16 bytes
};

constexpr int kTilesThreads = 384;

enum class TilesOut { kBf16, kBf16Silu, kF32 };

struct TilesKernel {
  const void* function;  // null: there is no such kernel
  int shared_bytes;
};
// gemm_tiles_small.cu, gemm_tiles_large.cu: tokens up to 128, and from 160.
TilesKernel SmallTilesKernel(int tokens, TileCluster kind, TilesOut out);
TilesKernel LargeTilesKernel(int tokens, TileCluster kind, TilesOut out);

// Whether this build and this card have the kernels.
bool TilesSupported(const Device* device);
// Whether a product of bf16 values with aligned rows can take them: dtypes of out, sizes.
bool TilesTake(const ProductArgs& args);
// args and config must fit: TilesSupported, TilesTake, and a config of ChooseTiles or TileChoices for its m, n, k.
Code LaunchTiles(Device* device, const ProductArgs& args, const TileConfig& config, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda
