// worker/step_times.h: where the time of the engine's steps goes, as one line at debug level per so many steps.
// Refuses to know: what a step computes. Thread: the engine thread.
// Neighbours: worker/engine measures and adds; executors that can time their device give that part.
#pragma once

#include <cstdint>
#include <string>

#include "services/log.h"

namespace phalanx::worker {

class StepTimes {
 public:
  static constexpr int32_t kStepsPerLine = 100;

  struct Step {                // seconds, but for the tokens
    int32_t num_tokens = 0;
    double plan = 0;
    double launch = 0;
    double wait = 0;           // in Collect: what is left of the device's time when the host has nothing more to do
    double commit = 0;
    double emit = 0;
    double device = 0;         // below 0: not measured
    double sample = 0;         // the draws' part of `device`; below 0: not measured
  };

  // Nothing is added or written unless the log is at debug level.
  bool wanted() const { return services::LogEnabled(services::LogLevel::kDebug); }
  void Add(const Step& step) {
    const std::string line = Sum(step);
    if (!line.empty()) services::LogDebug("{}", line);
  }
  // The line that is due after this step, empty if none is.
  std::string Sum(const Step& step);

 private:
  Step sum_;
  int64_t tokens_ = 0;
  int32_t steps_ = 0;
  int32_t timed_ = 0;          // steps with `device`
  int32_t sampled_ = 0;        // steps with `sample`
};

}  // namespace phalanx::worker
