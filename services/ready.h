// services/ready.h: what a child process tells the one that started it: how far it is, that it is ready, why it failed.
// Refuses to know: who started it. Thread: any; a line is one write.
// Neighbours: main of each process writes, services/supervisor reads. Lines on standard output:
//   PHALANX_PROGRESS <0..1> <what is being done>     PHALANX_READY <address>     PHALANX_ERROR <one sentence>
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "services/status.h"

namespace phalanx::services {

void PrintProgress(double fraction, std::string_view what);
void PrintReady(std::string_view address);
// The last thing before exit(1): the message becomes the one error its parent shows.
void PrintFailure(const absl::Status& status);

// One line read back; nullopt if it is an ordinary line.
struct ReadyLine {
  enum class Kind { kProgress, kReady, kError };
  Kind kind = Kind::kProgress;
  double fraction = 0;  // of kProgress, 0..1
  std::string text;     // what is being done, the address, or the error
};
std::optional<ReadyLine> ParseReadyLine(std::string_view line);

}  // namespace phalanx::services
