#include "services/ready.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace phalanx::services {
namespace {

void WriteLine(std::string line) {
  line = absl::StrReplaceAll(line, {{"\n", " "}, {"\r", " "}}) + "\n";
  // A closed pipe means that nobody listens any more: nothing is left to do about it.
  [[maybe_unused]] const ssize_t written = write(STDOUT_FILENO, line.data(), line.size());
}

}  // namespace

void PrintProgress(double fraction, std::string_view what) {
  WriteLine(absl::StrFormat("PHALANX_PROGRESS %.3f %s", std::clamp(fraction, 0.0, 1.0), std::string(what)));
}

void PrintReady(std::string_view address) { WriteLine("PHALANX_READY " + std::string(address)); }

void PrintFailure(const absl::Status& status) { WriteLine("PHALANX_ERROR " + std::string(status.message())); }

std::optional<ReadyLine> ParseReadyLine(std::string_view line) {
  if (!line.empty() && line.back() == '\n') line.remove_suffix(1);
  const size_t end = line.find(' ');
  if (end == std::string_view::npos) return std::nullopt;
  const std::string_view word = line.substr(0, end);
  line.remove_prefix(end + 1);
  if (word == "PHALANX_READY") return ReadyLine{ReadyLine::Kind::kReady, 1, std::string(line)};
  if (word == "PHALANX_ERROR") return ReadyLine{ReadyLine::Kind::kError, 0, std::string(line)};
  if (word != "PHALANX_PROGRESS") return std::nullopt;
  const size_t space = line.find(' ');
  ReadyLine out;
  if (!absl::SimpleAtod(std::string(line.substr(0, space)), &out.fraction) || !std::isfinite(out.fraction)) return std::nullopt;
  out.fraction = std::clamp(out.fraction, 0.0, 1.0);
  if (space != std::string_view::npos) out.text = std::string(line.substr(space + 1));
  return out;
}

}  // namespace phalanx::services
