#include "services/supervisor/lifecycle.h"

#include <algorithm>

#include "services/check.h"

namespace phalanx::services::supervisor {

Milliseconds Backoff::NextWait(std::chrono::nanoseconds alive) {
  if (alive >= options_.steady_after) next_ = options_.first;
  const Milliseconds wait = next_;
  next_ = std::min(next_ * 2, options_.max);
  return wait;
}

Lifecycle::Lifecycle(const std::vector<ChildPolicy>& children, LifecycleOptions options) : options_(options) {
  for (const ChildPolicy& policy : children) {
    children_.push_back({.policy = policy});
    const bool known = std::any_of(units_.begin(), units_.end(), [&](const Unit& unit) { return unit.id == policy.unit; });
    if (!known) units_.push_back({policy.unit, Backoff(options.backoff), {}, {}});
  }
}

Lifecycle::Unit& Lifecycle::UnitOf(const Child& child) {
  const auto found = std::find_if(units_.begin(), units_.end(), [&](const Unit& unit) { return unit.id == child.policy.unit; });
  PHX_CHECK(found != units_.end());
  return *found;
}

bool Lifecycle::AllDown(const Unit& unit) const {
  return std::all_of(children_.begin(), children_.end(),
                     [&](const Child& child) { return child.policy.unit != unit.id || child.state == ChildState::kDown; });
}

bool Lifecycle::finished() const {
  return stopping() && std::all_of(children_.begin(), children_.end(), [](const Child& c) { return c.state == ChildState::kDown; });
}

void Lifecycle::Start(Time now) {
  for (Unit& unit : units_) unit.start_at = now;
}

void Lifecycle::OnReady(size_t index) {
  Child& child = children_[index];
  if (child.state != ChildState::kStarting) return;
  child.state = ChildState::kReady;
  child.was_ready = true;
  launched_ = launched_ || std::all_of(children_.begin(), children_.end(), [](const Child& c) { return c.was_ready; });
}

std::optional<Milliseconds> Lifecycle::OnExit(size_t index, Time now) {
  Child& child = children_[index];
  child.state = ChildState::kDown;
  child.kill = false;
  if (stopping()) return std::nullopt;
  if (!launched_) {
    failed_ = index;
    StopNow();
    return std::nullopt;
  }
  Unit& unit = UnitOf(child);
  if (!unit.start_at) {
    unit.start_at = now + unit.backoff.NextWait(now - unit.started);
    for (Child& other : children_) {
      if (other.policy.unit == unit.id && other.state != ChildState::kDown) other.kill = true;
    }
  }
  return std::max(std::chrono::duration_cast<Milliseconds>(*unit.start_at - now), Milliseconds(0));
}

void Lifecycle::Stop(Time now) {
  if (stopping()) return;
  stop_ = launched_ ? StopMode::kStages : StopMode::kTogether;
  stop_at_ = now;
}

void Lifecycle::StopNow() {
  stop_ = StopMode::kKill;
  for (Child& child : children_) child.kill = child.state != ChildState::kDown && !child.killed;
}

std::optional<int> Lifecycle::Stage() const {
  std::optional<int> lowest;
  for (const Child& child : children_) {
    if (child.state != ChildState::kDown && (!lowest || child.policy.stage < *lowest)) lowest = child.policy.stage;
  }
  return lowest;
}

// The bound counts from Stop, not from the moment the child was told, so that slow stages do not add up. A child that is told late
// still gets half a slack to end by itself.
Time Lifecycle::KillAt(const Child& child) const {
  if (stop_ == StopMode::kTogether) return stop_at_ + options_.slack;
  const Milliseconds grace = child.state == ChildState::kReady ? options_.grace : Milliseconds(0);
  return std::max(stop_at_ + grace + options_.slack * (child.policy.stage + 1), *child.told + options_.slack / 2);
}

void Lifecycle::StopOrders(Time now, std::vector<Order>& out) {
  const std::optional<int> stage = Stage();
  for (size_t i = 0; i < children_.size(); ++i) {
    Child& child = children_[i];
    if (child.state == ChildState::kDown || child.killed) continue;
    const bool turn = stop_ == StopMode::kTogether || child.policy.stage == *stage;
    if (!child.told && turn) {
      child.told = now;
      out.push_back({Order::Kind::kTerminate, i});
    } else if (child.told && now >= KillAt(child)) {
      child.kill = true;
    }
  }
}

std::vector<Order> Lifecycle::Due(Time now) {
  std::vector<Order> out;
  if (stop_ == StopMode::kStages || stop_ == StopMode::kTogether) StopOrders(now, out);
  for (size_t i = 0; i < children_.size(); ++i) {
    Child& child = children_[i];
    if (!child.kill) continue;
    child.kill = false;
    child.killed = true;
    out.push_back({Order::Kind::kKill, i});
  }
  if (stopping()) return out;
  for (Unit& unit : units_) {
    if (!unit.start_at || now < *unit.start_at || !AllDown(unit)) continue;
    unit.start_at.reset();
    unit.started = now;
    for (size_t i = 0; i < children_.size(); ++i) {
      if (children_[i].policy.unit != unit.id) continue;
      children_[i] = {.policy = children_[i].policy, .state = ChildState::kStarting, .was_ready = children_[i].was_ready};
      out.push_back({Order::Kind::kSpawn, i});
    }
  }
  return out;
}

std::optional<Time> Lifecycle::NextDue() const {
  std::optional<Time> next;
  const auto take = [&next](Time time) { next = next ? std::min(*next, time) : time; };
  const std::optional<int> stage = Stage();
  for (const Child& child : children_) {
    if (child.kill) take(Time());
    if (!stopping() || stop_ == StopMode::kKill || child.state == ChildState::kDown || child.killed) continue;
    if (child.told) {
      take(KillAt(child));
    } else if (stop_ == StopMode::kTogether || child.policy.stage == *stage) {
      take(Time());
    }
  }
  for (const Unit& unit : units_) {
    if (!stopping() && unit.start_at && AllDown(unit)) take(*unit.start_at);
  }
  return next;
}

}  // namespace phalanx::services::supervisor
