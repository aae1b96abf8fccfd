// What a child prints is what its parent reads.
#include "services/ready.h"

#include <gtest/gtest.h>

#include <functional>

namespace phalanx::services {
namespace {

using Kind = ReadyLine::Kind;

std::string Printed(const std::function<void()>& print) {
  testing::internal::CaptureStdout();
  print();
  return testing::internal::GetCapturedStdout();
}

TEST(Ready, LinesComeBack) {
  std::string line = Printed([] { PrintProgress(0.25, "loading weights"); });
  EXPECT_EQ(line, "PHALANX_PROGRESS 0.250 loading weights\n");
  auto read = ParseReadyLine(line);
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->kind, Kind::kProgress);
  EXPECT_EQ(read->fraction, 0.25);
  EXPECT_EQ(read->text, "loading weights");
  line = Printed([] { PrintReady("unix:/a b/c.sock"); });
  EXPECT_EQ(line, "PHALANX_READY unix:/a b/c.sock\n");
  EXPECT_EQ(ParseReadyLine(line)->kind, Kind::kReady);
  EXPECT_EQ(ParseReadyLine(line)->text, "unix:/a b/c.sock");
  line = Printed([] { PrintFailure(absl::NotFoundError("no such\nmodel\r\n")); });
  EXPECT_EQ(line, "PHALANX_ERROR no such model  \n");  // still one line
  EXPECT_EQ(ParseReadyLine(line)->kind, Kind::kError);
}

TEST(Ready, FractionsStayInRange) {
  EXPECT_EQ(Printed([] { PrintProgress(7, "x"); }), "PHALANX_PROGRESS 1.000 x\n");
  EXPECT_EQ(Printed([] { PrintProgress(-7, "x"); }), "PHALANX_PROGRESS 0.000 x\n");
  EXPECT_EQ(ParseReadyLine("PHALANX_PROGRESS 55 x")->fraction, 1);
  EXPECT_EQ(ParseReadyLine("PHALANX_PROGRESS -1 x")->fraction, 0);
  EXPECT_EQ(ParseReadyLine("PHALANX_PROGRESS 0.5")->text, "");
}

TEST(Ready, OrdinaryLinesAreNotRead) {
  for (const char* line : {"", "\n", "hello world", "PHALANX_READY", "PHALANX_READYx y", " PHALANX_READY x", "PHALANX_PROGRESS nan x",
      "PHALANX_PROGRESS inf x",
                           "PHALANX_PROGRESS x y", "phalanx_ready x"}) {
    EXPECT_FALSE(ParseReadyLine(line).has_value()) << line;
  }
}

}  // namespace
}  // namespace phalanx::services
