#include "worker/core/step.h"

#include <random>

#include <gtest/gtest.h>

namespace phalanx::worker::core {
namespace {

StepPlan Example() {
  StepPlan plan;
  plan.step = 41;
  plan.removed = {3, 7};
  AddedSequence added;
  added.row = 2;
  added.sampling.temperature = 0.5f;
  added.sampling.seed = 0x1234567890abcdefULL;
  added.sampling.stream = 4;
  added.sampling.logit_bias = {{5, -100.0f}, {6, 2.5f}};
  added.sampling.allowed_ids = {5, 6, 9};
  added.sampling.bad_words = {{1, 2}, {3}};
  added.sampling.num_logprobs = 5;
  added.prompt_ids = {10, 11, 12};
  added.output_ids = {13};
  added.end_ids = {0};
  added.min_tokens = 2;
  added.prompt_length = 3;
  plan.added = {added};
  plan.new_blocks = {{2, {8, 9}}, {1, {4}}};
  plan.slices = {{2, 0, 4, 0, true, true}, {1, 31, 1, -1, true, false}};
  plan.tokens = {10, 11, 12, 13};
  plan.num_tokens = 5;
  return plan;
}

TEST(StepPlanTest, RoundTripsEveryField) {
  const std::string bytes = Serialize(Example());
  auto parsed = ParseStepPlan(bytes);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(Serialize(*parsed), bytes);
  EXPECT_EQ(parsed->step, 41u);
  EXPECT_EQ(parsed->added[0].sampling.seed, 0x1234567890abcdefULL);
  EXPECT_EQ(parsed->added[0].sampling.bad_words, Example().added[0].sampling.bad_words);
  EXPECT_EQ(parsed->added[0].sampling.logit_bias, Example().added[0].sampling.logit_bias);
  EXPECT_EQ(parsed->new_blocks[0].blocks, (std::vector<int32_t>{8, 9}));
  EXPECT_EQ(parsed->slices[1].token_offset, -1);
  EXPECT_TRUE(parsed->slices[0].prompt_logprobs);
  EXPECT_EQ(parsed->tokens, Example().tokens);
}

TEST(StepPlanTest, EmptyPlanRoundTrips) {
  auto parsed = ParseStepPlan(Serialize(StepPlan{}));
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(Serialize(*parsed), Serialize(StepPlan{}));
}

TEST(StepPlanTest, EveryTruncationAndAnyTailIsRefused) {
  const std::string bytes = Serialize(Example());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_EQ(ParseStepPlan(std::string_view(bytes).substr(0, size)).status().code(), absl::StatusCode::kInvalidArgument) << size;
  }
  EXPECT_FALSE(ParseStepPlan(bytes + "x").ok());
}

TEST(StepPlanTest, MutatedBytesNeverCrashAndAcceptedOnesAreCanonical) {
  const std::string bytes = Serialize(Example());
  std::mt19937 random(1);
  for (int i = 0; i < 50000; ++i) {
    std::string mutated = bytes;
    for (int k = 0, n = 1 + random() % 4; k < n; ++k) mutated[random() % mutated.size()] = static_cast<char>(random());
    auto parsed = ParseStepPlan(mutated);
    if (parsed.ok()) {
      EXPECT_EQ(Serialize(*parsed), mutated);
    }
  }
}

TEST(StepPlanTest, SlicesMustFitTheTokens) {
  StepPlan plan = Example();
  plan.slices[0].token_offset = 1;
  EXPECT_FALSE(ParseStepPlan(Serialize(plan)).ok());
  plan = Example();
  plan.num_tokens = 4;
  EXPECT_FALSE(ParseStepPlan(Serialize(plan)).ok());
  plan = Example();
  plan.slices[1].count = 2;
  plan.num_tokens = 6;
  EXPECT_FALSE(ParseStepPlan(Serialize(plan)).ok()) << "a decode slice has one token";
}

}  // namespace
}  // namespace phalanx::worker::core
