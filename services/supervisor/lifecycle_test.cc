#include "services/supervisor/lifecycle.h"

#include <gtest/gtest.h>

namespace phalanx::services::supervisor {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
constexpr auto kSpawn = Order::Kind::kSpawn;
constexpr auto kTerminate = Order::Kind::kTerminate;
constexpr auto kKill = Order::Kind::kKill;
using Orders = std::vector<Order>;

// Three children as `phalanx serve` has them: 0 ends last, 2 first.
struct Case {
  ManualClock clock;
  Lifecycle life;
  explicit Case(std::vector<ChildPolicy> children = {{0, 2}, {1, 1}, {2, 0}}, milliseconds grace = seconds(30))
      : life(children, {.backoff = {}, .grace = grace, .slack = seconds(1)}) {}
  Orders Due() { return life.Due(clock.Now()); }
  void Launch(size_t count = 3) {
    life.Start(clock.Now());
    EXPECT_EQ(Due().size(), count);
    for (size_t i = 0; i < count; ++i) life.OnReady(i);
    EXPECT_TRUE(life.launched());
  }
  std::optional<milliseconds> Exit(size_t child) { return life.OnExit(child, clock.Now()); }
};

TEST(Backoff, DoublesToTheMostAndStartsAgainAfterASteadyLife) {
  Backoff backoff({});
  for (const int expected : {100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000}) {
    EXPECT_EQ(backoff.NextWait(seconds(1)), milliseconds(expected));
  }
  EXPECT_EQ(backoff.NextWait(milliseconds(29999)), milliseconds(10000));
  EXPECT_EQ(backoff.NextWait(seconds(30)), milliseconds(100));
  EXPECT_EQ(backoff.NextWait(seconds(1)), milliseconds(200));
}

TEST(Lifecycle, StartsAllAtOnceAndEachOrderOnce) {
  Case c;
  EXPECT_EQ(c.Due(), Orders{});
  c.life.Start(c.clock.Now());
  EXPECT_EQ(c.Due(), (Orders{{kSpawn, 0}, {kSpawn, 1}, {kSpawn, 2}}));
  EXPECT_EQ(c.Due(), Orders{});
  EXPECT_EQ(c.life.NextDue(), std::nullopt);
  c.life.OnReady(0);
  c.life.OnReady(1);
  EXPECT_FALSE(c.life.launched());
  c.life.OnReady(2);
  EXPECT_TRUE(c.life.launched());
}

TEST(Lifecycle, ADeathBeforeAllWereReadyFailsTheStart) {
  Case c;
  c.life.Start(c.clock.Now());
  c.Due();
  c.life.OnReady(1);
  EXPECT_EQ(c.Exit(2), std::nullopt);
  EXPECT_EQ(c.life.failed(), 2u);
  EXPECT_EQ(c.Due(), (Orders{{kKill, 0}, {kKill, 1}}));
  EXPECT_EQ(c.Due(), Orders{});
  c.Exit(0);
  EXPECT_FALSE(c.life.finished());
  c.Exit(1);
  EXPECT_TRUE(c.life.finished());
  EXPECT_EQ(c.life.failed(), 2u);
}

TEST(Lifecycle, RestartsOnlyWhatDiedAfterTheBackoff) {
  Case c;
  c.Launch();
  c.clock.Advance(seconds(5));
  EXPECT_EQ(c.Exit(0), milliseconds(100));
  EXPECT_EQ(c.Due(), Orders{});
  EXPECT_EQ(c.life.NextDue(), c.clock.Now() + milliseconds(100));
  c.clock.Advance(milliseconds(100));
  EXPECT_EQ(c.Due(), (Orders{{kSpawn, 0}}));
  EXPECT_EQ(c.life.state(0), ChildState::kStarting);
  EXPECT_EQ(c.Exit(0), milliseconds(200));  // not ready again: no failure of the whole, but a longer wait
  EXPECT_EQ(c.life.failed(), std::nullopt);
  c.clock.Advance(milliseconds(200));
  EXPECT_EQ(c.Due(), (Orders{{kSpawn, 0}}));
  c.life.OnReady(0);
  c.clock.Advance(seconds(31));
  EXPECT_EQ(c.Exit(0), milliseconds(100));
}

TEST(Lifecycle, RestartsAUnitAsOne) {
  Case c({{7, 1}, {7, 1}, {8, 0}});
  c.Launch();
  EXPECT_EQ(c.Exit(1), milliseconds(100));
  EXPECT_EQ(c.Due(), (Orders{{kKill, 0}}));
  c.clock.Advance(milliseconds(250));
  EXPECT_EQ(c.Due(), Orders{});  // the other one is still there
  EXPECT_EQ(c.Exit(0), milliseconds(0));
  EXPECT_EQ(c.Due(), (Orders{{kSpawn, 0}, {kSpawn, 1}}));
  EXPECT_EQ(c.Exit(0), milliseconds(200));  // one back-off for the unit, not one for each child
}

TEST(Lifecycle, StopsStageByStage) {
  Case c;
  c.Launch();
  c.life.Stop(c.clock.Now());
  EXPECT_EQ(c.Due(), (Orders{{kTerminate, 2}}));
  c.clock.Advance(seconds(20));
  EXPECT_EQ(c.Due(), Orders{});
  EXPECT_EQ(c.Exit(2), std::nullopt);
  EXPECT_EQ(c.Due(), (Orders{{kTerminate, 1}}));
  c.Exit(1);
  EXPECT_EQ(c.Due(), (Orders{{kTerminate, 0}}));
  EXPECT_FALSE(c.life.finished());
  c.Exit(0);
  EXPECT_TRUE(c.life.finished());
}

TEST(Lifecycle, KillsWhatOutlivesGraceAndSlack) {
  Case c;
  c.Launch();
  const Time stop = c.clock.Now();
  c.life.Stop(stop);
  c.Due();
  EXPECT_EQ(c.life.NextDue(), stop + seconds(31));
  c.clock.Advance(milliseconds(30999));
  EXPECT_EQ(c.Due(), Orders{});
  c.clock.Advance(milliseconds(1));
  EXPECT_EQ(c.Due(), (Orders{{kKill, 2}}));
  c.clock.Advance(milliseconds(100));
  c.Exit(2);
  EXPECT_EQ(c.Due(), (Orders{{kTerminate, 1}}));
  EXPECT_EQ(c.life.NextDue(), stop + seconds(32));  // counts from the stop: the stages do not add up
  c.clock.Advance(milliseconds(900));
  EXPECT_EQ(c.Due(), (Orders{{kKill, 1}}));
  c.Exit(1);
  c.clock.Advance(milliseconds(900));
  EXPECT_EQ(c.Due(), (Orders{{kTerminate, 0}}));
  c.clock.Advance(milliseconds(499));
  EXPECT_EQ(c.Due(), Orders{});
  c.clock.Advance(milliseconds(601));
  EXPECT_EQ(c.Due(), (Orders{{kKill, 0}}));
  EXPECT_LE(c.clock.Now() - stop, seconds(30) + seconds(5));
}

TEST(Lifecycle, NoGraceBeforeTheLaunch) {
  Case c;
  c.life.Start(c.clock.Now());
  c.Due();
  c.life.Stop(c.clock.Now());
  EXPECT_EQ(c.Due(), (Orders{{kTerminate, 0}, {kTerminate, 1}, {kTerminate, 2}}));
  c.Exit(1);
  EXPECT_EQ(c.life.failed(), std::nullopt);  // it was told to
  c.clock.Advance(seconds(1));
  EXPECT_EQ(c.Due(), (Orders{{kKill, 0}, {kKill, 2}}));
}

TEST(Lifecycle, StopNowKillsAtOnceAlsoDuringAStop) {
  Case c;
  c.Launch();
  c.life.Stop(c.clock.Now());
  c.Due();
  c.life.StopNow();
  EXPECT_EQ(c.Due(), (Orders{{kKill, 0}, {kKill, 1}, {kKill, 2}}));
  EXPECT_EQ(c.Due(), Orders{});
}

TEST(Lifecycle, NothingIsRestartedDuringAStop) {
  Case c;
  c.Launch();
  EXPECT_EQ(c.Exit(1), milliseconds(100));
  c.life.Stop(c.clock.Now());
  c.clock.Advance(seconds(2));
  EXPECT_EQ(c.Due(), (Orders{{kTerminate, 2}}));
  c.Exit(2);
  EXPECT_EQ(c.Due(), (Orders{{kTerminate, 0}}));
  c.Exit(0);
  EXPECT_TRUE(c.life.finished());
}

}  // namespace
}  // namespace phalanx::services::supervisor
