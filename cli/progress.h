// cli/progress.h: one line of progress on a terminal, which log lines simply write over; elsewhere a log line a quarter.
// Refuses to know: what is loaded. Thread: one owner. Neighbours: serve.cc feeds it with what the children tell.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx::cli {

// "[##########          ]  50% loading weights", at most `columns` bytes.
std::string RenderBar(double fraction, std::string_view what, size_t columns);

// The quarters that are full, 0 to 3: the end is told by whoever got there.
int QuartersOf(double fraction);

class ProgressLine {
 public:
  // Draws if standard error is a terminal.
  explicit ProgressLine(size_t parts);
  // One of the parts has come so far; the line shows the slowest.
  void Set(size_t part, double fraction, std::string_view what);
  // Takes the line away.
  void Clear();

 private:
  struct Part {
    double fraction = 0;
    std::string what;
  };
  const bool terminal_;
  std::vector<Part> parts_;
  std::string shown_;
  int quarters_ = 0;   // told in the log
  std::chrono::steady_clock::time_point told_at_ = std::chrono::steady_clock::now();
};

}  // namespace phalanx::cli
