#include "services/health.h"

namespace phalanx::services {

std::string_view HealthStateName(HealthState state) {
  switch (state) {
    case HealthState::kStarting: return "starting";
    case HealthState::kReady: return "ready";
    case HealthState::kDraining: return "draining";
    case HealthState::kStopped: return "stopped";
    case HealthState::kFailed: return "failed";
  }
  return "unknown";
}

HealthState Health::state() const {
  std::lock_guard lock(mutex_);
  return state_;
}

void Health::Set(HealthState state) {
  std::lock_guard lock(mutex_);
  if (state_ == HealthState::kFailed || state_ == HealthState::kStopped || state_ == state) return;
  state_ = state;
  for (const auto& watcher : watchers_) watcher(state);
}

void Health::Watch(std::function<void(HealthState)> watcher) {
  std::lock_guard lock(mutex_);
  watcher(state_);
  watchers_.push_back(std::move(watcher));
}

}  // namespace phalanx::services
