// What the scheduler does when something is short or stops, by one literal example a rule: blocks, queue, credit, aborts,
// resumed output.
#include "worker/plan/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "worker/plan/plan_test_util.h"

namespace phalanx::worker::plan {
namespace {

using core::FinishReason;
using core::Request;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// ---- preemption and admission ---------------------------------------------------------------------------------------

// Two sequences of two blocks each in a pool of four: the next block that is needed costs the second one its place.
SchedulerOptions Tight() {
  SchedulerOptions options = Options();
  options.limits.num_blocks = 4;
  options.limits.max_model_len = 16;
  return options;
}

TEST(SchedulerTest, WithoutABlockTheLatestIsPreemptedAndGoesToTheFront) {
  Bed bed(Tight());
  bed.Submit(Prompt(1, 7, 4));
  bed.Submit(Prompt(2, 7, 4, /*first=*/20));
  bed.Submit(Prompt(3, 1, 1, /*first=*/40));
  EXPECT_EQ(bed.Step(), "0:0+7* 1:0+7*");
  EXPECT_EQ(bed.scheduler.load().blocks_free, 0);
  EXPECT_EQ(bed.Step(), "0:7+1d* 1:7+1d*");
  EXPECT_EQ(bed.Step(), "0:8+1d*") << "the second made room; nobody is admitted in such a step";
  EXPECT_EQ(bed.scheduler.counters().preemptions, 1u);
  EXPECT_THAT(bed.plan.removed, ElementsAre(1));
  EXPECT_EQ(bed.scheduler.load().running, 1);
  EXPECT_EQ(bed.scheduler.load().waiting, 2);
  EXPECT_EQ(bed.Step(), "0:9+1d*") << "it comes before the third, and does not fit yet";
  ASSERT_TRUE(bed.last.events.at(0).finished);

  // Back with its outputs as outputs; its first block is still in the cache.
  EXPECT_EQ(bed.Step(), "0:4+5* 1:0+1*");
  ASSERT_EQ(bed.plan.added.size(), 2u);
  EXPECT_EQ(bed.plan.added[0].prompt_length, 7);
  EXPECT_THAT(bed.plan.added[0].output_ids, ElementsAre(61, 61));
  EXPECT_THAT(bed.plan.tokens, ElementsAre(24, 25, 26, 61, 61, 40));
  EXPECT_EQ(bed.last.events.at(0).id, 2u);
  EXPECT_FALSE(bed.last.events.at(0).started) << "it started once already";
  EXPECT_EQ(bed.Step(), "0:9+1d*");
  EXPECT_EQ(bed.last.events.at(0).reason, FinishReason::kLength);
  EXPECT_EQ(bed.last.finished.at(0).output_tokens, 4);
}

TEST(SchedulerTest, APromptIsAdmittedOnlyIfAllOfItFits) {
  SchedulerOptions options = Tight();
  options.limits.max_step_tokens = 4;
  Bed bed(options);
  bed.Submit(Prompt(1, 12, 1));
  bed.Submit(Prompt(2, 8, 1, /*first=*/30));
  EXPECT_EQ(bed.Step(), "0:0+4");
  EXPECT_EQ(bed.Step(), "0:4+4");
  EXPECT_EQ(bed.Step(), "0:8+4*");
  EXPECT_EQ(bed.Step(), "0:0+4") << "the second had to wait: 3 + 2 blocks are more than 4, although its first chunk would have fitted";
  EXPECT_EQ(bed.scheduler.counters().preemptions, 0u);
}

TEST(SchedulerTest, WhatCanNeverRunIsRefusedWithNumbers) {
  SchedulerOptions options = Tight();
  options.limits.max_model_len = 32;
  Bed bed(options);
  const auto refusal = [&](Request request) {
    const absl::Status status = bed.scheduler.Submit(std::move(request), bed.now);
    return status.ok() ? "accepted" : absl::StrCat(absl::StatusCodeToString(status.code()), ": ", std::string(status.message()));
  };
  EXPECT_THAT(refusal(Prompt(1, 32, 1)), HasSubstr("INVALID_ARGUMENT: the prompt has 32 tokens, and the model's context is 32"));
  EXPECT_THAT(refusal(Prompt(1, 10, 8)), HasSubstr("may grow to 17 tokens, and the KV cache holds 16"));
  EXPECT_THAT(refusal(Prompt(1, 0)), HasSubstr("prompt_ids is empty"));
  Request resumed = Prompt(1, 2, 2);
  resumed.resume_output_ids = {5, 6};
  EXPECT_THAT(refusal(resumed), HasSubstr("resume_output_ids must be shorter than max_tokens"));
  EXPECT_EQ(bed.scheduler.counters().rejected, 4u);
  EXPECT_TRUE(bed.scheduler.empty());
  EXPECT_EQ(refusal(Prompt(1, 10, 7)), "accepted") << "16 tokens are computed, the 17th is only drawn";
  EXPECT_THAT(refusal(Prompt(1, 3)), HasSubstr("the sequence id is in use"));
  bed.Finish();
  EXPECT_TRUE(bed.scheduler.empty());
}

TEST(SchedulerTest, TheQueueIsBounded) {
  SchedulerOptions options = Options();
  options.max_waiting = 2;
  Bed bed(options);
  bed.Submit(Prompt(1, 3));
  bed.Submit(Prompt(2, 3));
  const absl::Status third = bed.scheduler.Submit(Prompt(3, 3), bed.now);
  EXPECT_EQ(third.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(third.message()), HasSubstr("2 waiting"));
  bed.Step();
  bed.Submit(Prompt(3, 3));
}

// ---- abort ----------------------------------------------------------------------------------------------------------

TEST(SchedulerTest, AbortWhileWaiting) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 9));
  const StepOutcome outcome = bed.Abort(1);
  ASSERT_EQ(outcome.events.size(), 1u);
  EXPECT_TRUE(outcome.events[0].finished);
  EXPECT_FALSE(outcome.events[0].started);
  EXPECT_EQ(outcome.events[0].reason, FinishReason::kAbort);
  EXPECT_FALSE(outcome.finished.at(0).produced);
  EXPECT_EQ(bed.scheduler.load().waiting_tokens, 0);
  EXPECT_EQ(bed.Plan(), "");
}

TEST(SchedulerTest, AbortInMidPrefillKeepsWhatWasComputedForOthers) {
  SchedulerOptions options = Options();
  options.limits.max_step_tokens = 8;
  Bed bed(options);
  bed.Submit(Prompt(1, 20));
  bed.Step();
  EXPECT_EQ(bed.Abort(1).events.at(0).reason, FinishReason::kAbort);
  EXPECT_EQ(bed.scheduler.load().blocks_free, 16);
  bed.Submit(Prompt(2, 20));
  EXPECT_EQ(bed.Step(), "0:8+8");
  EXPECT_THAT(bed.plan.removed, ElementsAre(0));
  EXPECT_EQ(bed.last.events.at(0).cached_tokens, 8);
}

TEST(SchedulerTest, AbortWhileDecodingLeavesTheOthers) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 3));
  bed.Submit(Prompt(2, 3));
  bed.Step();
  const StepOutcome outcome = bed.Abort(1);
  EXPECT_THAT(Ids(outcome.events.at(0)), IsEmpty());
  EXPECT_EQ(outcome.finished.at(0).output_tokens, 1);
  EXPECT_EQ(bed.Step(), "1:3+1d*");
  EXPECT_THAT(bed.plan.removed, ElementsAre(0));
}

TEST(SchedulerTest, AbortAfterAPreemption) {
  Bed bed(Tight());
  bed.Submit(Prompt(1, 7, 4));
  bed.Submit(Prompt(2, 7, 4, 20));
  for (int i = 0; i < 3; ++i) bed.Step();
  ASSERT_EQ(bed.scheduler.counters().preemptions, 1u);
  bed.Abort(2);
  EXPECT_EQ(bed.scheduler.load().waiting, 0);
  EXPECT_EQ(bed.Step(), "0:9+1d*");
}

TEST(SchedulerTest, AnUnknownOrEndedSequenceCannotBeAborted) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 3, 1));
  bed.Step();
  StepOutcome outcome;
  EXPECT_FALSE(bed.scheduler.Abort(1, bed.now, outcome));
  EXPECT_FALSE(bed.scheduler.Abort(2, bed.now, outcome));
  EXPECT_THAT(outcome.events, IsEmpty());
}

// ---- credit ---------------------------------------------------------------------------------------------------------

TEST(SchedulerTest, WithoutCreditASequencePausesAndKeepsItsBlocks) {
  Bed bed(Options());
  Request request = Prompt(1, 3, 8);
  request.credit = 2;
  bed.Submit(request);
  EXPECT_EQ(bed.Step(), "0:0+3*");
  EXPECT_EQ(bed.Step(), "0:3+1d*");
  EXPECT_EQ(bed.Step(), "");
  EXPECT_EQ(bed.scheduler.load().running, 1);
  EXPECT_EQ(bed.scheduler.load().blocks_free, 15);
  bed.scheduler.AddCredit(1, 1);
  bed.scheduler.AddCredit(99, 5);  // unknown: ignored
  EXPECT_EQ(bed.Step(), "0:4+1d*");
  EXPECT_EQ(bed.Step(), "");
}

TEST(SchedulerTest, AWaitingSequenceWithoutCreditIsPassedBy) {
  Bed bed(Options());
  Request stalled = Prompt(1, 3);
  stalled.credit = 0;
  bed.Submit(stalled);
  bed.Submit(Prompt(2, 4, 2));
  EXPECT_EQ(bed.Step(), "0:0+4*");
  bed.scheduler.AddCredit(1, 1);
  EXPECT_EQ(bed.Step(), "0:4+1d* 1:0+3*");
}

TEST(SchedulerTest, AStalledSequenceMakesWayBeforeAnybodyElse) {
  Bed bed(Tight());
  Request stalled = Prompt(1, 7, 4);
  stalled.credit = 1;
  bed.Submit(stalled);
  bed.Submit(Prompt(2, 7, 4, /*first=*/20));
  EXPECT_EQ(bed.Step(), "0:0+7* 1:0+7*");
  EXPECT_EQ(bed.Step(), "1:7+1d*");
  EXPECT_EQ(bed.Step(), "1:8+1d*") << "the older one has no credit, so it is the one to go";
  EXPECT_THAT(bed.plan.removed, ElementsAre(0));
  EXPECT_EQ(bed.Step(), "1:9+1d*");
  EXPECT_EQ(bed.Step(), "") << "it is not admitted before it has credit";
  bed.scheduler.AddCredit(1, 9);
  EXPECT_EQ(bed.Step(), "1:4+4*");
}

TEST(SchedulerTest, AStalledSequenceMakesWayForAWaitingOne) {
  Bed bed(Tight());
  Request stalled = Prompt(1, 8, 4);
  stalled.credit = 1;
  bed.Submit(stalled);
  bed.Step();
  bed.Submit(Prompt(2, 12, 2, /*first=*/20));
  EXPECT_EQ(bed.Step(), "0:0+12*");
  EXPECT_EQ(bed.scheduler.counters().preemptions, 1u);
  EXPECT_EQ(bed.scheduler.load().waiting, 1);
}

// ---- resumed output -------------------------------------------------------------------------------------------------

TEST(SchedulerTest, ResumedOutputCountsAsOutputAndIsNotSentAgain) {
  Bed bed(Options());
  Request resumed = Prompt(1, 3, /*max_tokens=*/4);
  resumed.resume_output_ids = {50, 51};
  resumed.min_tokens = 3;
  resumed.stop_ids = {70};
  bed.Submit(resumed);
  EXPECT_EQ(bed.Step({{0, 70}}), "0:0+5*");
  EXPECT_THAT(bed.plan.tokens, ElementsAre(1, 2, 3, 50, 51));
  EXPECT_EQ(bed.plan.added.at(0).prompt_length, 3);
  EXPECT_THAT(bed.plan.added.at(0).output_ids, ElementsAre(50, 51));
  EXPECT_THAT(Ids(bed.last.events.at(0)), ElementsAre(70));
  EXPECT_FALSE(bed.last.events.at(0).finished) << "the third output is within min_tokens";
  EXPECT_EQ(bed.Step(), "0:5+1d*");
  EXPECT_TRUE(bed.last.events.at(0).finished);
  EXPECT_EQ(bed.last.events.at(0).reason, FinishReason::kLength);
  EXPECT_EQ(bed.last.finished.at(0).output_tokens, 4);
  EXPECT_EQ(bed.last.finished.at(0).prompt_tokens, 3);
}

TEST(SchedulerTest, AResumedSequenceFindsItsBlocksAndReportsPromptTokensOnly) {
  Bed bed(Options());
  bed.Submit(Prompt(1, 5, 8));
  bed.Finish();
  Request resumed = Prompt(2, 5, 8);
  resumed.resume_output_ids = {60, 60, 60, 60};
  bed.Submit(resumed);
  EXPECT_EQ(bed.Step(), "0:8+1*");
  EXPECT_EQ(bed.last.events.at(0).cached_tokens, 5) << "eight were found, five of them are prompt";
}

}  // namespace
}  // namespace phalanx::worker::plan
