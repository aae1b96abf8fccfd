#include "worker/lookahead.h"

#include <gtest/gtest.h>

namespace phalanx::worker {
namespace {

TEST(LookaheadTest, WithoutExperienceItPlansAtOnce) { EXPECT_EQ(Lookahead().Delay(256), 0); }

TEST(LookaheadTest, ItLeavesTimeToPlanAndLaunch) {
  Lookahead lookahead;
  lookahead.Add(2048, 0.015, 0.003);
  EXPECT_NEAR(lookahead.Delay(2048), 0.8 * 0.015 - 0.003 - 0.001, 1e-9);
  EXPECT_NEAR(lookahead.Delay(2100), lookahead.Delay(2048), 1e-9) << "about as many tokens";
  EXPECT_EQ(lookahead.Delay(256), 0) << "another size";
}

TEST(LookaheadTest, ShortStepsAreNotWaitedFor) {
  Lookahead lookahead;
  lookahead.Add(1, 0.0018, 0.00002);
  EXPECT_EQ(lookahead.Delay(1), 0);
}

TEST(LookaheadTest, TheShortestRunAndTheLongestPlanCountAtOnceOthersSlowly) {
  Lookahead lookahead;
  lookahead.Add(256, 0.010, 0.0001);
  lookahead.Add(256, 0.006, 0.0001);
  EXPECT_NEAR(lookahead.Delay(256), 0.8 * 0.006 - 0.0011, 1e-9);
  lookahead.Add(256, 0.006, 0.002);
  EXPECT_NEAR(lookahead.Delay(256), 0.8 * 0.006 - 0.003, 1e-9);
  for (int i = 0; i < 200; ++i) lookahead.Add(256, 0.010, 0.0001);
  EXPECT_NEAR(lookahead.Delay(256), 0.8 * 0.010 - 0.0011, 1e-5);
}

}  // namespace
}  // namespace phalanx::worker
