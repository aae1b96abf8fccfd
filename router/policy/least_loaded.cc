#include <algorithm>
#include <cstddef>

#include "router/policy/policy.h"

namespace phalanx::router::policy {
namespace {

constexpr double kTokensPerSequence = 512;  // a waiting prompt of so many tokens weighs as much as a running sequence

double Cost(const fleet::WorkerView& view) {
  const double sequences = std::max(view.in_flight, view.load.running + view.load.waiting);
  return sequences + static_cast<double>(view.load.waiting_tokens + view.sent_tokens) / kTokensPerSequence;
}

}  // namespace

std::optional<int> PickLeastLoaded(const fleet::FleetSnapshot& snapshot, int avoid, uint64_t turn) {
  const size_t count = snapshot.workers.size();
  std::optional<int> best, fallback;
  for (size_t i = 0; i < count; ++i) {
    const int worker = static_cast<int>((i + turn) % count);
    const fleet::WorkerView& view = snapshot.workers[worker];
    if (!view.ready || view.load.draining) continue;
    if (worker == avoid) {
      fallback = worker;
    } else if (!best || Cost(view) < Cost(snapshot.workers[*best])) {
      best = worker;
    }
  }
  return best ? best : fallback;
}

}  // namespace phalanx::router::policy
