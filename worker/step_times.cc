#include "worker/step_times.h"

#include <fmt/format.h>

namespace phalanx::worker {

std::string StepTimes::Sum(const Step& step) {
  ++steps_;
  tokens_ += step.num_tokens;
  sum_.plan += step.plan;
  sum_.launch += step.launch;
  sum_.wait += step.wait;
  sum_.commit += step.commit;
  sum_.emit += step.emit;
  if (step.device >= 0) ++timed_, sum_.device += step.device;
  if (step.sample >= 0) ++sampled_, sum_.sample += step.sample;
  if (steps_ < kStepsPerLine) return "";
  const auto us = [&](double seconds) { return seconds * 1e6 / steps_; };
  std::string line = fmt::format("{} steps of {:.1f} tokens, on average: plan {:.0f} us, launch {:.0f}, wait {:.0f}, commit {:.0f}, emit {:.0f}",
                                 steps_, static_cast<double>(tokens_) / steps_, us(sum_.plan), us(sum_.launch), us(sum_.wait),
                                 us(sum_.commit), us(sum_.emit));
  if (timed_ > 0) line += fmt::format("; device {:.0f} us", sum_.device * 1e6 / timed_);
  if (sampled_ > 0) line += fmt::format(", of it sampling {:.0f}", sum_.sample * 1e6 / sampled_);
  *this = StepTimes{};
  return line;
}

}  // namespace phalanx::worker
