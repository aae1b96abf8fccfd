#include "formats/tensor_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace phalanx::formats {
namespace {

using ::testing::HasSubstr;

class ReadRowsTest : public ::testing::Test {
 protected:
  ReadRowsTest() : path_((std::filesystem::temp_directory_path() / "rows.XXXXXX").string()) {
    const int fd = ::mkstemp(path_.data());
    EXPECT_GE(fd, 0);
    ::close(fd);
    for (int i = 0; i < 50000; ++i) text_ += static_cast<char>('a' + i * i % 23);
    std::ofstream(path_, std::ios::binary) << text_;
  }
  ~ReadRowsTest() override { std::filesystem::remove(path_); }

  std::string path_;
  std::string text_;
};

TEST_F(ReadRowsTest, RowsGoToTheirPlacesAndNothingBetweenThemIsTouched) {
  const auto file = MappedFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  for (const auto& source : {*file, MappedFile::FromBytes("memory", text_)}) {
    for (const uint64_t rows : {0, 1, 3, 511, 512, 513, 1030}) {    // around the number of pieces of one system call
      for (const uint64_t gap : {0, 5}) {
        const uint64_t width = 40, begin = 77, stride = width + gap;
        std::string out(rows * stride + 1, '#'), expected = out;
        for (uint64_t i = 0; i < rows; ++i) expected.replace(i * stride, width, text_, begin + i * width, width);
        ASSERT_TRUE(source->ReadRows(source->bytes().data() + begin, rows, {out.data(), width, stride}).ok());
        EXPECT_EQ(out, expected) << rows << " rows, gap " << gap;
      }
    }
  }
}

TEST_F(ReadRowsTest, AFileThatHasBecomeShorterIsAnErrorAndNoSignal) {
  const auto file = MappedFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  std::filesystem::resize_file(path_, 20000);
  std::string out(50000, '#');
  const absl::Status status = (*file)->ReadRows((*file)->bytes().data(), 500, {out.data(), 100, 100});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_ + ": cannot read at byte 20000: the file has become shorter"));
}

}  // namespace
}  // namespace phalanx::formats
