#include "cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>

#include "services/log.h"

namespace phalanx::cli {
namespace {

constexpr size_t kBarCells = 30;
constexpr size_t kColumns = 78;
constexpr std::chrono::milliseconds kQuiet{500};  // what is over sooner needs no log lines

}  // namespace

std::string RenderBar(double fraction, std::string_view what, size_t columns) {
  fraction = std::clamp(fraction, 0.0, 1.0);
  const size_t cells = static_cast<size_t>(fraction * kBarCells);
  std::string out = fmt::format("[{}{}] {:3}% {}", std::string(cells, '#'), std::string(kBarCells - cells, ' '),
                                static_cast<int>(fraction * 100), what);
  return out.substr(0, columns);
}

int QuartersOf(double fraction) { return std::clamp(static_cast<int>(fraction * 4), 0, 3); }

ProgressLine::ProgressLine(size_t parts) : terminal_(isatty(STDERR_FILENO) == 1), parts_(parts) {}

void ProgressLine::Set(size_t part, double fraction, std::string_view what) {
  parts_[part] = {fraction, std::string(what)};
  const auto behind = [](const Part& a, const Part& b) { return a.fraction < b.fraction; };
  const Part& slowest = *std::min_element(parts_.begin(), parts_.end(), behind);
  if (!terminal_) {
    const auto now = std::chrono::steady_clock::now();
    if (slowest.fraction >= 1 || QuartersOf(slowest.fraction) <= quarters_ || now - told_at_ < kQuiet) return;
    quarters_ = QuartersOf(slowest.fraction);
    told_at_ = now;
    return services::LogInfo("{}: {} %", slowest.what, static_cast<int>(slowest.fraction * 100));
  }
  const std::string line = RenderBar(slowest.fraction, slowest.what.empty() ? "starting" : slowest.what, kColumns);
  if (line == shown_) return;
  shown_ = line;
  // The cursor goes back to the start, so that a child's log line writes over the bar instead of standing behind it.
  std::fputs(fmt::format("\r\x1b[K{}\r", line).c_str(), stderr);
  std::fflush(stderr);
}

void ProgressLine::Clear() {
  if (!shown_.empty()) std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  shown_.clear();
}

}  // namespace phalanx::cli
