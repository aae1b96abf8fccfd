// services/signals.h: SIGINT and SIGTERM as something that can be waited for.
// Refuses to know: what stopping means. Thread: Install once in main before other threads start; the rest from any thread.
// Neighbours: main of each process. SIGPIPE is ignored, because a peer that went away is a status, not a death.
#pragma once

#include <chrono>

namespace phalanx::services {

class StopSignal {
 public:
  // Replaces the handlers of SIGINT and SIGTERM. Every call returns the same object.
  static StopSignal& Install();

  // Blocks until the first signal.
  void Wait();
  // True if a signal has come within `limit`.
  bool WaitFor(std::chrono::milliseconds limit);
  // How many signals have come; a second one usually means "now".
  int count() const;
  // Readable once a signal has come (and then for good); for poll(2).
  int fd() const;

 private:
  StopSignal();
};

}  // namespace phalanx::services
