#include "kernels/cuda/gemm_tiles_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace phalanx::kernels::cuda {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

std::vector<TileConfig> TileChoices(int64_t m, int64_t n, int64_t k, int sm_count) {
  std::vector<TileConfig> choices;
  const int64_t blocks = CeilDiv(k, kTileK);
  for (int tokens = 32; tokens <= kMostTokens && tokens < m + 32; tokens += 32) {
    const int64_t token_tiles = CeilDiv(m, tokens);
    const auto add = [&](TileCluster kind, int cluster, int64_t units, int64_t whole) {
      const int64_t weight_units = CeilDiv(n, kind == TileCluster::kPair ? 2 * kTileRows : kTileRows), tiles = weight_units * token_tiles;
      choices.push_back({tokens, kind, cluster, static_cast<int>(units), static_cast<int>(weight_units), static_cast<int>(token_tiles),
                         static_cast<int>(whole), static_cast<int>((tiles - whole) * blocks)});
    };
    for (const auto& [kind, cluster] : {std::pair{TileCluster::kNone, 1}, {TileCluster::kPair, 2}}) {
      const int64_t most = sm_count / cluster, tiles = CeilDiv(n, cluster * kTileRows) * token_tiles;
      if (most == 0 || (kind == TileCluster::kPair && (tokens < kFewestPairTokens || m < tokens))) continue;
      add(kind, cluster, std::min(tiles, most), tiles);
      if (m > kMostSharedRows) continue;
      if (tiles > most && tiles % most != 0) add(kind, cluster, most, (tiles / most - 1) * most);
      for (int64_t parts = 2; parts <= 3 && tiles * parts <= most && parts <= blocks; ++parts) add(kind, cluster, tiles * parts, 0);
      if (tiles < most && most % tiles != 0 && tiles * blocks >= most) add(kind, cluster, most, 0);
    }
    const int64_t tiles = CeilDiv(n, kTileRows) * token_tiles;
    // A cluster lies inside a group of some 16 SMs: the last eighth of the SMs may find no room for one.
    for (int cluster = 2; cluster <= kMostSplit && tokens <= kMostSplitTokens; cluster *= 2) {
      if (tiles * cluster <= sm_count * 7 / 8 && cluster <= blocks) add(TileCluster::kSplit, cluster, tiles, tiles);
    }
  }
  return choices;
}

double TileCost(const TileConfig& c, int64_t m, int64_t n, int64_t k, bool silu) {
  const bool pair = c.kind == TileCluster::kPair;
  const double blocks = static_cast<double>(CeilDiv(k, kTileK)), tokens = c.tokens, copied = std::min(static_cast<double>(m), tokens);
  // A block of k: tensor cores, or the copies into shared memory.
  const double copy = kTileRows * kTileK * 2 + copied * kTileK * (pair ? 1 : 2);
  double block = std::max(0.0034 * tokens, 0.001 + copy / (pair ? 55.4e3 : 113.4e3));
  if (c.kind == TileCluster::kNone && m >= 512) block *= 1.05;
  const double write = silu ? 0.82 : 0.03 + 0.011 * copied;
  double work = 0;
  if (c.kind == TileCluster::kSplit) {
    work = std::ceil(blocks / c.cluster) * block + 1.17 + 0.007 * tokens + c.cluster * (0.21 + 0.0029 * tokens);
  } else {
    work = std::ceil(static_cast<double>(c.whole_tiles) / c.units) * (blocks * block + write);
    if (c.shared_blocks > 0) {
      const double share = std::ceil(static_cast<double>(c.shared_blocks) / c.units), parts = std::ceil(blocks / share);
      work += share * block + write + 0.76 + 0.0038 * tokens + parts * (0.56 + 0.0032 * tokens);
    }
  }
  const double memory = static_cast<double>(n * k * 2 + m * k * 2) / 2.57e6;
  return std::pow(std::pow(work, 4) + std::pow(memory, 4), 0.25) + 1.5;  // the longer one, and a little of the other
}

TileConfig ChooseTiles(int64_t m, int64_t n, int64_t k, bool silu, int sm_count) {
  const std::vector<TileConfig> choices = TileChoices(m, n, k, sm_count);
  return *std::min_element(choices.begin(), choices.end(), [&](const TileConfig& a, const TileConfig& b) {
    return TileCost(a, m, n, k, silu) < TileCost(b, m, n, k, silu);
  });
}

bool TilesWin(int64_t m, int64_t n, int64_t k, Epilogue epilogue, bool bias, DType out) {
  if (out == kF32 || (bias && epilogue != kEpilogueNone)) return true;
  if (epilogue == kEpilogueSiluMul) return m <= 128 || m >= 768;
  return m <= (bias || k > 4 * n ? 64 : 40);
}

}  // namespace phalanx::kernels::cuda
