#include "router/policy/policy.h"

#include <gtest/gtest.h>

namespace phalanx::router::policy {
namespace {

fleet::WorkerView View(int running, int in_flight = 0, int64_t waiting_tokens = 0) {
  fleet::WorkerView view{.ready = true, .in_flight = in_flight};
  view.load.running = running;
  view.load.waiting_tokens = waiting_tokens;
  return view;
}

TEST(PickLeastLoaded, Table) {
  EXPECT_EQ(PickLeastLoaded({}, -1, 0), std::nullopt);
  EXPECT_EQ(PickLeastLoaded({{fleet::WorkerView{}}}, -1, 0), std::nullopt);
  EXPECT_EQ(PickLeastLoaded({{View(3), View(1), View(2)}}, -1, 0), 1);
  EXPECT_EQ(PickLeastLoaded({{View(0, 5), View(3)}}, -1, 0), 1) << "what was sent counts before it is reported";
  EXPECT_EQ(PickLeastLoaded({{View(1, 0, 4096), View(3)}}, -1, 0), 1) << "waiting prompts count";
}

TEST(PickLeastLoaded, TiesGoRound) {
  const fleet::FleetSnapshot even{{View(1), View(1), View(1)}};
  EXPECT_EQ(PickLeastLoaded(even, -1, 0), 0);
  EXPECT_EQ(PickLeastLoaded(even, -1, 1), 1);
  EXPECT_EQ(PickLeastLoaded(even, -1, 5), 2);
}

TEST(PickLeastLoaded, AvoidsUnlessNothingElseIsReady) {
  EXPECT_EQ(PickLeastLoaded({{View(0), View(9)}}, 0, 0), 1);
  EXPECT_EQ(PickLeastLoaded({{View(0), fleet::WorkerView{}}}, 0, 0), 0);
  fleet::WorkerView draining = View(0);
  draining.load.draining = true;
  EXPECT_EQ(PickLeastLoaded({{draining}}, -1, 0), std::nullopt);
}

}  // namespace
}  // namespace phalanx::router::policy
