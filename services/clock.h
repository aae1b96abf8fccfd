// services/clock.h: time as an argument: the steady clock behind an interface, and one that tests turn by hand.
// Refuses to know: what is timed. Thread: any; ManualClock too.
// Neighbours: whoever decides takes a Time; whoever acts owns a Clock. Wall-clock time is for records and logs only.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace phalanx::services {

using Time = std::chrono::steady_clock::time_point;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual Time Now() const = 0;
};

class SteadyClock final : public Clock {
 public:
  Time Now() const override { return std::chrono::steady_clock::now(); }
};

// Stands still until Advance; starts at the epoch of the steady clock plus one hour, so that subtraction stays positive.
class ManualClock final : public Clock {
 public:
  Time Now() const override { return Time(std::chrono::nanoseconds(now_ns_.load())); }
  void Advance(std::chrono::nanoseconds step) { now_ns_ += step.count(); }

 private:
  std::atomic<int64_t> now_ns_{std::chrono::nanoseconds(std::chrono::hours(1)).count()};
};

// Seconds since 1970 by the wall clock.
inline int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Length of a time span in seconds, for metrics.
inline double Seconds(std::chrono::nanoseconds span) { return std::chrono::duration<double>(span).count(); }

}  // namespace phalanx::services
