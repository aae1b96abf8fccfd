// The executor's parts by literal examples: how many blocks fit, what a row remembers, the index arrays of a step.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "worker/exec/inputs.h"
#include "worker/exec/memory.h"
#include "worker/exec/rows.h"
#include "worker/model/model_test_util.h"

namespace phalanx::worker::exec {
namespace {

using core::StepPlan;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// ---- CountBlocks ----------------------------------------------------------------------------------------------------

constexpr uint64_t kMib = uint64_t{1} << 20;

KvBudget Budget() {
  KvBudget budget;
  budget.block_bytes = kMib;
  budget.memory_total = 1000 * kMib;
  budget.memory_free = 800 * kMib;
  budget.utilization = 0.5;
  budget.block_size = 16;
  budget.max_model_len = 160;   // 10 blocks
  budget.max_num_seqs = 100;    // 1000 blocks are as many as can be of use
  return budget;
}

TEST(CountBlocksTest, UtilizationIsAShareOfAllMemoryWithWhatIsInUse) {
  EXPECT_EQ(*CountBlocks(Budget()), 300) << "half of 1000, of which 200 are taken";
  KvBudget full = Budget();
  full.utilization = 1.0;
  EXPECT_EQ(*CountBlocks(full), 800);
}

TEST(CountBlocksTest, OnTheHostItIsAShareOfFreeMemoryBelowAMost) {
  KvBudget host = Budget();
  host.host_memory = true;
  EXPECT_EQ(*CountBlocks(host), 400);
  host.memory_free = 100000 * kMib;
  host.max_num_seqs = 10000;
  EXPECT_EQ(*CountBlocks(host), static_cast<int32_t>(kHostKvBytesMax / kMib)) << "other programs live there";
  host.max_model_len = 16 * 5000;
  EXPECT_EQ(*CountBlocks(host), 5000) << "unless one sequence needs more";
}

TEST(CountBlocksTest, TheFlagWinsAndNoMoreIsTakenThanCanBeOfUse) {
  KvBudget budget = Budget();
  budget.kv_cache_bytes = 25 * kMib + 5;
  EXPECT_EQ(*CountBlocks(budget), 25);
  budget.kv_cache_bytes = 1000000 * kMib;
  EXPECT_EQ(*CountBlocks(budget), 1000);
}

TEST(CountBlocksTest, TooLittleForOneSequenceNamesBothSizesAndTheFlagThatDecided) {
  KvBudget budget = Budget();
  budget.block_bytes = 1024 * kMib;  // one sequence: 10 GiB
  const absl::Status by_share = CountBlocks(budget).status();
  EXPECT_EQ(by_share.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(by_share.message()), AllOf(HasSubstr("max_model_len 160 needs 10.000 GiB"), HasSubstr("only 0.293 GiB"),
                                                     HasSubstr("lower --max-model-len"), HasSubstr("--gpu-memory-utilization")));
  budget.kv_cache_bytes = 9 * 1024 * kMib;
  EXPECT_THAT(std::string(CountBlocks(budget).status().message()),
              AllOf(HasSubstr("only 9.000 GiB"), HasSubstr("--kv-cache-memory-bytes")));
  budget.kv_cache_bytes = 10 * 1024 * kMib;
  EXPECT_EQ(*CountBlocks(budget), 10);
  KvBudget taken = Budget();
  taken.memory_free = 100 * kMib;  // more in use than the share allows
  EXPECT_THAT(std::string(CountBlocks(taken).status().message()), HasSubstr("only 0.000 GiB"));
}

TEST(CountBlocksTest, ABlockIsKeysAndValuesOfAllLayers) {
  model::ModelConfig config;
  config.num_layers = 3;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  EXPECT_EQ(BlockBytes(config, kernels::kBF16, 16), 3u * 2 * 2 * 8 * 16 * 2);
  EXPECT_EQ(BlockBytes(config, kernels::kF32, 16), 2 * BlockBytes(config, kernels::kBF16, 16));
}

// ---- RowTable -------------------------------------------------------------------------------------------------------

core::AddedSequence Added(int32_t row, int32_t prompt_length) {
  core::AddedSequence added;
  added.row = row;
  added.prompt_length = prompt_length;
  return added;
}

TEST(RowTableTest, APlanAppliesRemovedAddedBlocksInThisOrder) {
  RowTable rows(2, /*num_blocks=*/8, /*block_size=*/4);
  StepPlan plan;
  plan.added = {Added(0, 5), Added(1, 3)};
  plan.new_blocks = {{0, {7, 2}}, {1, {3}}};
  rows.Apply(plan);
  EXPECT_THAT(rows.at(0).blocks, ElementsAre(7, 2));
  EXPECT_EQ(rows.at(0).last_token, -1);

  StepPlan next;  // row 0 changes hands within one step
  next.removed = {0};
  next.added = {Added(0, 2)};
  next.added[0].output_ids = {40, 41};
  next.new_blocks = {{0, {5}}, {1, {6}}};
  rows.Apply(next);
  EXPECT_THAT(rows.at(0).blocks, ElementsAre(5));
  EXPECT_EQ(rows.at(0).sequence.prompt_length, 2);
  EXPECT_EQ(rows.at(0).last_token, 41);
  EXPECT_THAT(rows.at(1).blocks, ElementsAre(3, 6));
}

TEST(RowTableTest, OutputsAreKeptOnlyWhereBadWordsLookBack) {
  RowTable rows(2, 8, 4);
  StepPlan plan;
  plan.added = {Added(0, 5), Added(1, 3)};
  plan.added[1].sampling.bad_words = {{1, 2}};
  plan.added[1].output_ids = {9};
  rows.Apply(plan);
  for (const int32_t row : {0, 1}) rows.SetLastToken(row, rows.at(row).owner, 1, 50 + row);
  EXPECT_EQ(rows.at(0).last_token, 50);
  EXPECT_THAT(rows.at(0).sequence.output_ids, IsEmpty());
  EXPECT_THAT(rows.at(1).sequence.output_ids, ElementsAre(9, 51));
}

// Two launches in flight, then the results of the first: the row's last token is still the second's.
TEST(RowTableTest, ALastTokenIsOnTheDeviceUntilItsOwnLaunchIsCollected) {
  RowTable rows(1, 8, 4);
  StepPlan plan;
  plan.added = {Added(0, 5)};
  rows.Apply(plan);
  const uint64_t owner = rows.at(0).owner;
  rows.MarkDrawn(0, /*launch=*/1, /*at=*/3);
  rows.MarkDrawn(0, 2, 1);
  rows.SetLastToken(0, owner, 1, 50);
  EXPECT_EQ(rows.at(0).drawn_in, 2u);
  EXPECT_EQ(rows.at(0).drawn_at, 1);
  rows.SetLastToken(0, owner, 2, 51);
  EXPECT_EQ(rows.at(0).drawn_in, 0u);
  EXPECT_EQ(rows.at(0).last_token, 51);
  StepPlan next;
  next.removed = {0};
  next.added = {Added(0, 2)};
  rows.Apply(next);
  rows.SetLastToken(0, owner, 3, 52);
  EXPECT_EQ(rows.at(0).last_token, -1) << "what was drawn for the row's former owner";
}

TEST(RowTableDeathTest, ABrokenPlanDies) {
  RowTable rows(2, 8, 4);
  StepPlan good;
  good.added = {Added(0, 5)};
  good.new_blocks = {{0, {1}}};
  rows.Apply(good);
  const auto dies = [&](StepPlan plan) { EXPECT_DEATH(rows.Apply(plan), "check failed"); };
  dies({.removed = {1}});
  dies({.removed = {2}});
  dies({.added = {Added(0, 1)}});
  dies({.added = {Added(-1, 1)}});
  dies({.new_blocks = {{1, {2}}}});
  dies({.new_blocks = {{0, {8}}}});
  dies({.new_blocks = {{0, {-1}}}});
  dies({.slices = {{.row = 1, .start = 0, .count = 1}}});
  dies({.slices = {{.row = 0, .start = 0, .count = 2}}});                     // ids of two tokens are not there
  dies({.slices = {{.row = 0, .start = 0, .count = 2, .token_offset = 0}}, .tokens = {1}});
  dies({.slices = {{.row = 0, .start = 4, .count = 1}}});                     // no block
}

// ---- InputBuilder ---------------------------------------------------------------------------------------------------

class InputBuilderTest : public ::testing::Test {
 protected:
  // On the CPU device memory may be read here.
  static std::vector<int32_t> Read(const int32_t* from, int count) { return {from, from + count}; }

  const model::TestDevice device_{*kernels::CpuTable()};
  model::DeviceMemory memory_{device_.table(), device_.get()};
  StepInputs Build(const StepPlan& plan, const Padding& padding = {}) {
    staging_.Begin();
    const StepInputs inputs = inputs_.Build(plan, rows_, padding, &staging_);
    EXPECT_TRUE(staging_.Upload().ok());
    return inputs;
  }
  Staging staging_ = *Staging::Create(device_.table(), device_.get(), InputBuilder::StagingBytes(16, 3, 4), &memory_);
  InputBuilder inputs_{/*max_tokens=*/16, /*block_size=*/4};
  RowTable rows_{3, 8, 4};
};

// A chunk that ends in mid-prompt, a decode, and the last chunk of a prompt whose log-probabilities are wanted.
TEST_F(InputBuilderTest, AMixedStep) {
  StepPlan before;
  before.added = {Added(0, 9), Added(1, 2), Added(2, 4)};
  before.added[2].prompt_ids = {20, 21, 22, 23};
  before.new_blocks = {{0, {7, 2}}, {1, {3}}, {2, {5}}};
  rows_.Apply(before);
  rows_.SetLastToken(1, rows_.at(1).owner, 1, 77);

  StepPlan plan;
  plan.slices = {{.row = 0, .start = 3, .count = 3, .token_offset = 0, .sample = false},
                 {.row = 1, .start = 2, .count = 1, .token_offset = -1, .sample = true},
                 {.row = 2, .start = 1, .count = 3, .token_offset = 3, .sample = true, .prompt_logprobs = true}};
  plan.tokens = {13, 14, 15, 21, 22, 23};
  plan.num_tokens = 7;
  rows_.Apply(plan);
  const StepInputs step = Build(plan);
  const kernels::StepLayout& layout = step.layout;
  EXPECT_THAT(Read(step.token_ids, 7), ElementsAre(13, 14, 15, 77, 21, 22, 23));
  EXPECT_THAT(Read(step.from, 7), Each(-1));
  EXPECT_FALSE(step.takes);
  EXPECT_THAT(Read(layout.positions, 7), ElementsAre(3, 4, 5, 2, 1, 2, 3));
  EXPECT_THAT(Read(layout.slots, 7), ElementsAre(7 * 4 + 3, 2 * 4, 2 * 4 + 1, 3 * 4 + 2, 5 * 4 + 1, 5 * 4 + 2, 5 * 4 + 3));
  EXPECT_EQ(layout.num_sequences, 3);
  EXPECT_THAT(Read(layout.query_start, 4), ElementsAre(0, 3, 4, 7));
  EXPECT_THAT(Read(layout.context_length, 3), ElementsAre(6, 3, 4));
  EXPECT_EQ(layout.max_blocks, 2);
  EXPECT_THAT(Read(layout.block_table, 6), ElementsAre(7, 2, 3, 0, 5, 0));
  EXPECT_EQ(layout.max_query_length, 3);
  EXPECT_EQ(layout.max_context_length, 6);

  // Drawn rows first: the decode and the end of the last prompt. Then rows whose next id is a prompt id.
  EXPECT_EQ(inputs_.num_sampled(), 2);
  ASSERT_EQ(inputs_.wanted().size(), 4u);
  EXPECT_THAT(Read(step.logit_rows, 4), ElementsAre(3, 6, 4, 5));
  EXPECT_EQ(inputs_.wanted()[0].position, 3);
  EXPECT_EQ(inputs_.wanted()[1].position, 4);
  EXPECT_EQ(inputs_.wanted()[2].prompt_id, 22);
  EXPECT_EQ(inputs_.wanted()[3].prompt_id, 23);
  EXPECT_EQ(inputs_.wanted()[3].slice, 2);
}

// Two decodes in a shape of three rows and a context of 16: the padding writes nowhere, and the arrays lie where the shape says.
TEST_F(InputBuilderTest, APaddedDecode) {
  StepPlan plan;
  plan.added = {Added(0, 5), Added(1, 2)};
  plan.new_blocks = {{0, {7, 2}}, {1, {3}}};
  plan.slices = {{.row = 0, .start = 5, .count = 1, .token_offset = -1, .sample = true},
                 {.row = 1, .start = 2, .count = 1, .token_offset = -1, .sample = true}};
  plan.num_tokens = 2;
  rows_.Apply(plan);
  rows_.SetLastToken(0, rows_.at(0).owner, 1, 50);
  rows_.MarkDrawn(1, 2, /*at=*/4);  // in flight
  const StepInputs step = Build(plan, {.rows = 3, .context = 16});
  const kernels::StepLayout& layout = step.layout;
  EXPECT_EQ(layout.num_tokens, 3);
  EXPECT_EQ(layout.num_sequences, 3);
  EXPECT_EQ(layout.max_query_length, 1);
  EXPECT_EQ(layout.max_context_length, 16);
  EXPECT_THAT(Read(step.token_ids, 3), ElementsAre(50, -1, 0));
  EXPECT_THAT(Read(step.from, 3), ElementsAre(-1, 4, -1));
  EXPECT_TRUE(step.takes);
  EXPECT_THAT(Read(layout.positions, 3), ElementsAre(5, 2, 0));
  EXPECT_THAT(Read(layout.slots, 3), ElementsAre(2 * 4 + 1, 3 * 4 + 2, -1));
  EXPECT_THAT(Read(layout.query_start, 4), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Read(layout.context_length, 3), ElementsAre(6, 3, 1));
  EXPECT_EQ(layout.max_blocks, 4);
  EXPECT_THAT(Read(layout.block_table, 12), ElementsAre(7, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(Read(step.logit_rows, 3), ElementsAre(0, 1, 2));
  EXPECT_EQ(inputs_.wanted().size(), 2u);
  // Another step of the shape has its arrays in the same places.
  plan.slices.pop_back();
  plan.num_tokens = 1;
  plan.added.clear();
  plan.new_blocks.clear();
  const StepInputs again = Build(plan, {.rows = 3, .context = 16});
  EXPECT_EQ(again.layout.block_table, layout.block_table);
  EXPECT_EQ(again.logit_rows, step.logit_rows);
  // And one of padding alone.
  const StepInputs nobody = Build({}, {.rows = 3, .context = 16});
  EXPECT_EQ(nobody.logit_rows, step.logit_rows);
  EXPECT_THAT(Read(nobody.layout.slots, 3), Each(-1));
  EXPECT_THAT(Read(nobody.layout.context_length, 3), Each(1));
}

TEST_F(InputBuilderTest, AnUnfinishedChunkWantsNothing) {
  StepPlan plan;
  plan.added = {Added(0, 9)};
  plan.new_blocks = {{0, {0}}};
  plan.slices = {{.row = 0, .start = 0, .count = 4, .token_offset = 0, .sample = false}};
  plan.tokens = {1, 2, 3, 4};
  plan.num_tokens = 4;
  rows_.Apply(plan);
  Build(plan);
  EXPECT_EQ(inputs_.num_sampled(), 0);
  EXPECT_THAT(inputs_.wanted(), IsEmpty());
}

}  // namespace
}  // namespace phalanx::worker::exec
