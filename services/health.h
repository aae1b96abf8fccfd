// services/health.h: the one state of a process: starting, ready, draining, stopped, or failed.
// Refuses to know: who asks (the gRPC health service and the admin port read it). Thread: any.
// Neighbours: main sets it; server.h and admin_http.h answer from it without touching any work queue.
#pragma once

#include <functional>
#include <mutex>
#include <string_view>
#include <vector>

namespace phalanx::services {

enum class HealthState { kStarting, kReady, kDraining, kStopped, kFailed };

std::string_view HealthStateName(HealthState state);

class Health {
 public:
  HealthState state() const;
  bool ready() const { return state() == HealthState::kReady; }

  // Sets the state and calls every watcher with it, on this thread. kFailed and kStopped are final: later calls are dropped.
  void Set(HealthState state);

  // `watcher` is called at once with the present state and after each change. It must outlive this object or be harmless.
  void Watch(std::function<void(HealthState)> watcher);

 private:
  mutable std::mutex mutex_;
  HealthState state_ = HealthState::kStarting;
  std::vector<std::function<void(HealthState)>> watchers_;
};

}  // namespace phalanx::services
