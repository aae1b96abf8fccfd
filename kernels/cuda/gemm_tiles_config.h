// kernels/cuda/gemm_tiles_config.h: how the tile kernels cut a matrix product x [m, k] * weight [n, k]^T: pure choices from shapes.
// Refuses to know: CUDA, devices, pointers. Thread: any. Neighbours: gemm.cc and gemm_tiles.cc act on it; its test needs no GPU.
#pragma once

#include <compare>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace phalanx::kernels::cuda {

constexpr int kTileRows = 128;    // weight rows of a tile
constexpr int kTileK = 64;        // of k: a row of 128 bytes
constexpr int kMostTokens = 256;  // of a tile; a multiple of 32

// What the CTAs of a cluster share.
enum class TileCluster {
  kNone,   // a CTA is alone
  kPair,   // two take neighbouring weight tiles of the same tokens and copy them for each other
  kSplit,  // some share one tile's k
};
constexpr int kMostSplit = 8;
constexpr int kMostSplitTokens = 128;   // tiles that kernels with kSplit are built for
constexpr int kFewestPairTokens = 128;  // with kPair
// Most rows of x with which tiles are cut by k: more of x than the cache holds would be read at once, each CTA at its own place in k.
constexpr int kMostSharedRows = 256;

// Tile t is a run of weight rows x a run of tokens. A unit (a CTA, or the cluster) takes the tiles u, u + units, ... below whole_tiles,
// then its share of the blocks of k of all other tiles, cut at any block into equal parts.
struct TileConfig {
  int tokens;         // of a tile
  TileCluster kind;
  int cluster;        // CTAs of a unit: 1; 2; 2, 4 or 8
  int units;
  int weight_units;   // runs of kTileRows weight rows, of twice that with kPair
  int token_tiles;
  int whole_tiles;
  int shared_blocks;  // (weight_units * token_tiles - whole_tiles) * blocks of k; 0 with kSplit
  auto operator<=>(const TileConfig&) const = default;
  constexpr int ctas() const { return units * cluster; }
};

// Memory for sums of parts of tiles, f32.
constexpr int64_t TilesPartialBytes(const TileConfig& c) { return int64_t{c.ctas()} * kTileRows * c.tokens * 4; }

// Every way to cut a product, for measurements. m > 0.
std::vector<TileConfig> TileChoices(int64_t m, int64_t n, int64_t k, int sm_count);
// What one takes, in microseconds on an H100, by a model of its SMs, caches and memory that was fitted to measurements (gemm_bench.cc).
// silu: with kEpilogueSiluMul.
double TileCost(const TileConfig& config, int64_t m, int64_t n, int64_t k, bool silu);
// The cheapest by TileCost.
TileConfig ChooseTiles(int64_t m, int64_t n, int64_t k, bool silu, int sm_count);

// Whether the tiles are to be taken and not the library, by measurement on an H100 (gemm_bench.cc). With f32 out and with few rows they
// are quicker: they start while the kernel before ends. With silu * up too, which the library lacks, but for some hundred rows, where
// weight tiles fill one round of the SMs and a little of the next. A bias before another epilogue goes to them since the library's way
// would round what is before or after it to bf16.
bool TilesWin(int64_t m, int64_t n, int64_t k, Epilogue epilogue, bool bias, DType out);

}  // namespace phalanx::kernels::cuda
