// services/log.h: log lines on standard error, as text or as JSON, with level and process name.
// Refuses to know: what is logged. Thread: any; a line is never torn. Never throws; control characters are escaped.
// Neighbours: every process calls InitLog once; before that, lines are text at level info.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <fmt/format.h>

#include "services/status.h"

namespace phalanx::services {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogOptions {
  std::string level = "info";   // debug, info, warning, error
  std::string format = "text";  // text or json
  std::string process;          // name in each line; empty = none
};

// Errors: kInvalidArgument for an unknown level or format.
absl::Status InitLog(const LogOptions& options);

// One named value of a line: "key=value" in text, a member in JSON.
struct LogField {
  std::string_view key;
  std::variant<std::string, int64_t, double, bool> value;
};

bool LogEnabled(LogLevel level);
void LogLine(LogLevel level, std::string_view message, const std::vector<LogField>& fields = {});

// LogInfo("listening on {}", address);
template <typename... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(LogLevel::kDebug)) LogLine(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(LogLevel::kInfo)) LogLine(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(LogLevel::kWarning)) LogLine(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(LogLevel::kError)) LogLine(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
}

// The line without its newline, as LogLine would write it; for tests. `unix_ms` is the wall-clock time.
std::string FormatLogLine(const LogOptions& options, int64_t unix_ms, LogLevel level, std::string_view message,
                          const std::vector<LogField>& fields);

}  // namespace phalanx::services
