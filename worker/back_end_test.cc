#include "worker/back_end.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace phalanx::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(OpenBackEnd, TakesTheCpuWithoutANoteWhenItWasAskedFor) {
  const auto cpu = OpenBackEnd("cpu", {0, 1, 0}, {"/nowhere/plugin.so"});
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  EXPECT_FALSE(cpu->gpu);
  EXPECT_EQ(cpu->note, "");
  EXPECT_EQ(cpu->info.num_threads, 1);
}

TEST(OpenBackEnd, SaysInOneLineWhyAutoIsOnTheCpu) {
  const auto none = OpenBackEnd("auto", {0, 1, 0}, {});
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE(none->gpu);
  EXPECT_THAT(none->note, HasSubstr("no CUDA plug-in"));
  const auto broken = OpenBackEnd("auto", {0, 1, 0}, {"/nowhere/plugin.so"});
  ASSERT_TRUE(broken.ok()) << broken.status();
  EXPECT_THAT(broken->note, HasSubstr("/nowhere/plugin.so"));
}

TEST(OpenBackEnd, NeverReplacesAnExplicitGpu) {
  const auto gpu = OpenBackEnd("cuda", {}, {"/nowhere/plugin.so"});
  ASSERT_FALSE(gpu.ok());
  EXPECT_THAT(std::string(gpu.status().message()), HasSubstr("--device cuda: "));
}

TEST(PluginPaths, TheEnvironmentStandsAlone) {
  ASSERT_EQ(setenv("PHALANX_CUDA_PLUGIN", "/nowhere/plugin.so", 1), 0);
  EXPECT_THAT(PluginPaths(), ElementsAre("/nowhere/plugin.so"));
  ASSERT_EQ(unsetenv("PHALANX_CUDA_PLUGIN"), 0);
  EXPECT_THAT(PluginPaths(), IsEmpty()) << "no plug-in lies beside a test";
}

}  // namespace
}  // namespace phalanx::worker
