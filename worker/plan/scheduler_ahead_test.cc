// One step planned before the results of the last are in, by one literal example a rule. Everything at random is tests/sim_test.cc.
#include "worker/plan/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "worker/plan/plan_test_util.h"

namespace phalanx::worker::plan {
namespace {

using core::FinishReason;
using core::Request;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

SchedulerOptions Ahead() {
  SchedulerOptions options = Options();
  options.limits.steps_ahead = 1;
  return options;
}

TEST(SchedulerAheadTest, ADecodeIsPlannedFromATokenNobodyKnowsYet) {
  Bed bed(Ahead());
  bed.Submit(Prompt(1, 3));
  EXPECT_EQ(bed.Plan(), "0:0+3*");
  EXPECT_EQ(bed.Plan(), "0:3+1d*");
  EXPECT_DEATH(bed.scheduler.Plan(0), "steps_in_flight");
  EXPECT_THAT(Ids(bed.Commit({{0, 70}}).events.at(0)), ElementsAre(70));
  EXPECT_EQ(bed.Plan(), "0:4+1d*");
  EXPECT_THAT(Ids(bed.Commit({{0, 71}}).events.at(0)), ElementsAre(71));
  EXPECT_THAT(Ids(bed.Commit({{0, 72}}).events.at(0)), ElementsAre(72));
}

TEST(SchedulerAheadTest, ChunksFollowOneAnother) {
  SchedulerOptions options = Ahead();
  options.limits.max_step_tokens = 5;
  Bed bed(options);
  bed.Submit(Prompt(1, 12));
  EXPECT_EQ(bed.Plan(), "0:0+5");
  EXPECT_EQ(bed.Plan(), "0:5+5");
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "0:10+2*");
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "0:12+1d*");
}

TEST(SchedulerAheadTest, AnEndByLengthIsKnownAheadAndPlansNothing) {
  Bed bed(Ahead());
  bed.Submit(Prompt(1, 3, 2));
  EXPECT_EQ(bed.Plan(), "0:0+3*");
  EXPECT_EQ(bed.Plan(), "0:3+1d*");
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "");
  EXPECT_EQ(bed.Commit().events.at(0).reason, FinishReason::kLength);
  EXPECT_TRUE(bed.scheduler.empty());

  SchedulerOptions options = Ahead();
  options.limits.max_model_len = 4;
  Bed narrow(options);
  narrow.Submit(Prompt(1, 3, 8));
  EXPECT_EQ(narrow.Plan(), "0:0+3*");
  EXPECT_EQ(narrow.Plan(), "") << "the fourth token fills the context";
  EXPECT_TRUE(narrow.Commit().events.at(0).finished);
}

TEST(SchedulerAheadTest, AnEndIdDropsTheSliceThatWentAhead) {
  Bed bed(Ahead());
  Request request = Prompt(1, 3);
  request.stop_ids = {70};
  bed.Submit(request);
  bed.Plan();
  EXPECT_EQ(bed.Plan(), "0:3+1d*");
  const StepOutcome outcome = bed.Commit({{0, 70}});
  EXPECT_EQ(outcome.events.at(0).reason, FinishReason::kStop);
  EXPECT_EQ(bed.scheduler.load().blocks_free, 16);
  // Its row and blocks go to the next one at once; what the dropped slice brings belongs to nobody.
  bed.Submit(Prompt(2, 5, 8, /*first=*/20));
  EXPECT_EQ(bed.Plan(), "0:0+5*");
  EXPECT_THAT(bed.plan.removed, ElementsAre(0));
  EXPECT_THAT(bed.Commit({{0, 99}}).events, IsEmpty());
  EXPECT_THAT(Ids(bed.Commit({{0, 33}}).events.at(0)), ElementsAre(33));
}

TEST(SchedulerAheadTest, AnInvalidTokenDropsTheSliceThatWentAhead) {
  Bed bed(Ahead());
  bed.Submit(Prompt(1, 3));
  bed.Plan();
  bed.Plan();
  EXPECT_EQ(bed.Commit({{0, -1}}).events.at(0).reason, FinishReason::kError);
  EXPECT_THAT(bed.Commit({{0, -1}}).events, IsEmpty());
  EXPECT_TRUE(bed.scheduler.empty());
}

TEST(SchedulerAheadTest, AnAbortUnderAStepInFlightFreesAtOnce) {
  Bed bed(Ahead());
  bed.Submit(Prompt(1, 3));
  bed.Submit(Prompt(2, 3));
  EXPECT_EQ(bed.Plan(), "0:0+3* 1:0+3*");
  EXPECT_TRUE(bed.Abort(1).events.at(0).finished);
  EXPECT_EQ(bed.scheduler.load().blocks_free, 15);
  EXPECT_EQ(bed.Plan(), "1:3+1d*");
  EXPECT_THAT(bed.plan.removed, ElementsAre(0));
  EXPECT_EQ(bed.Commit().events.size(), 1u) << "the second's token; the first's is dropped";
}

TEST(SchedulerAheadTest, CreditCountsTokensInFlight) {
  Bed bed(Ahead());
  Request request = Prompt(1, 3, 8);
  request.credit = 2;
  bed.Submit(request);
  EXPECT_EQ(bed.Plan(), "0:0+3*");
  EXPECT_EQ(bed.Plan(), "0:3+1d*");
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "") << "the second token is on its way";
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "");
  bed.scheduler.AddCredit(1, 1);
  EXPECT_EQ(bed.Plan(), "0:4+1d*");
}

TEST(SchedulerAheadTest, BadWordsWaitForTheLastToken) {
  Bed bed(Ahead());
  Request request = Prompt(1, 3);
  request.sampling.bad_words = {{5, 6}};
  bed.Submit(request);
  bed.Submit(Prompt(2, 3));
  EXPECT_EQ(bed.Plan(), "0:0+3* 1:0+3*");
  EXPECT_EQ(bed.Plan(), "1:3+1d*");
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "0:3+1d* 1:4+1d*");
}

SchedulerOptions Tight() {
  SchedulerOptions options = Ahead();
  options.limits.num_blocks = 4;
  options.limits.max_model_len = 16;
  return options;
}

TEST(SchedulerAheadTest, APreemptionUnderAStepInFlightKeepsItsToken) {
  Bed bed(Tight());
  bed.Submit(Prompt(1, 7, 4));
  bed.Submit(Prompt(2, 7, 6, /*first=*/20));
  EXPECT_EQ(bed.Plan(), "0:0+7* 1:0+7*");
  EXPECT_EQ(bed.Plan(), "0:7+1d* 1:7+1d*");
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "0:8+1d*") << "the second made room while its token is being drawn";
  EXPECT_THAT(bed.plan.removed, ElementsAre(1));
  const StepOutcome outcome = bed.Commit({{0, 65}, {1, 66}});
  ASSERT_EQ(outcome.events.size(), 2u);
  EXPECT_THAT(Ids(outcome.events[1]), ElementsAre(66)) << "and has it all the same";
  EXPECT_EQ(bed.Plan(), "0:9+1d*");
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "");
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "0:4+5*") << "its first block is still in the cache";
  ASSERT_EQ(bed.plan.added.size(), 1u);
  EXPECT_THAT(bed.plan.added[0].output_ids, ElementsAre(61, 66));
}

TEST(SchedulerAheadTest, NobodyIsPreemptedForBlocksThatTheNextCommitGives) {
  Bed bed(Tight());
  bed.Submit(Prompt(1, 7, 6));
  bed.Submit(Prompt(2, 7, 2, /*first=*/20));
  EXPECT_EQ(bed.Plan(), "0:0+7* 1:0+7*");
  EXPECT_EQ(bed.Plan(), "0:7+1d* 1:7+1d*");
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "");
  EXPECT_EQ(bed.scheduler.counters().preemptions, 0u);
  bed.Commit();
  EXPECT_EQ(bed.Plan(), "0:8+1d*");
}

// A block is known by its content once all its tokens are committed, not while they are computed.
TEST(SchedulerAheadTest, AStepInFlightFillsNoPrefixCache) {
  Bed bed(Ahead());
  bed.Submit(Prompt(1, 9, 1));
  bed.Plan();
  bed.Submit(Prompt(2, 9, 1));
  EXPECT_EQ(bed.Plan(), "1:0+9*");
  bed.Commit();
  bed.Submit(Prompt(3, 9, 1));
  EXPECT_EQ(bed.Plan(), "0:8+1*");
}

}  // namespace
}  // namespace phalanx::worker::plan
