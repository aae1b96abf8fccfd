// The choices of the matrix products: every weight row is computed once, buffers hold, limits are kept. Needs no GPU.
#include "kernels/cuda/gemm_config.h"

#include <gtest/gtest.h>

namespace phalanx::kernels::cuda {
namespace {

TEST(GemmConfig, TheWayFollowsDtypeAlignmentAndRows) {
  const auto way = [](int64_t m, int64_t k, DType x, DType weight, bool aligned) { return ChooseWay({m, 1536, k, x, weight, aligned}); };
  EXPECT_EQ(way(0, 1536, kBF16, kBF16, true), ProductWay::kNothing);
  EXPECT_EQ(way(1, 1536, kBF16, kBF16, true), ProductWay::kStream);
  EXPECT_EQ(way(kSmallRows, 1536, kBF16, kBF16, true), ProductWay::kStream);
  EXPECT_EQ(way(kSmallRows + 1, 1536, kBF16, kBF16, true), ProductWay::kLibrary);
  EXPECT_EQ(way(1, 1537, kBF16, kBF16, true), ProductWay::kPlainRows);
  EXPECT_EQ(way(1, 1536, kBF16, kBF16, false), ProductWay::kPlainRows);
  EXPECT_EQ(way(1, 1536, kF32, kBF16, true), ProductWay::kPlainRows);
  EXPECT_EQ(way(kPlainRows + 1, 1536, kF32, kF32, true), ProductWay::kPlainTiles);
}

TEST(GemmConfig, TheStreamCoversEveryRowWithinTheKernelsLimits) {
  for (int sm_count : {1, 78, 132}) {
    for (int64_t m = 1; m <= kSmallRows; ++m) {
      for (int64_t n : {1, 2, 7, 16, 98, 576, 1536, 2048, 17920, 151936, 1 << 20}) {
        for (int64_t k : {8, 64, 576, 1536, 8960, 18944}) {
          const StreamConfig c = ChooseStream(m, n, k, sm_count);
          ASSERT_GE(static_cast<int64_t>(c.ctas) * c.rows, n);
          ASSERT_LT(static_cast<int64_t>(c.ctas - 1) * c.rows, n);  // no idle CTA
          ASSERT_EQ(c.rows % 2, 0);                                 // gate and up stay together
          ASSERT_TRUE(c.warps == 8 || c.warps == 16 || c.warps == 32);
          ASSERT_GE(c.warps * 32, m * kStreamTile);                // a thread an output
          ASSERT_LE(StreamSharedBytes(m, c.warps), 48 * 1024);     // shared memory without an opt-in
        }
      }
    }
  }
}

TEST(GemmConfig, TheStreamSpreadsDecodeShapesOverAnH100) {
  for (int64_t n : {1536, 2048, 17920, 151936}) {
    const StreamConfig c = ChooseStream(1, n, 1536, 132);
    const int64_t ctas_per_sm = (c.ctas + 131) / 132;
    const double even = static_cast<double>(n) / 132;
    EXPECT_LT(static_cast<double>(ctas_per_sm * c.rows), even * 1.04 + 2) << n;  // the busiest SM has about its share
    const int tiles = (c.rows + kStreamTile - 1) / kStreamTile;
    if (tiles > 1) {
      EXPECT_GT(c.rows, 0.9 * kStreamTile * tiles) << n;  // and few tiles that are nearly empty
    }
  }
}

TEST(GemmConfig, RowBucketsGrowByHalves) {
  EXPECT_EQ(RowBucket(1), 16);
  EXPECT_EQ(RowBucket(17), 24);
  EXPECT_EQ(RowBucket(25), 32);
  EXPECT_EQ(RowBucket(33), 48);
  for (int64_t m = 1, last = 0; m < 20000; ++m) {
    const int64_t bucket = RowBucket(m);
    ASSERT_GE(bucket, m);
    ASSERT_GE(bucket, last);
    ASSERT_EQ(RowBucket(bucket), bucket);
    if (m > 16) {
      ASSERT_LT(2 * bucket, 3 * m);
    }
    last = bucket;
  }
}

TEST(GemmConfig, AlignmentStopsAt256) {
  EXPECT_EQ(AlignmentOf(0), 256u);
  EXPECT_EQ(AlignmentOf(1024), 256u);
  EXPECT_EQ(AlignmentOf(48), 16u);
  EXPECT_EQ(AlignmentOf(3), 1u);
}

TEST(GemmConfig, ChunksFitAndAreEven) {
  EXPECT_EQ(ChunkRows(100, 1000, 100000), 100);
  EXPECT_EQ(ChunkRows(2048, 35840, 64 << 20), 1024);
  EXPECT_EQ(ChunkRows(4, 1000, 999), 0);
  for (int64_t m : {1, 17, 130, 1000, 8192}) {
    for (int64_t row_bytes : {2, 999, 35840, 1 << 20}) {
      const int64_t rows = ChunkRows(m, row_bytes, 64 << 20);
      ASSERT_GE(rows, 1);
      ASSERT_LE(rows * row_bytes, 64 << 20);
      ASSERT_LE(rows, m);
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels::cuda
