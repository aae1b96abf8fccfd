#include "worker/plan/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace phalanx::worker::plan {
namespace {

using ::testing::ElementsAre;

BlockKey Key(int32_t content) {
  static const BlockHasher hasher;
  return hasher.Next(hasher.Root(""), std::vector<int32_t>{content});
}

TEST(BlockPoolTest, TakesFromTheFrontUntilNothingIsLeft) {
  BlockPool pool(3);
  EXPECT_EQ(pool.free_count(), 3);
  EXPECT_EQ(pool.Take(), 0);
  EXPECT_EQ(pool.Take(), 1);
  EXPECT_EQ(pool.Take(), 2);
  EXPECT_EQ(pool.free_count(), 0);
  EXPECT_EQ(pool.references(2), 1);
  EXPECT_DEATH(pool.Take(), "head_ >= 0");
}

TEST(BlockPoolTest, ABlockIsFreeWhenTheLastHolderLetsGo) {
  BlockPool pool(2);
  const int32_t block = pool.Take();
  pool.Hold(block);
  pool.Release(block);
  EXPECT_EQ(pool.references(block), 1);
  EXPECT_EQ(pool.free_count(), 1);
  pool.Release(block);
  EXPECT_EQ(pool.free_count(), 2);
  EXPECT_DEATH(pool.Release(block), "references > 0");
}

TEST(BlockPoolTest, BlocksWithoutContentAreReusedFirstAndContentOldestFirst) {
  BlockPool pool(5);
  for (int i = 0; i < 5; ++i) pool.Take();
  pool.SetKey(1, Key(1));
  pool.SetKey(3, Key(3));
  pool.Release(3);  // with content: back
  pool.Release(0);  // without: front
  pool.Release(1);
  pool.Release(4);
  EXPECT_THAT(pool.FreeList(), ElementsAre(4, 0, 3, 1));
  EXPECT_EQ(pool.Take(), 4);
  EXPECT_EQ(pool.Take(), 0);
  EXPECT_EQ(pool.Find(Key(3)), 3);
  EXPECT_EQ(pool.Take(), 3);
  EXPECT_EQ(pool.Find(Key(3)), -1) << "a block that was taken anew still offers its old content";
  EXPECT_EQ(pool.Find(Key(1)), 1);
}

TEST(BlockPoolTest, AHitTakesAFreeBlockOutOfTheMiddle) {
  BlockPool pool(4);
  for (int i = 0; i < 3; ++i) pool.SetKey(pool.Take(), Key(i));
  for (int i = 0; i < 3; ++i) pool.Release(i);
  EXPECT_THAT(pool.FreeList(), ElementsAre(3, 0, 1, 2));
  pool.Hold(pool.Find(Key(1)));
  EXPECT_THAT(pool.FreeList(), ElementsAre(3, 0, 2));
  EXPECT_EQ(pool.free_count(), 3);
  EXPECT_TRUE(pool.has_key(1));
  pool.Release(1);  // used last, so evicted last
  EXPECT_THAT(pool.FreeList(), ElementsAre(3, 0, 2, 1));
}

TEST(BlockPoolTest, EqualContentHasOneBlock) {
  BlockPool pool(3);
  const int32_t first = pool.Take(), second = pool.Take();
  pool.SetKey(first, Key(7));
  pool.SetKey(second, Key(7));
  EXPECT_EQ(pool.Find(Key(7)), first);
  EXPECT_FALSE(pool.has_key(second));
  EXPECT_EQ(pool.index_size(), 1u);
  pool.SetKey(first, Key(8));  // a content once named stays
  EXPECT_EQ(pool.Find(Key(8)), -1);
  EXPECT_DEATH(pool.SetKey(2, Key(9)), "references > 0");
}

TEST(BlockPoolTest, ClearForgetsContentAndKeepsHolders) {
  BlockPool pool(2);
  pool.SetKey(pool.Take(), Key(1));
  pool.ClearKeys();
  EXPECT_EQ(pool.Find(Key(1)), -1);
  EXPECT_EQ(pool.index_size(), 0u);
  EXPECT_EQ(pool.references(0), 1);
  pool.Release(0);
  EXPECT_THAT(pool.FreeList(), ElementsAre(0, 1)) << "a block without content goes to the front";
}

TEST(BlockHasherTest, AKeyDependsOnSaltParentAndEveryIdInOrder) {
  const BlockHasher hasher;
  const BlockKey root = hasher.Root("");
  const BlockKey a = hasher.Next(root, std::vector<int32_t>{1, 2});
  const std::vector<BlockKey> keys = {
      root,
      hasher.Root("x"),
      a,
      hasher.Next(root, std::vector<int32_t>{2, 1}),
      hasher.Next(root, std::vector<int32_t>{1, 2, 0}),
      hasher.Next(root, std::vector<int32_t>{1, 258}),
      hasher.Next(hasher.Root("x"), std::vector<int32_t>{1, 2}),
      hasher.Next(a, std::vector<int32_t>{1, 2}),
  };
  std::set<std::string> different;
  for (const BlockKey& key : keys) different.emplace(key.bytes.begin(), key.bytes.end());
  EXPECT_EQ(different.size(), keys.size());
  EXPECT_EQ(BlockHasher().Next(BlockHasher().Root(""), std::vector<int32_t>{1, 2}), a) << "another process must find the same key";
}

// The first bytes of SHA-256("phalanx kv root 1:"): the hash is the strong one that the header promises.
TEST(BlockHasherTest, IsSha256) {
  const BlockKey root = BlockHasher().Root("");
  EXPECT_THAT((std::vector<int>{root.bytes[0], root.bytes[1], root.bytes[2], root.bytes[3]}), ElementsAre(0x24, 0x2b, 0x6d, 0x93));
}

}  // namespace
}  // namespace phalanx::worker::plan
