// The file of measured algorithms: what was written comes back; anything else counts as empty; a bad disk does no harm. Needs no GPU.
#include "kernels/cuda/gemm_cache.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace phalanx::kernels::cuda {
namespace {

class GemmCache : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ("gemm_cache_" + std::to_string(getpid()));
    setenv("PHALANX_CACHE_DIR", (folder_ / "deeper").c_str(), 1);
    path_ = AlgorithmsPath(130100, "NVIDIA H100/80");
    title_ = AlgorithmsTitle(130100, "NVIDIA H100/80");
    LibraryKey key{512, 2048, 1536, 1536, 2048, kBF16, true, false, 256, 16, 256};
    written_[key] = {1, 2, 3, 0xffffffffffffffff, 0, 6, 7, 8};
    key.add = true, key.out = kF32;
    written_[key] = {9, 10, 11, 12, 13, 14, 15, 16};
  }
  void TearDown() override {
    unsetenv("PHALANX_CACHE_DIR");
    std::filesystem::remove_all(folder_);
  }
  std::string Text() {
    std::stringstream text;
    text << std::ifstream(path_).rdbuf();
    return text.str();
  }
  std::filesystem::path folder_;
  std::string path_, title_;
  KnownAlgorithms written_;
};

TEST_F(GemmCache, WhatWasWrittenComesBack) {
  EXPECT_TRUE(ReadAlgorithms(path_, title_).empty());  // no file yet
  ASSERT_TRUE(WriteAlgorithms(path_, title_, written_));
  EXPECT_EQ(ReadAlgorithms(path_, title_), written_);
  written_.erase(written_.begin());
  ASSERT_TRUE(WriteAlgorithms(path_, title_, written_));
  EXPECT_EQ(ReadAlgorithms(path_, title_), written_);
  int files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(path_).parent_path())) ++files;
  EXPECT_EQ(files, 1);  // no temporary file is left
}

TEST_F(GemmCache, AnotherLibraryOrCardIsNotBelieved) {
  ASSERT_TRUE(WriteAlgorithms(path_, title_, written_));
  EXPECT_TRUE(ReadAlgorithms(path_, AlgorithmsTitle(130101, "NVIDIA H100/80")).empty());
  EXPECT_TRUE(ReadAlgorithms(path_, AlgorithmsTitle(130100, "NVIDIA H200")).empty());
  EXPECT_NE(AlgorithmsPath(130101, "NVIDIA H100/80"), path_);
}

TEST_F(GemmCache, ADamagedFileCountsAsEmpty) {
  ASSERT_TRUE(WriteAlgorithms(path_, title_, written_));
  const std::string good = Text();
  for (size_t size : {size_t{0}, size_t{5}, title_.size() + 3, good.size() - 1}) {
    std::ofstream(path_) << good.substr(0, size);
    EXPECT_TRUE(ReadAlgorithms(path_, title_).empty()) << size;
  }
  for (const std::string& more : {std::string("x\n"), std::string(2000, '7') + "\n", std::string("1 2 3\n")}) {
    std::ofstream(path_) << good << more;
    EXPECT_TRUE(ReadAlgorithms(path_, title_).empty()) << more;
  }
}

TEST_F(GemmCache, AFolderThatCannotBeMadeIsNoError) {
  std::filesystem::create_directories(folder_);
  std::ofstream(folder_ / "deeper") << "a file in the place of the folder";
  EXPECT_FALSE(WriteAlgorithms(path_, title_, written_));
  EXPECT_TRUE(ReadAlgorithms(path_, title_).empty());
  EXPECT_FALSE(WriteAlgorithms("", title_, written_));
}

TEST_F(GemmCache, TheFolderFollowsTheEnvironment) {
  unsetenv("PHALANX_CACHE_DIR");
  const char* xdg_before = std::getenv("XDG_CACHE_HOME");
  const std::string kept = xdg_before == nullptr ? "" : xdg_before;
  setenv("XDG_CACHE_HOME", "/a", 1);
  EXPECT_EQ(CacheFolder(), "/a/phalanx");
  unsetenv("XDG_CACHE_HOME");
  if (std::getenv("HOME") != nullptr) {
    EXPECT_EQ(CacheFolder(), std::string(std::getenv("HOME")) + "/.cache/phalanx");
  }
  if (xdg_before != nullptr) setenv("XDG_CACHE_HOME", kept.c_str(), 1);
}

}  // namespace
}  // namespace phalanx::kernels::cuda
