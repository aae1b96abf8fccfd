// The one state of a process and who hears of it.
#include "services/health.h"

#include <gtest/gtest.h>

namespace phalanx::services {
namespace {

using S = HealthState;

TEST(Health, WatchersHearThePresentStateAndEachChange) {
  Health health;
  std::vector<S> heard;
  EXPECT_EQ(health.state(), S::kStarting);
  health.Watch([&](S state) { heard.push_back(state); });
  health.Set(S::kReady);
  health.Set(S::kReady);
  EXPECT_TRUE(health.ready());
  std::vector<S> late;
  health.Watch([&](S state) { late.push_back(state); });
  health.Set(S::kDraining);
  EXPECT_FALSE(health.ready());
  health.Set(S::kReady);  // a drain may be called off
  health.Set(S::kStopped);
  EXPECT_EQ(heard, (std::vector<S>{S::kStarting, S::kReady, S::kDraining, S::kReady, S::kStopped}));
  EXPECT_EQ(late, (std::vector<S>{S::kReady, S::kDraining, S::kReady, S::kStopped}));
}

TEST(Health, TheEndIsFinal) {
  for (const S end : {S::kStopped, S::kFailed}) {
    Health health;
    health.Set(end);
    for (const S other : {S::kStarting, S::kReady, S::kDraining, S::kStopped, S::kFailed}) health.Set(other);
    EXPECT_EQ(health.state(), end);
  }
}

TEST(Health, Names) {
  EXPECT_EQ(HealthStateName(S::kStarting), "starting");
  EXPECT_EQ(HealthStateName(S::kReady), "ready");
  EXPECT_EQ(HealthStateName(S::kDraining), "draining");
  EXPECT_EQ(HealthStateName(S::kStopped), "stopped");
  EXPECT_EQ(HealthStateName(S::kFailed), "failed");
}

}  // namespace
}  // namespace phalanx::services
