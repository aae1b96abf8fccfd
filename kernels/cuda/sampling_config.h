// kernels/cuda/sampling_config.h: how rows of logits are cut among CTAs: pure choices, tested without a GPU.
// Refuses to know: devices. Thread: any. Neighbours: sampling.cu, sampling_teams.cc, device/part.cuh; sampling_math_test.cc.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/sampling_math.h"

namespace phalanx::kernels::cuda {

// Strips of a row, for a kernel that reads each value once. `size` is a multiple of `unit`, and the last strip may be shorter.
struct Strips {
  int64_t parts;
  int64_t size;
};

// The fewest rounds of `slots` CTAs, each as long as its strip and as the values that it could have read while it started.
inline Strips StripsOf(int64_t rows, int64_t vocab, int64_t unit, int64_t slots) {
  constexpr int64_t kStart = 4096;
  const int64_t units = (vocab + unit - 1) / unit;
  Strips best{1, units * unit};
  int64_t least = INT64_MAX;
  for (int64_t parts = 1; parts <= units; ++parts) {
    const int64_t size = (units + parts - 1) / parts * unit, there = (vocab + size - 1) / size;
    const int64_t rounds = (rows * there + slots - 1) / slots, cost = rounds * (size + kStart);
    if (cost < least) least = cost, best = {there, size};
  }
  return best;
}

// CTAs of the team that keeps a row: one for a small vocabulary, up to the eight that a cluster may have everywhere.
constexpr int kMostRanks = 8;
inline int RanksOf(int64_t vocab) {
  constexpr int64_t kEnough = 4096;
  int ranks = 1;
  while (ranks < kMostRanks && vocab > ranks * kEnough) ranks *= 2;
  return ranks;
}

// Values that a CTA of a team keeps, in groups of four; the last ones of a team keep fewer, or none.
PHALANX_HOST_DEVICE int32_t PartSize(int32_t vocab, int ranks) { return (vocab + ranks * 4 - 1) / (ranks * 4) * 4; }

}  // namespace phalanx::kernels::cuda
