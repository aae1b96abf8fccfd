#include "kernels/cuda/attention_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace phalanx::kernels::cuda {
namespace {

constexpr uint64_t kWorkspace = uint64_t{63} << 20, kCounters = uint64_t{1} << 20;
constexpr int kSms = 132;

AttentionShape Decode(int sequences, int context, int heads = 12, int kv_heads = 2) {
  return {sequences, sequences, heads, kv_heads, 128, 1, context, 0, kBF16, kBF16, true};
}
AttentionChoice Choose(const AttentionShape& shape) { return ChooseAttention(shape, kSms, kWorkspace, kCounters); }

TEST(AttentionConfig, TensorCoresNeedBf16AndAKnownHeadDim) {
  AttentionShape s = Decode(4, 1000);
  EXPECT_FALSE(Choose(s).plain);
  for (int head_dim : {8, 63, 65, 72, 112, 160, 256}) {
    s.head_dim = head_dim;
    EXPECT_TRUE(Choose(s).plain) << head_dim;
    EXPECT_FALSE(Choose(s).decode || Choose(s).prefill) << head_dim;
  }
  s = Decode(4, 1000), s.cache = kF32;
  EXPECT_TRUE(Choose(s).plain);
  s = Decode(4, 1000), s.q = kF32;
  EXPECT_TRUE(Choose(s).plain);
  s = Decode(4, 1000), s.aligned = false;
  EXPECT_TRUE(Choose(s).plain);
  s = Decode(4, 1000), s.tensor_cores = false;
  EXPECT_TRUE(Choose(s).plain);
}

TEST(AttentionConfig, EveryRowHasOneKernel) {
  AttentionShape s = Decode(4, 1000);
  EXPECT_TRUE(Choose(s).decode && !Choose(s).prefill);
  s.tokens = 40, s.max_query_length = 37;
  EXPECT_TRUE(Choose(s).decode && Choose(s).prefill);
  s.sequences = 1, s.tokens = 37;
  EXPECT_TRUE(!Choose(s).decode && Choose(s).prefill);
  s.tokens = 0;
  EXPECT_FALSE(Choose(s).decode || Choose(s).prefill || Choose(s).plain);
}

TEST(AttentionConfig, FewSequencesFillTheDeviceAndManyAreNotCut) {
  EXPECT_EQ(Choose(Decode(1, 1100)).splits, 9);      // parts of 128
  EXPECT_EQ(Choose(Decode(1, 100)).splits, 1);
  EXPECT_EQ(Choose(Decode(1, 131072)).splits, kMaxSplits);
  EXPECT_GE(Choose(Decode(64, 4096)).splits * 64 * 2, 2 * kSms);
  EXPECT_EQ(Choose(Decode(1024, 4096, 32, 8)).splits, 1);
  EXPECT_EQ(Choose(Decode(64, 400, 32, 8)).splits, 1);
  AttentionShape windowed = Decode(1, 131072);
  windowed.window = 128;
  EXPECT_EQ(Choose(windowed).splits, 1);
}

TEST(AttentionConfig, PartialsFitTheScratch) {
  for (int sequences : {1, 3, 17, 100, 255, 1000, 30000, 300000}) {
    for (auto [heads, kv_heads] : {std::pair{1, 1}, {12, 2}, {64, 1}, {32, 32}, {14, 2}, {60, 3}}) {
      const AttentionShape s = Decode(sequences, 100000, heads, kv_heads);
      const AttentionChoice c = Choose(s);
      ASSERT_GE(c.splits, 1);
      ASSERT_LE(c.splits, kMaxSplits);
      if (c.splits == 1) continue;
      EXPECT_LE(PartialBytes(sequences, heads, kv_heads, 128, c.splits), kWorkspace);
      EXPECT_LE(static_cast<uint64_t>(sequences) * kv_heads * GroupTiles(heads / kv_heads) * 4, kCounters);
    }
  }
}

TEST(AttentionConfig, ACutCoversTheContextOnce) {
  for (int most : {1, 2, 3, 7, 9, 32}) {
    for (const SplitRule& rule : {SplitRule{128, 132, 500, most}, SplitRule{256, 3, 9, most}, SplitRule{512, 1, 4, most}}) {
      int parts = 0;
      for (int length = 0; length < 9000; length = length < 300 ? length + 1 : length + 97) {
        const ContextCut cut = CutContext(length, rule);
        ASSERT_GE(cut.chunks, 1);
        ASSERT_LE(cut.chunks, std::max(1, PartsOf(length, rule))) << length;
        ASSERT_GE(PartsOf(length, rule), parts) << "a shorter context has more parts than the grid of a longer one";
        parts = PartsOf(length, rule);
        ASSERT_LE(parts, most);
        ASSERT_EQ(cut.tokens % kDecodeTurn, 0);
        ASSERT_GE(cut.chunks * cut.tokens, length);
        if (length > 0) {
          ASSERT_LT((cut.chunks - 1) * cut.tokens, length) << "an empty part";
        }
      }
    }
  }
}

TEST(AttentionConfig, PaddingDoesNotChangeACut) {
  for (auto [rows, padded] : {std::pair{3, 4}, {5, 8}, {9, 16}, {17, 24}, {33, 40}, {100, 104}, {250, 256}}) {
    for (int context : {1, 90, 600, 1025, 5000, 40000}) {
      const AttentionChoice own = Choose(Decode(rows, context)), other = Choose(Decode(padded, 65536));
      const ContextCut a = CutContext(context, own.rule), b = CutContext(context, other.rule);
      EXPECT_TRUE(a.chunks == b.chunks && a.tokens == b.tokens) << rows << " rows of " << context;
      EXPECT_LE(a.chunks, own.splits);
    }
  }
}

TEST(AttentionConfig, PrefillTilesAreEnoughForAllSequences) {
  const std::vector<std::vector<int>> steps = {
      {1, 1, 2, 64, 63, 65, 0, 1, 700, 3, 1, 128, 5}, {2, 2, 2, 2}, {1, 1}, {1000}, {2}, {0, 0, 3}};
  for (const std::vector<int>& rows : steps) {
    for (int group : {1, 2, 3, 6, 7, 8, 64}) {
      for (int tile : {kPrefillRows, 2 * kPrefillRows}) {
        int64_t tokens = 0, tiles = 0;
        for (int r : rows) {
          tokens += r;
          if (r > 1) tiles += (int64_t{r} * group + tile - 1) / tile;
        }
        const int sequences = static_cast<int>(rows.size());
        EXPECT_GE(PrefillTileCount(tokens, sequences, group, tile), tiles) << sequences << " sequences, group " << group;
        EXPECT_LE(PrefillTileCount(tokens, sequences, group, tile), tokens * group / tile + sequences);
      }
    }
  }
}

TEST(AttentionConfig, LargePrefillTilesWhereThereAreEnough) {
  AttentionShape s = Decode(1, 2048);
  s.tokens = s.max_query_length = 2048;
  EXPECT_EQ(Choose(s).prefill_rows, 2 * kPrefillRows);
  s.tokens = s.max_query_length = 512;
  EXPECT_EQ(Choose(s).prefill_rows, kPrefillRows);
}

}  // namespace
}  // namespace phalanx::kernels::cuda
