// services/supervisor/lifecycle.h: decides when each child of a group is started, restarted, told to end and killed.
// Refuses to know: what the children do, and every system call. Thread: one owner. Time is an argument: same facts, same orders.
// Neighbours: group.h tells it what happened and carries out its orders.
//
// Rules. All children start at once. One that ends before every child was ready once fails the whole start, and the rest are killed:
// what cannot start will not start a second time either. Later, a child that ends is started again after a back-off, together with the
// other children of its unit. Stop tells the lowest stage to end and goes on to the next stage when that one is gone.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <vector>

#include "services/clock.h"

namespace phalanx::services::supervisor {

using Milliseconds = std::chrono::milliseconds;

struct BackoffOptions {
  Milliseconds first{100};         // wait before the first restart; doubles with each further one
  Milliseconds max{10000};
  Milliseconds steady_after{30000};  // one that lived so long starts again from `first`
};

// How long to wait before each restart.
class Backoff {
 public:
  explicit Backoff(BackoffOptions options) : options_(options), next_(options.first) {}
  // What lived for `alive` has ended: the wait before its restart.
  Milliseconds NextWait(std::chrono::nanoseconds alive);

 private:
  const BackoffOptions options_;
  Milliseconds next_;
};

struct ChildPolicy {
  int unit = 0;   // children of one unit are restarted as one
  int stage = 0;  // order of the stop, lowest first
};

struct LifecycleOptions {
  BackoffOptions backoff;
  Milliseconds grace{0};      // what is running may take so long to finish after Stop
  Milliseconds slack{1000};   // added for each stage before a child that has not ended is killed
};

enum class ChildState { kDown, kStarting, kReady };

struct Order {
  enum class Kind { kSpawn, kTerminate, kKill };
  Kind kind = Kind::kSpawn;
  size_t child = 0;
  bool operator==(const Order&) const = default;
};

class Lifecycle {
 public:
  Lifecycle(const std::vector<ChildPolicy>& children, LifecycleOptions options);

  // Facts. OnExit also reports a child that could not be spawned. Returns the wait before the restart, nullopt if there will be none.
  void Start(Time now);
  void OnReady(size_t child);
  std::optional<Milliseconds> OnExit(size_t child, Time now);
  // Before every child was ready once nothing can be running, so there is no grace and no order of stages.
  void Stop(Time now);
  void StopNow();

  // What is to be done by now; each order is given once. A child counts as starting from its kSpawn on.
  std::vector<Order> Due(Time now);
  // When Due has something next, if nothing happens before.
  std::optional<Time> NextDue() const;

  ChildState state(size_t child) const { return children_[child].state; }
  bool launched() const { return launched_; }               // every child was ready once
  std::optional<size_t> failed() const { return failed_; }  // the child that ended before that
  bool stopping() const { return stop_ != StopMode::kNone; }
  bool finished() const;                                    // stopping, and no child is left

 private:
  enum class StopMode { kNone, kStages, kTogether, kKill };
  struct Child {
    ChildPolicy policy;
    ChildState state = ChildState::kDown;
    bool was_ready = false;
    bool kill = false;              // to be killed at the next Due
    bool killed = false;
    std::optional<Time> told;       // when it was told to end
  };
  struct Unit {
    int id = 0;
    Backoff backoff;
    Time started;
    std::optional<Time> start_at;   // to be started then, once all of it is down
  };

  Unit& UnitOf(const Child& child);
  bool AllDown(const Unit& unit) const;
  std::optional<int> Stage() const;  // the lowest with a child left
  Time KillAt(const Child& child) const;
  void StopOrders(Time now, std::vector<Order>& out);

  const LifecycleOptions options_;
  std::vector<Child> children_;
  std::vector<Unit> units_;
  bool launched_ = false;
  std::optional<size_t> failed_;
  StopMode stop_ = StopMode::kNone;
  Time stop_at_;
};

}  // namespace phalanx::services::supervisor
