// Executors that share a model, each given the same plans: they draw the same tokens as one executor, without telling each other.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "worker/exec/exec_test_util.h"
#include "worker/model/team_test_util.h"

namespace phalanx::worker::exec {
namespace {

using ::testing::HasSubstr;

std::string TextOf(const core::StepResult& result) {
  std::string out = std::to_string(result.step);
  for (const core::SliceResult& slice : result.slices) {
    out += " row " + std::to_string(slice.row) + Text(std::vector<core::TokenInfo>{slice.token}) + Text(slice.prompt);
  }
  return out;
}

// Plans on their way to a rank; nullopt ends it.
class PlanQueue {
 public:
  void Push(std::optional<core::StepPlan> plan) {
    std::lock_guard lock(mutex_);
    plans_.push_back(std::move(plan));
    changed_.notify_one();
  }
  std::optional<core::StepPlan> Pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !plans_.empty(); });
    std::optional<core::StepPlan> plan = std::move(plans_.front());
    plans_.pop_front();
    return plan;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::optional<core::StepPlan>> plans_;
};

// Rank 0's executor, which hands every plan to the other ranks before it runs it.
class LeadingExecutor : public core::Executor {
 public:
  LeadingExecutor(std::unique_ptr<core::Executor> own, std::vector<PlanQueue>* followers, std::vector<std::string>* results)
      : own_(std::move(own)), followers_(followers), results_(results) {}
  const core::ExecutorInfo& info() const override { return own_->info(); }
  absl::Status Launch(const core::StepPlan& plan) override {
    for (PlanQueue& queue : *followers_) queue.Push(plan);
    return own_->Launch(plan);
  }
  absl::StatusOr<core::StepResult> Collect() override {
    auto result = own_->Collect();
    if (result.ok()) results_->push_back(TextOf(*result));
    return result;
  }

 private:
  std::unique_ptr<core::Executor> own_;
  std::vector<PlanQueue>* const followers_;
  std::vector<std::string>* const results_;
};

// Runs every plan of a queue at once.
void Follow(core::Executor& executor, PlanQueue* queue, std::vector<std::string>* results) {
  while (const std::optional<core::StepPlan> plan = queue->Pop()) {
    const auto result = executor.Run(*plan);
    ASSERT_TRUE(result.ok()) << result.status();
    results->push_back(TextOf(*result));
  }
}

// The requests over `size` ranks. All ranks must have got the same results, bit for bit.
Outputs RunOverRanks(int size, const WorkerSetup& setup, const std::vector<core::Request>& requests) {
  const model::Team team(size, *setup.table);
  const ExecutorOptions base = OptionsOf(setup, *model::ReadModelConfig(PathOf(setup)));
  std::vector<PlanQueue> queues(size - 1);
  std::vector<std::vector<std::string>> results(size);
  Outputs outputs;
  team.OnAll([&](int rank) {
    ExecutorOptions options = base;
    options.group = team.group(rank);
    auto executor = MakeExecutor(team.device(rank).table(), team.device(rank).get(), options);
    ASSERT_TRUE(executor.ok()) << executor.status();
    if (rank > 0) return Follow(**executor, &queues[rank - 1], &results[rank]);
    outputs = RunAllOn(std::make_unique<LeadingExecutor>(*std::move(executor), &queues, &results[0]), setup, requests);
    for (PlanQueue& queue : queues) queue.Push(std::nullopt);
  });
  EXPECT_GT(results[0].size(), 10u);
  for (int rank = 1; rank < size; ++rank) EXPECT_EQ(results[rank], results[0]) << "rank " << rank;
  return outputs;
}

// The same tokens; log-probabilities differ by the order of sums.
void ExpectSameTokens(const Outputs& got, const Outputs& expected) {
  ASSERT_EQ(got.of.size(), expected.of.size());
  for (const auto& [id, output] : expected.of) {
    SCOPED_TRACE("request " + std::to_string(id));
    const Output& other = got.of.at(id);
    EXPECT_EQ(other.ids(), output.ids());
    EXPECT_EQ(other.end.reason, output.end.reason);
    ASSERT_EQ(other.tokens.size(), output.tokens.size());
    ASSERT_EQ(other.prompt.size(), output.prompt.size());
    for (size_t i = 0; i < output.tokens.size(); ++i) EXPECT_NEAR(other.tokens[i].logprob, output.tokens[i].logprob, 1e-4);
    for (size_t i = 0; i < output.prompt.size(); ++i) EXPECT_NEAR(other.prompt[i].logprob, output.prompt[i].logprob, 1e-4);
  }
}

class ExecRanksTest : public ::testing::TestWithParam<std::string> {};

// Greedy and seeded draws, penalties, lists, prompts' log-probabilities; whole prompts, and in chunks with few blocks.
TEST_P(ExecRanksTest, StreamsAreThoseOfOneRank) {
  WorkerSetup setup;
  setup.model = GetParam();
  const std::vector<core::Request> requests = Mixture(setup.model);
  const Outputs alone = RunAll(setup, requests);
  for (const int size : {2, 4}) {
    for (const bool tight : {false, true}) {
      SCOPED_TRACE(std::to_string(size) + (tight ? " ranks, tight" : " ranks"));
      WorkerSetup over = setup;
      if (tight) {
        over.max_num_batched_tokens = 16;
        over.num_blocks = over.max_model_len / over.block_size;
        over.steps_ahead = 1;
      }
      const Outputs outputs = RunOverRanks(size, over, requests);
      ExpectSameTokens(outputs, alone);
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ExecRanksTest, ::testing::ValuesIn(model::FixtureNames()),
                         [](const auto& info) { return info.param; });

// ---- blocks ---------------------------------------------------------------------------------------------------------

class ExecRanksSizeTest : public ::testing::Test {
 protected:
  // What two ranks make of KV caches of these sizes.
  void Make(uint64_t first, uint64_t second) {
    const uint64_t bytes[] = {first, second};
    team_.OnAll([&](int rank) {
      ExecutorOptions options = OptionsOf({}, *model::ReadModelConfig(PathOf({})));
      options.kv_cache_bytes = bytes[rank];
      options.group = team_.group(rank);
      options.progress = [&](double share) { loaded_ += share == 1; };
      auto executor = MakeExecutor(team_.device(rank).table(), team_.device(rank).get(), options);
      status_[rank] = executor.status();
      if (executor.ok()) blocks_[rank] = (*executor)->info().num_blocks;
    });
  }
  const model::Team team_{2};
  const uint64_t block_ = BlockBytes(*model::ReadModelConfig(PathOf({})), kernels::kF32, 4) / 2;   // half of the KV heads
  std::atomic<int> loaded_ = 0;
  absl::Status status_[2];
  int32_t blocks_[2] = {};
};

TEST_F(ExecRanksSizeTest, TheSmallestNumberOfBlocksCounts) {
  Make(50 * block_, 40 * block_);
  for (const int rank : {0, 1}) {
    EXPECT_TRUE(status_[rank].ok()) << status_[rank];
    EXPECT_EQ(blocks_[rank], 40);
  }
  EXPECT_EQ(loaded_, 2);
}

TEST_F(ExecRanksSizeTest, ARankWithoutRoomEndsTheStartOfAll) {
  Make(50 * block_, block_);
  EXPECT_EQ(status_[0].code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status_[0].message()), HasSubstr("rank 1 has no room for the KV cache"));
  EXPECT_THAT(std::string(status_[1].message()), HasSubstr("--kv-cache-memory-bytes"));
}

}  // namespace
}  // namespace phalanx::worker::exec
