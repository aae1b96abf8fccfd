#include "cli/progress.h"

#include <gtest/gtest.h>

namespace phalanx::cli {
namespace {

TEST(RenderBar, FillsWithTheFraction) {
  EXPECT_EQ(RenderBar(0, "x", 80), "[                              ]   0% x");
  EXPECT_EQ(RenderBar(0.5, "worker: loading", 80), "[###############               ]  50% worker: loading");
  EXPECT_EQ(RenderBar(1, "x", 80), "[##############################] 100% x");
  EXPECT_EQ(RenderBar(7, "x", 80), RenderBar(1, "x", 80));
}

TEST(QuartersOf, TheLastIsNeverFull) {
  EXPECT_EQ(QuartersOf(0), 0);
  EXPECT_EQ(QuartersOf(0.249), 0);
  EXPECT_EQ(QuartersOf(0.25), 1);
  EXPECT_EQ(QuartersOf(0.76), 3);
  EXPECT_EQ(QuartersOf(1), 3);
  EXPECT_EQ(QuartersOf(7), 3);
}

TEST(RenderBar, KeepsToTheWidth) { EXPECT_EQ(RenderBar(0, std::string(200, 'x'), 78).size(), 78u); }

}  // namespace
}  // namespace phalanx::cli
