// The choices of the matrix products: every weight row is computed once, buffers hold, limits are kept. Needs no GPU.
#include "kernels/cuda/gemm_config.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace phalanx::kernels::cuda {
namespace {

TEST(GemmConfig, TheWayFollowsDtypeAlignmentAndRows) {
  const auto way = [](int64_t m, int64_t k, DType x, DType weight, bool aligned, bool tiles = false) {
    return ChooseWay({m, 1536, k, x, weight, aligned, tiles});
  };
  EXPECT_EQ(way(0, 1536, kBF16, kBF16, true), ProductWay::kNothing);
  EXPECT_EQ(way(1, 1536, kBF16, kBF16, true), ProductWay::kStream);
  EXPECT_EQ(way(kSmallRows, 1536, kBF16, kBF16, true), ProductWay::kStream);
  EXPECT_EQ(way(kSmallRows + 1, 1536, kBF16, kBF16, true), ProductWay::kLibrary);
  EXPECT_EQ(way(kSmallRows, 1536, kBF16, kBF16, true, true), ProductWay::kStream);
  EXPECT_EQ(way(kSmallRows + 1, 1536, kBF16, kBF16, true, true), ProductWay::kTiles);
  EXPECT_EQ(way(kSmallRows + 1, 1537, kBF16, kBF16, true, true), ProductWay::kPlainTiles);
  EXPECT_EQ(way(kSmallRows + 1, 1536, kBF16, kBF16, false, true), ProductWay::kPlainTiles);
  EXPECT_EQ(way(1, 1537, kBF16, kBF16, true), ProductWay::kPlainRows);
  EXPECT_EQ(way(1, 1536, kBF16, kBF16, false), ProductWay::kPlainRows);
  EXPECT_EQ(way(1, 1536, kF32, kBF16, true), ProductWay::kPlainRows);
  EXPECT_EQ(way(kPlainRows + 1, 1536, kF32, kF32, true), ProductWay::kPlainTiles);
  EXPECT_EQ(ChooseWay({1, 1536, 1536, kBF16, kBF16, true, false, false}), ProductWay::kPlainRows);
  EXPECT_EQ(ChooseWay({64, 1536, 1536, kBF16, kBF16, true, false, false}), ProductWay::kPlainTiles);
}

constexpr StreamDevice kH100{132, 227 * 1024};

TEST(GemmConfig, TheStreamCoversEveryRowWithinTheKernelsLimits) {
  for (const StreamDevice& device : {StreamDevice{1, 99 * 1024}, {78, 163 * 1024}, kH100}) {
    for (int64_t m = 1; m <= kSmallRows; ++m) {
      for (int64_t n : {1, 2, 7, 16, 98, 576, 1536, 2048, 17920, 151936, 1 << 20}) {
        for (int64_t k : {8, 64, 576, 1536, 3584, 8960, 18944}) {
          for (bool norm : {false, true}) {
            if (norm && !StreamTakesNorm(m, k, device)) continue;
            const StreamConfig c = ChooseStream(m, n, k, norm, device);
            int64_t most = 0;
            ASSERT_EQ(StreamFirstRow(0, c.ctas, static_cast<int>(n)), 0);
            ASSERT_EQ(StreamFirstRow(c.ctas, c.ctas, static_cast<int>(n)), n);
            for (int i = 0; i < c.ctas; ++i) {
              const int first = StreamFirstRow(i, c.ctas, static_cast<int>(n)), next = StreamFirstRow(i + 1, c.ctas, static_cast<int>(n));
              ASSERT_LT(first, next);     // no idle CTA
              ASSERT_EQ(first % 2, 0);    // gate and up stay together
              most = std::max<int64_t>(most, next - first);
            }
            ASSERT_TRUE(c.stages == kStreamDeep || c.stages == kStreamShallow);
            ASSERT_GE(c.slots, 1);
            ASSERT_LE(c.slots, c.stages);
            // A ring shorter than its stages never wraps: it holds all units of every warp.
            if (c.slots < c.stages || c.brief) {
              ASSERT_GE(c.slots * kStreamWarps, (most + kStreamTile - 1) / kStreamTile * StreamUnits(k));
            }
            ASSERT_LE(c.shared_bytes, device.shared_bytes);
          }
        }
      }
    }
  }
}

TEST(GemmConfig, StreamsThatFollowEachOtherShareAnSm) {
  constexpr int kSm = 228 * 1024, kSystem = 1024;
  const auto bytes = [](int64_t m, int64_t n, int64_t k, bool norm) { return ChooseStream(m, n, k, norm, kH100).shared_bytes + kSystem; };
  for (int64_t m : {1, 8}) {
    const int qkv = bytes(m, 2048, 1536, true), o = bytes(m, 1536, 1536, false), gate_up = bytes(m, 17920, 1536, true);
    const int down = bytes(m, 1536, 8960, false);
    EXPECT_LE(gate_up + down, kSm) << m;
    EXPECT_GT(2 * gate_up, kSm) << m;  // and never two of these
    EXPECT_LE(o + gate_up, kSm) << m;
    EXPECT_LE(down + qkv, kSm) << m;
  }
  EXPECT_LE(bytes(1, 37888, 3584, true) + bytes(1, 3584, 18944, false), kSm);
  EXPECT_TRUE(ChooseStream(1, 2048, 1536, true, kH100).brief);
  EXPECT_TRUE(ChooseStream(1, 1536, 1536, false, kH100).brief);
  EXPECT_FALSE(ChooseStream(1, 17920, 1536, true, kH100).brief);
  EXPECT_FALSE(ChooseStream(1, 1536, 8960, false, kH100).brief);
  EXPECT_EQ(ChooseStream(1, 17920, 1536, true, kH100).ctas, 132);
}

TEST(GemmConfig, TheNormIsFusedWhereItsRowsFit) {
  EXPECT_TRUE(StreamTakesNorm(16, 1536, kH100));
  EXPECT_TRUE(StreamTakesNorm(8, 3584, kH100));
  EXPECT_FALSE(StreamTakesNorm(16, 8192, kH100));
  EXPECT_FALSE(StreamTakesNorm(17, 64, kH100));
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
