// router/policy/policy.h: the pure choice of a worker from a snapshot.
// Refuses to know: sockets, time, randomness of its own. Thread: pure functions. Neighbours: the relay calls it.
#pragma once

#include <cstdint>
#include <optional>

#include "router/fleet/snapshot.h"

namespace phalanx::router::policy {

// The ready worker with the least work: sequences there (reported, or this router's own if more) plus the prompt tokens that wait or were
// sent since the report, in units of 512 tokens. Ties go round by `turn`. `avoid` (-1 = none) is taken only when nothing else is ready.
// nullopt when no worker is ready.
std::optional<int> PickLeastLoaded(const fleet::FleetSnapshot& snapshot, int avoid, uint64_t turn);

}  // namespace phalanx::router::policy
