// worker/lookahead.h: when to plan the next step while one runs: late, so that what comes meanwhile is still in it, yet early enough that
// the device has the next step before it is done with this one.
// Refuses to know: what a step computes, the clock. Thread: the engine thread.
// Neighbours: worker/engine asks before it plans ahead and tells what steps took.
//
// Steps of about as many tokens take about as long. Of each size the shortest time of late is kept, of planning and launching the longest:
// a wrong guess must cost latency, not an idle device.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

namespace phalanx::worker {

class Lookahead {
 public:
  static constexpr double kMargin = 1e-3;      // seconds kept for waking up and for what is not foreseen
  static constexpr double kShare = 0.8;        // of the expected time
  static constexpr double kLeastDelay = 5e-4;  // below that a wait is not worth its wake-up

  // A step took `run` seconds on the device, and `host` seconds to be planned and launched.
  void Add(int32_t num_tokens, double run, double host) {
    double& expected = runs_[Size(num_tokens)];
    expected = expected == 0 || run < expected ? run : expected + (run - expected) / 16;
    host_ = host > host_ ? host : host_ + (host - host_) / 16;
  }
  // Seconds from the start of a step of so many tokens to the moment at which the next is to be planned; 0 = at once.
  double Delay(int32_t num_tokens) const {
    const double delay = kShare * runs_[Size(num_tokens)] - host_ - kMargin;
    return delay < kLeastDelay ? 0 : delay;
  }

 private:
  // Four sizes between a power of two and the next.
  static size_t Size(int32_t num_tokens) {
    const auto n = static_cast<uint32_t>(std::max(num_tokens, 4));
    const int top = std::bit_width(n) - 1;
    return static_cast<size_t>(top) * 4 + (n >> (top - 2) & 3u);
  }

  std::array<double, 128> runs_{};   // seconds, by size; 0 = not seen
  double host_ = 0;
};

}  // namespace phalanx::worker
