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
  for (int splits : {1, 2, 3, 7, 9, 32}) {
    for (int min_chunk : {128, 256, 512}) {
      for (int length = 0; length < 9000; length = length < 300 ? length + 1 : length + 97) {
        const ContextCut cut = CutContext(length, splits, min_chunk);
        ASSERT_GE(cut.chunks, 1);
        ASSERT_LE(cut.chunks, splits) << length;
        ASSERT_EQ(cut.tokens % kDecodeTurn, 0);
        ASSERT_GE(cut.chunks * cut.tokens, length);
        if (length > 0) {
          ASSERT_LT((cut.chunks - 1) * cut.tokens, length) << "an empty part";
        }
      }
    }
  }
}

TEST(AttentionConfig, PrefillTilesAreEnoughForEverySequence) {
  const std::vector<int> rows = {1, 1, 2, 64, 63, 65, 0, 1, 700, 3, 1, 128, 5};
  for (int group : {1, 2, 3, 6, 7, 8, 64}) {
    int64_t start = 0;
    for (size_t s = 0; s < rows.size(); ++s) {
      const int64_t first = FirstTile(start, static_cast<int>(s), group), next = FirstTile(start + rows[s], static_cast<int>(s) + 1, group);
      EXPECT_GE((next - first) * kPrefillRows, int64_t{rows[s]} * group) << "sequence " << s << " group " << group;
      EXPECT_GT(next, first);
      start += rows[s];
    }
    EXPECT_LE(FirstTile(start, static_cast<int>(rows.size()), group), start * group / kPrefillRows + static_cast<int64_t>(rows.size()));
  }
}

}  // namespace
}  // namespace phalanx::kernels::cuda
