#include "router/admission.h"

#include <gtest/gtest.h>

#include <set>

#include "router/core/validate.h"

namespace phalanx::router {
namespace {

constexpr AdmissionState kIdle{.ready_workers = 1};

TEST(Admission, Rows) {
  const struct {
    const char* name;
    AdmissionState state;
    AdmissionLimits limits;
    int64_t choices;
    absl::StatusCode want;
  } rows[] = {
      {"idle", kIdle, {}, 1, absl::StatusCode::kOk},
      {"no worker", {}, {}, 1, absl::StatusCode::kUnavailable},
      {"draining", {.ready_workers = 1, .draining = true}, {}, 1, absl::StatusCode::kUnavailable},
      {"below the limit", {.requests = 3, .ready_workers = 1}, {.max_requests = 4}, 1, absl::StatusCode::kOk},
      {"at the limit", {.requests = 4, .ready_workers = 1}, {.max_requests = 4}, 1, absl::StatusCode::kResourceExhausted},
      {"off is not endless", {.requests = 10, .ready_workers = 1}, {.hard_requests = 10}, 1, absl::StatusCode::kResourceExhausted},
      {"the hard cap is above the limit", {.requests = 10, .ready_workers = 1}, {.max_requests = 99, .hard_requests = 10}, 1,
       absl::StatusCode::kResourceExhausted},
      {"the last choices", {.choices = 6, .ready_workers = 1}, {.hard_choices = 10}, 4, absl::StatusCode::kOk},
      {"one choice too many", {.choices = 6, .ready_workers = 1}, {.hard_choices = 10}, 5, absl::StatusCode::kResourceExhausted},
  };
  for (const auto& row : rows) {
    const absl::Status status = Enter(row.state, row.limits, row.choices);
    EXPECT_EQ(status.code(), row.want) << row.name;
    EXPECT_EQ(core::RetryAfterOf(status) >= 1, !status.ok()) << row.name;
    const char* code = absl::IsResourceExhausted(status) ? "queue_full" : absl::IsUnavailable(status) ? "unavailable" : "";
    EXPECT_EQ(core::ErrorCodeOf(status), code) << row.name;
  }
}

TEST(Admission, RetryAfterFollowsTheQueueAndTheRate) {
  EXPECT_EQ(RetryAfterSeconds({.requests = 100}), 1);                                  // nothing known
  EXPECT_EQ(RetryAfterSeconds({.requests = 100, .finished_per_second = 100}), 1);
  EXPECT_EQ(RetryAfterSeconds({.requests = 100, .finished_per_second = 10}), 5);
  EXPECT_EQ(RetryAfterSeconds({.requests = 100000, .finished_per_second = 1}), 28);
  std::set<int> spread;
  for (uint64_t turn = 0; turn < 9; ++turn) spread.insert(RetryAfterSeconds({.requests = 1000000, .finished_per_second = 1, .turn = turn}));
  EXPECT_EQ(spread, (std::set<int>{28, 29, 30}));
}

TEST(Admission, TheRateForgets) {
  services::ManualClock clock;
  FinishRate rate;
  EXPECT_EQ(rate.PerSecond(clock.Now()), 0);
  for (int i = 0; i < 400; ++i) {
    clock.Advance(std::chrono::milliseconds(100));
    rate.Add(clock.Now());
  }
  EXPECT_NEAR(rate.PerSecond(clock.Now()), 10, 0.3);
  clock.Advance(std::chrono::seconds(60));
  EXPECT_LT(rate.PerSecond(clock.Now()), 0.01);
}

}  // namespace
}  // namespace phalanx::router
