// Lines of the log: text and JSON, whatever the message holds, one line each.
#include "services/log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "services/json.h"

namespace phalanx::services {
namespace {

constexpr int64_t kTime = 1721957696789;  // 2024-07-26T01:34:56.789Z

std::string Text(std::string_view message, const std::vector<LogField>& fields = {}, LogLevel level = LogLevel::kInfo) {
  return FormatLogLine({.process = "router"}, kTime, level, message, fields);
}

TEST(Log, TextLines) {
  EXPECT_EQ(Text("listening"), "2024-07-26T01:34:56.789Z I [router] listening");
  EXPECT_EQ(FormatLogLine({}, 0, LogLevel::kError, "x", {}), "1970-01-01T00:00:00.000Z E x");
  EXPECT_EQ(Text("m", {}, LogLevel::kDebug).substr(25, 1), "D");
  EXPECT_EQ(Text("m", {}, LogLevel::kWarning).substr(25, 1), "W");
  EXPECT_EQ(Text("done", {{"model", std::string("org/m")}, {"tokens", int64_t{-7}}, {"seconds", 0.25}, {"ok", true}}),
            "2024-07-26T01:34:56.789Z I [router] done model=org/m tokens=-7 seconds=0.25 ok=true");
  EXPECT_EQ(Text("q", {{"a", std::string()}, {"b", std::string("x y")}, {"c", std::string("x=\"y\"")}}),
            R"(2024-07-26T01:34:56.789Z I [router] q a="" b="x y" c="x=\"y\"")");
}

TEST(Log, ALineStaysALine) {
  for (const char* format : {"text", "json"}) {
    std::string hostile;
    for (int c = 0; c < 256; ++c) hostile.push_back(static_cast<char>(c));
    const std::string line = FormatLogLine({.format = format, .process = "p"}, kTime, LogLevel::kInfo, hostile, {{"field", hostile},
        {"bare", std::string("\x1b[31m\n\r\x7f")}});
    for (const char c : line) EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20) << format;
    EXPECT_EQ(line.find("\x1b"), std::string::npos);
    EXPECT_TRUE(std::string(format) == "json" || line.find('\x7f') == std::string::npos);
  }
  EXPECT_EQ(Text("a\nb\tc\x1b[0m").substr(36), R"(a\nb\x09c\x1b[0m)");
}

TEST(Log, JsonLines) {
  const std::string line = FormatLogLine({.format = "json", .process = "worker"}, kTime, LogLevel::kWarning, "a \"b\"\n\xff",
                                         {{"n", int64_t{5}}, {"x", 0.5}, {"ok", false}, {"s", std::string("é\x01")}});
  EXPECT_EQ(line,
      "{\"time\":\"2024-07-26T01:34:56.789Z\",\"level\":\"warning\",\"process\":\"worker\",\"message\":\"a \\\"b\\\"\\n\uFFFD\",\"n\":5,\"x\":0.5,\"ok\":false,\"s\":\"é\\u0001\"}");
  EXPECT_TRUE(ParseJson(line).ok());
  EXPECT_FALSE(ParseJson(FormatLogLine({.format = "json"}, kTime, LogLevel::kInfo, "m", {}))->contains("process"));
}

TEST(Log, LevelsAndFormatsAreChecked) {
  EXPECT_EQ(InitLog({.level = "loud"}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(InitLog({.level = ""}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(InitLog({.format = "xml"}).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(InitLog({.level = "warning"}).ok());
  EXPECT_FALSE(LogEnabled(LogLevel::kInfo));
  EXPECT_TRUE(LogEnabled(LogLevel::kWarning));
  ASSERT_TRUE(InitLog({.level = "debug"}).ok());
  EXPECT_TRUE(LogEnabled(LogLevel::kDebug));
  ASSERT_TRUE(InitLog({}).ok());
}

// What really reaches standard error, from many threads.
TEST(Log, LinesAreNotTorn) {
  ASSERT_TRUE(InitLog({.level = "info", .format = "json", .process = "p"}).ok());
  testing::internal::CaptureStderr();
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 50; ++i) LogInfo("thread {} line {} {}", t, i, std::string(200, 'x'));
    });
  }
  for (std::thread& thread : threads) thread.join();
  LogDebug("not {}", "shown");
  const std::string out = testing::internal::GetCapturedStderr();
  int lines = 0;
  for (size_t at = 0; at < out.size(); ++lines) {
    const size_t end = out.find('\n', at);
    ASSERT_NE(end, std::string::npos);
    ASSERT_TRUE(ParseJson(out.substr(at, end - at)).ok()) << out.substr(at, end - at);
    at = end + 1;
  }
  EXPECT_EQ(lines, 400);
  ASSERT_TRUE(InitLog({}).ok());
}

}  // namespace
}  // namespace phalanx::services
