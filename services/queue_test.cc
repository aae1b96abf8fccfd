// The bounded queue: refuses when full, drains after Close, loses and doubles nothing between threads.
#include "services/queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace phalanx::services {
namespace {

TEST(Queue, FirstInFirstOutUpToTheCapacity) {
  Queue<std::unique_ptr<int>> queue(2);
  EXPECT_TRUE(queue.TryPush(std::make_unique<int>(1)));
  EXPECT_TRUE(queue.TryPush(std::make_unique<int>(2)));
  auto third = std::make_unique<int>(3);
  EXPECT_FALSE(queue.TryPush(std::move(third)));
  ASSERT_NE(third, nullptr);  // a refused value stays with its owner
  EXPECT_EQ(queue.size(), 2u);
  EXPECT_EQ(**queue.Pop(), 1);
  EXPECT_TRUE(queue.TryPush(std::move(third)));
  EXPECT_EQ(**queue.Pop(), 2);
  EXPECT_EQ(**queue.Pop(), 3);
  EXPECT_EQ(queue.size(), 0u);
}

TEST(Queue, CapacityZeroTakesNothing) {
  Queue<int> queue(0);
  EXPECT_FALSE(queue.TryPush(1));
}

TEST(Queue, CloseLetsPoppersDrain) {
  Queue<int> queue(4);
  EXPECT_TRUE(queue.TryPush(1));
  queue.Close();
  EXPECT_TRUE(queue.closed());
  EXPECT_FALSE(queue.TryPush(2));
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_EQ(queue.Pop(), std::nullopt);
  EXPECT_EQ(queue.PopFor(std::chrono::hours(1)), std::nullopt);  // does not wait
  queue.Close();
}

TEST(Queue, CloseWakesEveryPopper) {
  Queue<int> queue(4);
  std::vector<std::thread> threads;
  std::atomic<int> empty = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] { empty += !queue.Pop().has_value(); });
  }
  queue.Close();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(empty.load(), 4);
}

TEST(Queue, PopForGivesUpAndPopAllTakesWhatIsThere) {
  Queue<int> queue(4);
  EXPECT_EQ(queue.PopFor(std::chrono::nanoseconds(1)), std::nullopt);
  EXPECT_TRUE(queue.PopAll().empty());
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(queue.TryPush(std::move(i)));
  EXPECT_EQ(queue.PopAll(), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(queue.size(), 0u);
}

TEST(Queue, ManyProducersOneConsumer) {
  constexpr int kProducers = 4;
  constexpr int kEach = 5000;
  Queue<int> queue(64);
  std::vector<std::thread> threads;
  for (int p = 0; p < kProducers; ++p) {
    threads.emplace_back([&queue, p] {
      for (int i = 0; i < kEach; ++i) {
        while (!queue.TryPush(p * kEach + i)) std::this_thread::yield();
      }
    });
  }
  std::vector<int> next(kProducers, 0);
  for (int i = 0; i < kProducers * kEach; ++i) {
    const int value = *queue.Pop();
    ASSERT_EQ(value % kEach, next[value / kEach]++);  // each producer's values in order, none lost or doubled
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(queue.size(), 0u);
}

}  // namespace
}  // namespace phalanx::services
