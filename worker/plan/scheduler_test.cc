// How a step is filled, by one literal example a rule: budget, chunks, ends, prefix cache. Want of room is scheduler_room_test.cc,
// random mixtures of everything are tests/sim_test.cc.
#include "worker/plan/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "worker/plan/plan_test_util.h"

namespace phalanx::worker::plan {
namespace {

using core::FinishReason;
using core::Request;
using core::SequenceId;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// ---- one sequence ---------------------------------------------------------------------------------------------------

TEST(SchedulerTest, APromptIsComputedThenDecodedWithoutSendingIdsAgain) {
  Bed bed(Options());
  bed.Submit(Prompt(7, 5, /*max_tokens=*/2));
  bed.now = 101.5;
  EXPECT_EQ(bed.Step(), "0:0+5*");
  EXPECT_THAT(bed.plan.tokens, ElementsAre(1, 2, 3, 4, 5));
  ASSERT_EQ(bed.plan.added.size(), 1u);
  EXPECT_EQ(bed.plan.added[0].prompt_length, 5);
  ASSERT_EQ(bed.plan.new_blocks.size(), 1u);
  EXPECT_THAT(bed.plan.new_blocks[0].blocks, ElementsAre(0, 1));
  ASSERT_EQ(bed.last.events.size(), 1u);
  EXPECT_EQ(bed.last.events[0].id, 7u);
  EXPECT_TRUE(bed.last.events[0].started);
  EXPECT_EQ(bed.last.events[0].queue_seconds, 1.5);
  EXPECT_THAT(Ids(bed.last.events[0]), ElementsAre(60));

  bed.now = 104;
  EXPECT_EQ(bed.Step({{0, 61}}), "0:5+1d*");
  EXPECT_THAT(bed.plan.tokens, IsEmpty());
  EXPECT_THAT(bed.plan.added, IsEmpty());
  const core::SequenceEvent& end = bed.last.events.at(0);
  EXPECT_FALSE(end.started);
  EXPECT_THAT(Ids(end), ElementsAre(61));
  EXPECT_TRUE(end.finished);
  EXPECT_EQ(end.reason, FinishReason::kLength);
  EXPECT_EQ(end.stop_id, -1);
  ASSERT_EQ(bed.last.finished.size(), 1u);
  const FinishedSequence& times = bed.last.finished[0];
  EXPECT_EQ(times.prompt_tokens, 5);
  EXPECT_EQ(times.output_tokens, 2);
  EXPECT_TRUE(times.produced);
  EXPECT_EQ(times.queue_seconds, 1.5);
  EXPECT_EQ(times.prefill_seconds, 0);
  EXPECT_EQ(times.decode_seconds, 2.5);
  EXPECT_EQ(times.inference_seconds, 2.5);
  EXPECT_TRUE(bed.scheduler.empty());
  EXPECT_EQ(bed.scheduler.load().blocks_free, 16);
  EXPECT_EQ(bed.Plan(), "") << "nothing is left to run";
}

TEST(SchedulerTest, TheRowOfAnEndedSequenceIsGivenBackInTheNextPlan) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 3, 1));
  bed.Step();
  EXPECT_TRUE(bed.scheduler.empty());
  bed.Submit(Prompt(2, 3, 1));
  EXPECT_EQ(bed.Step(), "0:0+3*");
  EXPECT_THAT(bed.plan.removed, ElementsAre(0));
}

TEST(SchedulerTest, AnEndIdEndsTheSequenceAndIsItsLastToken) {
  Bed bed(Options());
  Request request = Prompt(1, 3);
  request.stop_ids = {70, 71};
  bed.Submit(request);
  bed.Step({{0, 69}});
  bed.Step({{0, 71}});
  const core::SequenceEvent& end = bed.last.events.at(0);
  EXPECT_THAT(Ids(end), ElementsAre(71));
  EXPECT_EQ(end.reason, FinishReason::kStop);
  EXPECT_EQ(end.stop_id, 71);
}

TEST(SchedulerTest, MinTokensKeepsAnEndIdFromEndingAndTellsTheSampler) {
  Bed bed(Options());
  Request request = Prompt(1, 3);
  request.stop_ids = {70};
  request.min_tokens = 2;
  bed.Submit(request);
  bed.Step({{0, 70}});
  EXPECT_THAT(bed.plan.added.at(0).end_ids, ElementsAre(70));
  EXPECT_EQ(bed.plan.added.at(0).min_tokens, 2);
  EXPECT_FALSE(bed.last.events.at(0).finished);
  bed.Step({{0, 70}});
  EXPECT_FALSE(bed.last.events.at(0).finished);
  bed.Step({{0, 70}});
  EXPECT_TRUE(bed.last.events.at(0).finished);
  EXPECT_EQ(bed.last.events.at(0).reason, FinishReason::kStop);
}

// rpc/admit leaves the model's own end ids out of `stop_ids` then; nothing else knows them.
TEST(SchedulerTest, WithoutEndIdsOnlyTheLengthEnds) {
  Bed bed(Options());
  Request request = Prompt(1, 3, 3);
  request.ignore_eos = true;
  bed.Submit(request);
  for (int i = 0; i < 3; ++i) bed.Step({{0, 2}});
  EXPECT_EQ(bed.last.events.at(0).reason, FinishReason::kLength);
  EXPECT_TRUE(bed.scheduler.empty());
}

TEST(SchedulerTest, TheContextLengthEnds) {
  SchedulerOptions options = Options();
  options.limits.max_model_len = 6;
  Bed bed(options);
  bed.Submit(Prompt(1, 4, 40));
  bed.Step();
  EXPECT_FALSE(bed.last.events.at(0).finished);
  bed.Step();
  EXPECT_TRUE(bed.last.events.at(0).finished) << "4 + 2 tokens fill a context of 6";
  EXPECT_EQ(bed.last.events.at(0).reason, FinishReason::kLength);
}

TEST(SchedulerTest, ARowWithoutAValidTokenFailsItsOwnRequestOnly) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 3));
  bed.Submit(Prompt(2, 3));
  EXPECT_EQ(bed.Step({{0, -1}}), "0:0+3* 1:0+3*");
  ASSERT_EQ(bed.last.events.size(), 2u);
  EXPECT_EQ(bed.last.events[0].reason, FinishReason::kError);
  EXPECT_THAT(bed.last.events[0].error, HasSubstr("no valid next token"));
  EXPECT_EQ(bed.last.events[0].reject_code, 0);
  EXPECT_THAT(Ids(bed.last.events[0]), IsEmpty());
  EXPECT_FALSE(bed.last.events[1].finished);
  EXPECT_EQ(bed.Step(), "1:3+1d*");
}

TEST(SchedulerTest, PromptIdsTravelOnlyWhenSamplingNeedsThem) {
  Bed bed(Options());
  Request plain = Prompt(1, 3), penalty = Prompt(2, 3), logprobs = Prompt(3, 3);
  penalty.sampling.frequency_penalty = 0.5f;
  logprobs.sampling.prompt_logprobs = 0;
  bed.prompt_logprob_ids = logprobs.prompt_ids;
  for (const Request& request : {plain, penalty, logprobs}) bed.Submit(request);
  bed.Step();
  ASSERT_EQ(bed.plan.added.size(), 3u);
  EXPECT_THAT(bed.plan.added[0].prompt_ids, IsEmpty());
  EXPECT_THAT(bed.plan.added[1].prompt_ids, ElementsAre(1, 2, 3));
  EXPECT_THAT(bed.plan.added[2].prompt_ids, ElementsAre(1, 2, 3));
}

// ---- budget and chunks ----------------------------------------------------------------------------------------------

TEST(SchedulerTest, APromptLargerThanTheBudgetIsComputedInChunks) {
  SchedulerOptions options = Options();
  options.limits.max_step_tokens = 8;
  Bed bed(options);
  bed.Submit(Prompt(1, 20));
  bed.Submit(Prompt(2, 3));
  EXPECT_EQ(bed.Step(), "0:0+8");
  ASSERT_EQ(bed.last.events.size(), 1u);
  EXPECT_TRUE(bed.last.events[0].started);
  EXPECT_THAT(Ids(bed.last.events[0]), IsEmpty());
  EXPECT_EQ(bed.Step(), "0:8+8");
  EXPECT_THAT(bed.last.events, IsEmpty()) << "an unfinished chunk brings no news";
  EXPECT_EQ(bed.Step(), "0:16+4* 1:0+3*") << "what the budget leaves goes to the next";
  EXPECT_EQ(bed.plan.num_tokens, 7);
  EXPECT_EQ(bed.Step(), "0:20+1d* 1:3+1d*");
}

TEST(SchedulerTest, DecodesComeBeforePrefillsAndAChunkTakesTheRest) {
  SchedulerOptions options = Options();
  options.limits.max_step_tokens = 5;
  Bed bed(options);
  bed.Submit(Prompt(1, 12));
  EXPECT_EQ(bed.Step(), "0:0+5");
  bed.Submit(Prompt(2, 2));
  bed.Submit(Prompt(3, 2));
  EXPECT_EQ(bed.Step(), "0:5+5");
  EXPECT_EQ(bed.Step(), "0:10+2* 1:0+2* 2:0+1") << "a chunk of a waiting prompt is whatever is left";
  EXPECT_EQ(bed.Step(), "0:12+1d* 1:2+1d* 2:1+1*");
  bed.Submit(Prompt(4, 9, 8, /*first=*/30));
  EXPECT_EQ(bed.Step(), "0:13+1d* 1:3+1d* 2:2+1d* 3:0+2") << "decodes do not wait for the long prompt";
  EXPECT_EQ(bed.Step(), "0:14+1d* 1:4+1d* 2:3+1d* 3:2+2");
}

TEST(SchedulerTest, ABudgetBelowTheDecodesServesTheOldestFirst) {
  SchedulerOptions options = Options();
  options.limits.max_step_tokens = 2;
  Bed bed(options);
  for (SequenceId id = 1; id <= 3; ++id) bed.Submit(Prompt(id, 1, 4));
  EXPECT_EQ(bed.Step(), "0:0+1* 1:0+1*");
  EXPECT_EQ(bed.Step(), "0:1+1d* 1:1+1d*");
  EXPECT_EQ(bed.Step(), "0:2+1d* 1:2+1d*");
  EXPECT_EQ(bed.Step(), "0:3+1d* 1:3+1d*");
  EXPECT_EQ(bed.Step(), "1:0+1*");
}

TEST(SchedulerTest, WithoutChunksAPromptWaitsForAStepThatHoldsIt) {
  SchedulerOptions options = Options();
  options.limits.max_step_tokens = 48;
  options.chunked_prefill = false;
  Bed bed(options);
  bed.Submit(Prompt(1, 30));
  bed.Submit(Prompt(2, 20, 8, /*first=*/40));
  EXPECT_EQ(bed.Step(), "0:0+30*");
  EXPECT_EQ(bed.Step(), "0:30+1d* 1:0+20*");
}

TEST(SchedulerTest, NoMoreSequencesThanRows) {
  SchedulerOptions options = Options();
  options.limits.max_rows = 2;
  Bed bed(options);
  for (SequenceId id = 1; id <= 3; ++id) bed.Submit(Prompt(id, 2, 2));
  EXPECT_EQ(bed.Step(), "0:0+2* 1:0+2*");
  EXPECT_EQ(bed.scheduler.load().running, 2);
  EXPECT_EQ(bed.scheduler.load().waiting, 1);
  EXPECT_EQ(bed.scheduler.load().waiting_tokens, 2);
  bed.Step();
  EXPECT_EQ(bed.Step(), "1:0+2*") << "a row is free, the third one runs";
}

// ---- prefix cache ---------------------------------------------------------------------------------------------------

TEST(SchedulerTest, AFullMatchIsCappedSoThatTheLastTokenIsComputed) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 12, 1));
  bed.Finish();
  bed.Submit(Prompt(2, 12, 1));
  EXPECT_EQ(bed.scheduler.load().waiting_tokens, 4) << "only what has to be computed";
  EXPECT_EQ(bed.Step(), "0:8+4*");
  EXPECT_EQ(bed.last.events.at(0).cached_tokens, 8);
  ASSERT_EQ(bed.plan.new_blocks.size(), 2u);
  EXPECT_THAT(bed.plan.new_blocks[0].blocks, ElementsAre(0, 1)) << "the first run's own blocks";
  bed.Submit(Prompt(3, 13, 1));
  EXPECT_EQ(bed.Step(), "0:12+1*") << "one token more: all three blocks match";
  EXPECT_EQ(bed.last.events.at(0).cached_tokens, 12);
  EXPECT_EQ(bed.scheduler.counters().prefix_queries, 12u + 12u + 13u);
  EXPECT_EQ(bed.scheduler.counters().prefix_hits, 8u + 12u);
}

TEST(SchedulerTest, OutputIsCachedLikePrompt) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 3, 6));  // 3 prompt + 5 computed outputs = two full blocks
  bed.Finish();
  Request next = Prompt(2, 3);
  next.prompt_ids.insert(next.prompt_ids.end(), {60, 60, 60, 60, 60, 9});
  bed.Submit(next);
  EXPECT_EQ(bed.Step(), "0:8+1*");
}

TEST(SchedulerTest, AMatchEndsAtTheFirstOtherBlock) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 12, 1));
  bed.Finish();
  Request other = Prompt(2, 12, 1);
  other.prompt_ids[5] = 99;
  bed.Submit(other);
  EXPECT_EQ(bed.Step(), "0:4+8*") << "the third block is equal, its parent is not";
}

TEST(SchedulerTest, RunningSequencesShareComputedBlocksAndNoOthers) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 10));
  bed.Submit(Prompt(2, 10));
  EXPECT_EQ(bed.Step(), "0:0+10* 1:0+10*") << "nothing is computed yet when both start";
  bed.Submit(Prompt(3, 10));
  EXPECT_EQ(bed.Step(), "0:10+1d* 1:10+1d* 2:8+2*");
  // 3 + 3 blocks, and one of its own for the third.
  EXPECT_EQ(bed.scheduler.load().blocks_free, 16 - 7);
}

TEST(SchedulerTest, SaltsDoNotShare) {
  Bed bed(Options());
  Request a = Prompt(1, 12, 1), b = Prompt(2, 12, 1), again = Prompt(3, 12, 1), none = Prompt(4, 12, 1);
  a.cache_salt = again.cache_salt = "tenant a";
  b.cache_salt = "tenant b";
  bed.Submit(a);
  EXPECT_EQ(bed.Step(), "0:0+12*");
  bed.Submit(b);
  EXPECT_EQ(bed.Step(), "0:0+12*");
  bed.Submit(none);
  EXPECT_EQ(bed.Step(), "0:0+12*");
  bed.Submit(again);
  EXPECT_EQ(bed.Step(), "0:8+4*");
}

TEST(SchedulerTest, PromptLogprobsDoNotReadTheCacheButFillIt) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 12, 1));
  bed.Finish();
  Request asks = Prompt(2, 12, 1);
  asks.sampling.prompt_logprobs = 2;
  bed.prompt_logprob_ids = asks.prompt_ids;
  bed.Submit(asks);
  EXPECT_EQ(bed.Step(), "0:0+12p*");
  EXPECT_EQ(bed.last.events.at(0).cached_tokens, 0);
  ASSERT_EQ(bed.last.events.at(0).prompt.size(), 11u) << "the first position has no log-probability";
  EXPECT_EQ(bed.last.events.at(0).prompt[0].id, 2);
  EXPECT_EQ(bed.last.events.at(0).prompt[10].id, 12);

  Request other = Prompt(3, 12, 1, /*first=*/20);
  other.sampling.prompt_logprobs = 0;
  bed.prompt_logprob_ids = other.prompt_ids;
  bed.Submit(other);
  bed.Step();
  bed.Submit(Prompt(4, 12, 1, 20));
  EXPECT_EQ(bed.Step(), "0:8+4*");
}

TEST(SchedulerTest, PromptLogprobsOfChunksComeInOrderAndOnce) {
  SchedulerOptions options = Options();
  options.limits.max_step_tokens = 5;
  Bed bed(options);
  Request asks = Prompt(1, 11, 3);
  asks.sampling.prompt_logprobs = 0;
  bed.prompt_logprob_ids = asks.prompt_ids;
  bed.Submit(asks);
  std::vector<int32_t> got;
  for (const char* expected : {"0:0+5p", "0:5+5p", "0:10+1*", "0:11+1d*"}) {
    EXPECT_EQ(bed.Step(), expected);
    for (const core::SequenceEvent& event : bed.last.events) {
      for (const core::TokenInfo& token : event.prompt) got.push_back(token.id);
    }
  }
  EXPECT_THAT(got, ElementsAre(2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
}

TEST(SchedulerTest, WithoutPrefixCachingNothingIsFoundOrCounted) {
  SchedulerOptions options = Options();
  options.prefix_caching = false;
  Bed bed(options);
  for (SequenceId id = 1; id <= 2; ++id) {
    bed.Submit(Prompt(id, 12, 1));
    EXPECT_EQ(bed.Step(), "0:0+12*");
  }
  EXPECT_EQ(bed.scheduler.counters().prefix_queries, 0u);
}

TEST(SchedulerTest, AClearedCacheFindsNothing) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 12, 1));
  bed.Finish();
  bed.scheduler.ClearPrefixCache();
  bed.Submit(Prompt(2, 12, 1));
  EXPECT_EQ(bed.Step(), "0:0+12*");
}

// ---- our own bugs ---------------------------------------------------------------------------------------------------

TEST(SchedulerDeathTest, PlanAndCommitTakeTurns) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 3));
  EXPECT_DEATH(bed.scheduler.Commit({}, 0), "in_flight_.empty");
  bed.Plan();
  EXPECT_DEATH(bed.scheduler.Plan(0), "steps_in_flight");
  EXPECT_DEATH(bed.scheduler.Commit({.step = 77, .slices = {}}, 0), "result.step == in_flight_.front");
  EXPECT_DEATH(bed.scheduler.Commit({.step = bed.plan.step, .slices = {}}, 0), "slice.sample ==");
}

}  // namespace
}  // namespace phalanx::worker::plan
