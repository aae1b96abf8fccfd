#include "worker/step_times.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace phalanx::worker {
namespace {

using ::testing::HasSubstr;

TEST(StepTimesTest, ALineComesOncePerSoManyStepsWithTheMeans) {
  StepTimes times;
  const StepTimes::Step step{
      .num_tokens = 8, .plan = 10e-6, .launch = 20e-6, .wait = 1e-3, .commit = 5e-6, .emit = 2e-6, .device = -1, .sample = -1};
  for (int32_t i = 1; i < StepTimes::kStepsPerLine; ++i) EXPECT_EQ(times.Sum(step), "");
  const std::string line = times.Sum(step);
  EXPECT_EQ(line, "100 steps of 8.0 tokens, on average: plan 10 us, launch 20, wait 1000, commit 5, emit 2");
  EXPECT_EQ(times.Sum(step), "") << "it has begun anew";
}

TEST(StepTimesTest, TheDevicesTimeIsTheMeanOfTheStepsThatMeasuredIt) {
  StepTimes times;
  std::string line;
  for (int32_t i = 0; i < StepTimes::kStepsPerLine; ++i) {
    StepTimes::Step step;
    step.device = i < 10 ? 2e-3 : -1;
    step.sample = i < 5 ? 1e-4 : -1;
    line = times.Sum(step);
  }
  EXPECT_THAT(line, HasSubstr("; device 2000 us, of it sampling 100"));
}

TEST(StepTimesTest, NothingIsWantedBelowDebug) { EXPECT_FALSE(StepTimes().wanted()); }

}  // namespace
}  // namespace phalanx::worker
