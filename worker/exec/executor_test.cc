// The promise of a batching engine: a stream does not depend on what runs beside it. Real models, real kernels, every way to cut the
// work up: chunk sizes, neighbours, prefix hits, preemption, threads. Streams, log-probabilities included, must be the same bits.
#include "worker/exec/executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "worker/exec/exec_test_util.h"
#include "worker/exec/lazy_table.h"

namespace phalanx::worker::exec {
namespace {

using core::FinishReason;
using core::Request;
using core::SequenceId;
using ::testing::AllOf;
using ::testing::HasSubstr;

void ExpectSame(const Output& got, const Output& expected) {
  EXPECT_EQ(got.ids(), expected.ids());
  EXPECT_EQ(Text(got.tokens), Text(expected.tokens));
  EXPECT_EQ(Text(got.prompt), Text(expected.prompt));
  EXPECT_EQ(got.end.reason, expected.end.reason);
  EXPECT_EQ(got.end.stop_id, expected.end.stop_id);
}

struct IdentityCase {
  std::string model;
  kernels::DType dtype;
  std::string name;
};

class IdentityTest : public ::testing::TestWithParam<IdentityCase> {
 protected:
  void SetUp() override {
    base_.model = GetParam().model;
    base_.dtype = GetParam().dtype;
    requests_ = Mixture(base_.model);
    WorkerSetup alone = base_;
    alone.prefix_caching = false;
    for (const Request& request : requests_) alone_[request.id] = RunOne(alone, request);
    ASSERT_FALSE(HasFailure());
  }
  void ExpectAsAlone(const Outputs& outputs) {
    for (const Request& request : requests_) {
      SCOPED_TRACE("request " + std::to_string(request.id));
      const auto found = outputs.of.find(request.id);
      ASSERT_NE(found, outputs.of.end());
      ExpectSame(found->second, alone_.at(request.id));
    }
  }

  WorkerSetup base_;
  std::vector<Request> requests_;
  std::map<SequenceId, Output> alone_;
};

TEST_P(IdentityTest, ChunksNeighboursAndTheCacheChangeNothing) {
  for (const int32_t tokens : {1, 7, 16, 512}) {
    for (const bool caching : {false, true}) {
      SCOPED_TRACE("max_num_batched_tokens " + std::to_string(tokens) + (caching ? ", prefix cache" : ""));
      WorkerSetup setup = base_;
      setup.max_num_batched_tokens = tokens;
      setup.prefix_caching = caching;
      const Outputs outputs = RunAll(setup, requests_);
      ExpectAsAlone(outputs);
      EXPECT_EQ(outputs.counters.preemptions, 0u);
      EXPECT_EQ(outputs.counters.prefix_hits > 0, caching && tokens < 512) << "all prompts start at once in the largest step";
      if (HasFailure()) return;
    }
  }
}

// One step planned and launched before the results of the last are in; ids go from step to step on the device.
TEST_P(IdentityTest, AStepAheadChangesNothing) {
  for (const int32_t tokens : {7, 512}) {
    for (const bool caching : {false, true}) {
      SCOPED_TRACE("max_num_batched_tokens " + std::to_string(tokens) + (caching ? ", prefix cache" : ""));
      WorkerSetup setup = base_;
      setup.steps_ahead = 1;
      setup.max_num_batched_tokens = tokens;
      setup.prefix_caching = caching;
      ExpectAsAlone(RunAll(setup, requests_));
      setup.num_blocks = setup.max_model_len / setup.block_size;
      const Outputs tight = RunAll(setup, requests_);
      ExpectAsAlone(tight);
      EXPECT_GT(tight.counters.preemptions, 0u);
      if (HasFailure()) return;
    }
  }
}

// On a stream that does nothing until it is waited for, with recorded decode steps.
TEST_P(IdentityTest, ADeviceThatLagsBehindChangesNothing) {
  for (const bool graphs : {true, false}) {
    for (const int32_t blocks : {0, base_.max_model_len / base_.block_size}) {
      SCOPED_TRACE(std::string(graphs ? "graphs" : "eager") + ", blocks " + std::to_string(blocks));
      LazyStream::Get().Reset();
      WorkerSetup setup = base_;
      setup.table = LazyTable();
      setup.graphs = graphs;
      setup.max_num_batched_tokens = 24;
      setup.num_blocks = blocks;
      ExpectAsAlone(RunAll(setup, requests_));
      EXPECT_EQ(LazyStream::Get().graphs_launched > 20, graphs);
      EXPECT_GT(LazyStream::Get().steps_waited_with_work_behind, 20) << "the next step was there before the wait for the last";
      if (HasFailure()) return;
    }
  }
}

TEST_P(IdentityTest, PreemptionChangesNothing) {
  for (const int32_t tokens : {5, 512}) {
    for (const bool caching : {false, true}) {
      SCOPED_TRACE("max_num_batched_tokens " + std::to_string(tokens) + (caching ? ", prefix cache" : ""));
      WorkerSetup setup = base_;
      setup.max_num_batched_tokens = tokens;
      setup.prefix_caching = caching;
      setup.num_blocks = setup.max_model_len / setup.block_size;  // one sequence of the longest length
      const Outputs outputs = RunAll(setup, requests_);
      ExpectAsAlone(outputs);
      EXPECT_GT(outputs.counters.preemptions, 0u);
      if (HasFailure()) return;
    }
  }
}

TEST_P(IdentityTest, BlockSizeRowsAndThreadsChangeNothing) {
  const auto run = [&](WorkerSetup setup) {
    setup.max_num_batched_tokens = 16;
    ExpectAsAlone(RunAll(setup, requests_));
  };
  WorkerSetup setup = base_;
  setup.block_size = 16;
  run(setup);
  setup = base_;
  setup.max_num_seqs = 2;
  run(setup);
  for (const int32_t threads : {1, 2, 3}) {
    SCOPED_TRACE(std::to_string(threads) + " threads");
    setup = base_;
    setup.device.num_threads = threads;
    run(setup);
  }
}

TEST_P(IdentityTest, AnAbortLeavesTheOthersAlone) {
  WorkerSetup setup = base_;
  setup.max_num_batched_tokens = 16;
  const std::vector<SequenceId> victims = {2, 6, 10};
  const Outputs outputs = RunAll(setup, requests_, [&](Engine& engine, const core::SequenceEvent& event, const Output& so_far) {
    const bool victim = std::find(victims.begin(), victims.end(), event.id) != victims.end();
    if (victim && so_far.tokens.size() == event.id) engine.Cancel(event.id);
  });
  for (const Request& request : requests_) {
    SCOPED_TRACE("request " + std::to_string(request.id));
    const Output& got = outputs.of.at(request.id);
    const Output& whole = alone_.at(request.id);
    if (std::find(victims.begin(), victims.end(), request.id) == victims.end()) {
      ExpectSame(got, whole);
      continue;
    }
    EXPECT_EQ(got.end.reason, FinishReason::kAbort);
    ASSERT_EQ(got.tokens.size(), request.id) << "it ends at the next step boundary";
    EXPECT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), whole.tokens.begin(),
                           [](const auto& a, const auto& b) { return a.id == b.id; }));
  }
}

// What another worker made goes on here, with the same draws.
TEST_P(IdentityTest, AResumedStreamGoesOnAsItWould) {
  std::vector<Request> resumed = requests_;
  for (Request& request : resumed) {
    const std::vector<int32_t> made = alone_.at(request.id).ids();
    const size_t keep = made.size() / 2;
    request.resume_output_ids.insert(request.resume_output_ids.end(), made.begin(), made.begin() + keep);
    request.sampling.prompt_logprobs = -1;
  }
  const Outputs outputs = RunAll(base_, resumed);
  for (const Request& request : requests_) {
    SCOPED_TRACE("request " + std::to_string(request.id));
    const Output& whole = alone_.at(request.id);
    const std::vector<core::TokenInfo> rest(whole.tokens.begin() + whole.tokens.size() / 2, whole.tokens.end());
    EXPECT_EQ(Text(outputs.of.at(request.id).tokens), Text(rest));
    EXPECT_EQ(outputs.of.at(request.id).end.reason, whole.end.reason);
  }
}

std::vector<IdentityCase> Cases() {
  std::vector<IdentityCase> cases;
  for (const std::string& model : model::FixtureNames()) {
    cases.push_back({model, kernels::kF32, model + "_f32"});
    cases.push_back({model, kernels::kBF16, model + "_bf16"});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, IdentityTest, ::testing::ValuesIn(Cases()), [](const auto& info) { return info.param.name; });

// The twin's table, with results at once and one step behind.
TEST(ExecutorTest, TheReferenceGivesTheSameStreamsAStepAhead) {
  WorkerSetup setup;
  setup.table = kernels::ReferenceTable();
  setup.max_num_batched_tokens = 16;
  std::vector<Request> requests = Mixture(setup.model);
  for (Request& request : requests) request.max_tokens = 8;
  const Outputs at_once = RunAll(setup, requests);
  setup.steps_ahead = 1;
  const Outputs behind = RunAll(setup, requests);
  for (const Request& request : requests) ExpectSame(behind.of.at(request.id), at_once.of.at(request.id));
}

TEST(ExecutorTest, GreedyStreamsAreTransformers) {
  for (const std::string& model : model::FixtureNames()) {
    WorkerSetup setup;
    setup.model = model;
    setup.max_num_batched_tokens = 7;
    const auto golden = model::ReadGolden(model);
    const auto length = static_cast<int32_t>(golden.greedy.size());
    EXPECT_EQ(RunOne(setup, Greedy(model, static_cast<int32_t>(golden.input_ids.size()), length)).ids(), golden.greedy) << model;
  }
}

// ---- sizes ----------------------------------------------------------------------------------------------------------

class ExecutorSizeTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<core::Executor>> Make() { return MakeExecutor(device_.table(), device_.get(), options_); }

  WorkerSetup setup_;
  model::TestDevice device_{*kernels::CpuTable()};
  ExecutorOptions options_ = OptionsOf(setup_, *model::ReadModelConfig(PathOf(setup_)));
};

TEST_F(ExecutorSizeTest, InfoSaysWhatWasAskedFor) {
  setup_.num_blocks = 40;
  options_ = OptionsOf(setup_, *model::ReadModelConfig(PathOf(setup_)));
  const auto executor = Make();
  ASSERT_TRUE(executor.ok()) << executor.status();
  const core::ExecutorInfo& info = (*executor)->info();
  EXPECT_EQ(info.num_blocks, 40);
  EXPECT_EQ(info.block_size, 4);
  EXPECT_EQ(info.max_rows, 16);
  EXPECT_EQ(info.max_step_tokens, 512);
  EXPECT_EQ(info.max_model_len, 96);
  EXPECT_EQ(info.vocab_size, 96);
}

TEST_F(ExecutorSizeTest, ACacheTooSmallForOneSequenceNamesBothSizesAndTheFlag) {
  options_.max_model_len = 1 << 20;  // 2^20 x 2 layers x 2 x 4 heads x 16 x 4 bytes = 1 GiB
  options_.kv_cache_bytes = uint64_t{1} << 28;
  const absl::Status status = Make().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("max_model_len 1048576 needs 1.000 GiB"), HasSubstr("only 0.250 GiB"), HasSubstr("--max-model-len"),
                    HasSubstr("--kv-cache-memory-bytes")));
}

TEST_F(ExecutorSizeTest, AMissingModelIsNotFound) {
  options_.model_path = model::FixtureFolder("no_such_model");
  const absl::Status status = Make().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no_such_model"));
}

}  // namespace
}  // namespace phalanx::worker::exec
