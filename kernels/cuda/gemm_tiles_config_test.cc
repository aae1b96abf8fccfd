// The cuts of the tile kernels: every block of every tile has one unit, limits are kept, the choice fits an H100. Needs no GPU.
#include "kernels/cuda/gemm_tiles_config.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace phalanx::kernels::cuda {
namespace {

void ExpectCovers(const TileConfig& c, int64_t m, int64_t n, int64_t k, int sm_count) {
  const int64_t blocks = (k + kTileK - 1) / kTileK, tiles = int64_t{c.weight_units} * c.token_tiles;
  ASSERT_EQ(c.tokens % 32, 0);
  ASSERT_LE(c.tokens, kMostTokens);
  ASSERT_GE(int64_t{c.token_tiles} * c.tokens, m);
  ASSERT_LT(int64_t{c.token_tiles - 1} * c.tokens, m);
  ASSERT_GE(int64_t{c.weight_units} * kTileRows * (c.kind == TileCluster::kPair ? 2 : 1), n);
  ASSERT_LT(int64_t{c.weight_units - 1} * kTileRows * (c.kind == TileCluster::kPair ? 2 : 1), n);
  ASSERT_GE(c.units, 1);
  ASSERT_LE(c.ctas(), sm_count);                                    // all run at once
  ASSERT_EQ(c.shared_blocks, (tiles - c.whole_tiles) * blocks);
  ASSERT_TRUE(c.whole_tiles == tiles || c.whole_tiles % c.units == 0);  // units reach the shared blocks together
  if (c.shared_blocks > 0) {
    ASSERT_LE(m, kMostSharedRows);
    ASSERT_GE(c.shared_blocks, c.units);                            // no unit without a block
  }
  if (c.kind == TileCluster::kSplit) {
    ASSERT_EQ(c.units, tiles);                                      // one tile a cluster
    ASSERT_EQ(c.shared_blocks, 0);
    ASSERT_LE(c.cluster, std::min<int64_t>(blocks, kMostSplit));    // no CTA without a block
    ASSERT_EQ(c.tokens % c.cluster, 0);
  }
  if (c.kind == TileCluster::kPair) {
    ASSERT_LE(c.tokens, m);
  }
  ASSERT_LE(TilesPartialBytes(c), int64_t{20} << 20);
}

TEST(GemmTilesConfig, EveryChoiceCoversTheProduct) {
  for (int sm_count : {2, 78, 114, 132}) {
    for (int64_t m : {17, 32, 33, 64, 100, 256, 257, 2048, 5000}) {
      for (int64_t n : {1, 129, 1536, 2048, 17920, 151936}) {
        for (int64_t k : {8, 72, 1536, 8960}) {
          const std::vector<TileConfig> choices = TileChoices(m, n, k, sm_count);
          for (const TileConfig& c : choices) ASSERT_NO_FATAL_FAILURE(ExpectCovers(c, m, n, k, sm_count));
          for (bool silu : {false, true}) {
            const TileConfig chosen = ChooseTiles(m, n, k, silu, sm_count);
            ASSERT_NE(std::find(choices.begin(), choices.end(), chosen), choices.end());
            for (const TileConfig& c : choices) ASSERT_LE(TileCost(chosen, m, n, k, silu), TileCost(c, m, n, k, silu));
          }
        }
      }
    }
  }
}

TEST(GemmTilesConfig, TheChoiceFitsAnH100) {
  const auto choose = [](int64_t m, int64_t n, int64_t k, bool silu) { return ChooseTiles(m, n, k, silu, 132); };
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{17920, 1536}, {37888, 3584}}) {
    const TileConfig many = choose(2048, n, k, true);  // a chunk of a prompt: whole tiles, copied once for two CTAs
    EXPECT_EQ(many.kind, TileCluster::kPair);
    EXPECT_EQ(many.shared_blocks, 0);
    EXPECT_GE(many.ctas(), 120);
    const TileConfig few = choose(64, n, k, true);  // a step of decoding: each weight is read once, by all SMs
    EXPECT_EQ(few.token_tiles, 1);
    EXPECT_EQ(few.ctas(), 132);
  }
  EXPECT_EQ(choose(64, 151936, 1536, false).token_tiles, 1);
  EXPECT_GE(choose(32, 1536, 8960, false).ctas(), 80);  // few tiles of long k are split
  EXPECT_GE(choose(64, 3584, 18944, false).ctas(), 100);
}

TEST(GemmTilesConfig, TheLibraryHasWhatItIsBetterAt) {
  const auto win = [](int64_t m, int64_t n, int64_t k, Epilogue epilogue, bool bias = false, DType out = kBF16) {
    return TilesWin(m, n, k, epilogue, bias, out);
  };
  for (int64_t m : {17, 32, 64, 128, 1024, 2048}) EXPECT_TRUE(win(m, 17920, 1536, kEpilogueSiluMul)) << m;
  for (int64_t m : {256, 512}) EXPECT_FALSE(win(m, 17920, 1536, kEpilogueSiluMul)) << m;
  for (int64_t m : {17, 256}) EXPECT_TRUE(win(m, 151936, 1536, kEpilogueNone, false, kF32)) << m;
  EXPECT_TRUE(win(64, 2048, 1536, kEpilogueNone, true));
  EXPECT_TRUE(win(64, 1536, 8960, kEpilogueAdd));
  EXPECT_FALSE(win(64, 1536, 1536, kEpilogueAdd));
  EXPECT_FALSE(win(256, 1536, 8960, kEpilogueAdd));
  EXPECT_TRUE(win(256, 1536, 8960, kEpilogueAdd, true));
  EXPECT_TRUE(win(256, 17920, 1536, kEpilogueSiluMul, true));
}

}  // namespace
}  // namespace phalanx::kernels::cuda
