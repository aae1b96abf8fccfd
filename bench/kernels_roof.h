// bench/kernels_roof.h: what this machine can do at most: bytes read and multiply-adds a second; and how a call is timed.
// Refuses to know: operations, models. Thread: main.
// Neighbours: kernels_bench.cc holds measurements against these figures.
#pragma once

#include <functional>

#include "kernels/cpu/level.h"

namespace phalanx::bench {

// Seconds of one call.
struct Timing {
  double median = 0;
  double low = 0;   // 10th percentile
  double high = 0;  // 90th percentile
  int repeats = 0;
};

// kWall: time that passed. kThread: CPU time of the calling thread, for one thread on a machine that others use too.
enum class Clock { kWall, kThread };

// Calls call(0), call(1), ... until `budget_s` is used up, at least five times. The first call warms up and is not counted.
Timing Measure(Clock clock, double budget_s, const std::function<void(int repeat)>& call);

struct Roof {
  double read_bytes = 0;         // bytes a second, all threads reading their own part of a buffer larger than the caches: the best pass
  double read_bytes_median = 0;  // the median pass
  double fma_flops = 0;          // f32 floating operations a second of multiply-adds between registers, all threads: the best pass
  double fma_flops_median = 0;
};

Roof ProbeRoof(Clock clock, const kernels::cpu::Level& level, int threads);

// The level with this number; null if this build lacks it.
const kernels::cpu::Level* FindLevel(int32_t isa);

}  // namespace phalanx::bench
