#include "router/fleet/fleet.h"

#include <gtest/gtest.h>

namespace phalanx::router::fleet {
namespace {

core::WorkerInfo Info(int32_t vocab, int32_t length) { return {.model = "m", .vocab_size = vocab, .max_model_len = length, .max_logprobs = 20}; }

TEST(Fleet, TakesTheSmallestLimits) {
  Fleet fleet(2);
  EXPECT_EQ(fleet.served().max_model_len, 0);
  ASSERT_TRUE(fleet.Up(0, 1, Info(100, 4096)).ok());
  ASSERT_TRUE(fleet.Up(1, 2, Info(100, 2048)).ok());
  EXPECT_EQ(fleet.served().max_model_len, 2048);
  EXPECT_EQ(fleet.ready_count(), 2);
}

TEST(Fleet, RefusesAnotherModel) {
  Fleet fleet(2);
  ASSERT_TRUE(fleet.Up(0, 1, Info(100, 4096)).ok());
  EXPECT_EQ(fleet.Up(1, 2, Info(101, 4096)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(fleet.ready_count(), 1);
}

TEST(Fleet, CountsWhatIsThereAndForgetsItWhenTheWorkerGoes) {
  Fleet fleet(1);
  ASSERT_TRUE(fleet.Up(0, 1, Info(100, 4096)).ok());
  fleet.Sent(0, 30);
  fleet.Sent(0, 12);
  EXPECT_EQ(fleet.snapshot().workers[0].in_flight, 2);
  EXPECT_EQ(fleet.snapshot().workers[0].sent_tokens, 42);
  fleet.Report(0, {.running = 2});
  EXPECT_EQ(fleet.snapshot().workers[0].sent_tokens, 0);
  fleet.Gone(0);
  EXPECT_EQ(fleet.snapshot().workers[0].in_flight, 1);
  fleet.Down(0);
  EXPECT_FALSE(fleet.snapshot().workers[0].ready);
  EXPECT_EQ(fleet.ready_count(), 0);
}

TEST(Fleet, ADrainingWorkerDoesNotCount) {
  Fleet fleet(1);
  ASSERT_TRUE(fleet.Up(0, 1, Info(100, 4096)).ok());
  fleet.Report(0, {.draining = true});
  EXPECT_EQ(fleet.ready_count(), 0);
}

}  // namespace
}  // namespace phalanx::router::fleet
