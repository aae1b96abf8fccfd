#include "services/log.h"

#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <mutex>

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "services/json.h"

namespace phalanx::services {
namespace {

std::mutex g_mutex;
std::shared_ptr<const LogOptions> g_options = std::make_shared<LogOptions>();  // guarded by g_mutex
std::atomic<int> g_level{static_cast<int>(LogLevel::kInfo)};

// The sink does the locking, the flushing and the retries of one line; the line itself is ours.
spdlog::logger& Sink() {
  static const auto logger = [] {
    auto made = std::make_shared<spdlog::logger>("phalanx", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->set_level(spdlog::level::trace);
    made->flush_on(spdlog::level::trace);
    made->set_error_handler([](const std::string&) {});
    return made;
  }();
  return *logger;
}

constexpr std::string_view kLevelNames[] = {"debug", "info", "warning", "error"};

std::string TimeText(int64_t unix_ms) {
  const time_t seconds = static_cast<time_t>(unix_ms / 1000);
  struct tm parts = {};
  gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                     parts.tm_hour, parts.tm_min, parts.tm_sec, unix_ms % 1000);
}

// A line stays a line, and a terminal stays as it is, whatever a peer put into a message.
std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

std::string FieldText(const LogField& field) {
  if (const auto* text = std::get_if<std::string>(&field.value)) {
    const bool quote = text->empty() || text->find_first_of(" =\"") != std::string::npos;
    return Escape(quote ? WriteJson(Json(*text)) : *text);
  }
  if (const auto* number = std::get_if<int64_t>(&field.value)) return absl::StrCat(*number);
  if (const auto* number = std::get_if<double>(&field.value)) return fmt::format("{:.6g}", *number);
  return std::get<bool>(field.value) ? "true" : "false";
}

}  // namespace

absl::Status InitLog(const LogOptions& options) {
  int level = -1;
  for (int i = 0; i < 4; ++i) {
    if (options.level == kLevelNames[i]) level = i;
  }
  if (level < 0) return absl::InvalidArgumentError("log level '" + options.level + "' is not debug, info, warning or error");
  if (options.format != "text" && options.format != "json") {
    return absl::InvalidArgumentError("log format '" + options.format + "' is not text or json");
  }
  std::lock_guard lock(g_mutex);
  g_options = std::make_shared<LogOptions>(options);
  g_level = level;
  return absl::OkStatus();
}

bool LogEnabled(LogLevel level) { return static_cast<int>(level) >= g_level.load(std::memory_order_relaxed); }

void LogLine(LogLevel level, std::string_view message, const std::vector<LogField>& fields) {
  if (!LogEnabled(level)) return;
  std::shared_ptr<const LogOptions> options;
  {
    std::lock_guard lock(g_mutex);
    options = g_options;
  }
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::string line = FormatLogLine(*options, std::chrono::duration_cast<std::chrono::milliseconds>(now).count(), level, message, fields);
  Sink().log(spdlog::level::info, spdlog::string_view_t(line.data(), line.size()));
}

std::string FormatLogLine(const LogOptions& options, int64_t unix_ms, LogLevel level, std::string_view message,
                          const std::vector<LogField>& fields) {
  const std::string_view name = kLevelNames[static_cast<int>(level)];
  if (options.format == "json") {
    Json line = {{"time", TimeText(unix_ms)}, {"level", name}};
    if (!options.process.empty()) line["process"] = options.process;
    line["message"] = message;
    for (const LogField& field : fields) {
      std::visit([&](const auto& value) { line[std::string(field.key)] = value; }, field.value);
    }
    return WriteJson(line);
  }
  std::string line = TimeText(unix_ms);
  absl::StrAppend(&line, " ", std::string(1, static_cast<char>(name[0] - 'a' + 'A')));
  if (!options.process.empty()) absl::StrAppend(&line, " [", options.process, "]");
  absl::StrAppend(&line, " ", Escape(message));
  for (const LogField& field : fields) absl::StrAppend(&line, " ", std::string(field.key), "=", FieldText(field));
  return line;
}

}  // namespace phalanx::services
