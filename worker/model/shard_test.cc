#include "worker/model/shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace phalanx::worker::model {
namespace {

using ::testing::HasSubstr;

ModelConfig Config(int32_t heads, int32_t kv_heads) {
  ModelConfig config;
  config.num_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = 8;
  config.intermediate_size = 96;
  config.vocab_size = 100;
  return config;
}

TEST(EvenCutTest, PartsCoverEverythingOnce) {
  for (const int64_t total : {1, 15, 16, 17, 96, 97, 100, 151936, 18944}) {
    for (const int size : {1, 2, 3, 4, 8}) {
      int64_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const Cut cut = EvenCut(total, rank, size);
        EXPECT_EQ(cut.first, next);
        EXPECT_LE(cut.count, cut.width);
        EXPECT_EQ(cut.width, EvenCut(total, 0, size).width);
        EXPECT_TRUE(total % size != 0 || cut.count == total / size);
        next += cut.count;
      }
      EXPECT_EQ(next, total) << size;
    }
  }
}

// Every query head is on one rank, beside its own KV head at the place where attention looks for it.
TEST(ShardTest, HeadsStayWithTheirKvHeads) {
  struct Case {
    int32_t heads, kv_heads;
    int size;
    int32_t own_heads, own_kv_heads;
  };
  const Case cases[] = {
      {4, 4, 1, 4, 4}, {4, 4, 2, 2, 2}, {4, 4, 4, 1, 1}, {4, 2, 2, 2, 1}, {28, 4, 4, 7, 1},
      {4, 1, 2, 2, 1}, {4, 1, 4, 1, 1}, {32, 4, 8, 4, 1}, {6, 2, 4, 2, 1},   // fewer KV heads than ranks; one padded
      {7, 1, 2, 4, 1}, {7, 1, 4, 2, 1}, {9, 3, 2, 6, 2}, {5, 5, 2, 3, 3}, {9, 1, 4, 3, 1}, {15, 5, 4, 6, 2},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.heads) + " / " + std::to_string(c.kv_heads) + " over " + std::to_string(c.size));
    const ModelConfig config = Config(c.heads, c.kv_heads);
    std::vector<int> seen(c.heads, 0);
    for (int rank = 0; rank < c.size; ++rank) {
      const auto shard = MakeShard(config, rank, c.size);
      ASSERT_TRUE(shard.ok()) << shard.status();
      EXPECT_EQ(shard->heads, c.own_heads);
      EXPECT_EQ(shard->kv_heads, c.own_kv_heads);
      EXPECT_EQ(shard->q.width, 8 * c.own_heads);
      EXPECT_EQ(shard->kv.width, 8 * c.own_kv_heads);
      for (int64_t i = 0; i < shard->q.count / 8; ++i) {
        const int64_t head = shard->q.first / 8 + i;
        ++seen[head];
        const int64_t kv_there = shard->kv.first / 8 + i / (shard->heads / shard->kv_heads);
        EXPECT_EQ(kv_there, head / (c.heads / c.kv_heads));
        EXPECT_LT(kv_there, shard->kv.first / 8 + shard->kv.count / 8);
      }
    }
    EXPECT_EQ(seen, std::vector<int>(c.heads, 1));
  }
}

TEST(ShardTest, ARankWithoutAHeadIsRefusedOnEveryRank) {
  struct Case {
    int32_t heads, kv_heads;
    int size;
    const char* idle;
  };
  for (const Case& c : {Case{4, 4, 8, "rank 0"}, Case{4, 2, 3, "rank 2"}, Case{7, 1, 8, "rank 0"}, Case{16, 2, 5, "rank 4"}}) {
    for (int rank = 0; rank < c.size; ++rank) {
      const absl::Status status = MakeShard(Config(c.heads, c.kv_heads), rank, c.size).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()),
                  HasSubstr("num_attention_heads " + std::to_string(c.heads) + " and num_key_value_heads " + std::to_string(c.kv_heads) +
                            " cannot be spread over " + std::to_string(c.size) + " ranks: " + c.idle));
    }
  }
}

}  // namespace
}  // namespace phalanx::worker::model
