#include "formats/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

namespace phalanx::formats {
namespace {

using ::testing::HasSubstr;

std::string WithHeader(const std::string& header, size_t data_bytes) {
  std::string out(8, '\0');
  const uint64_t size = header.size();
  std::memcpy(out.data(), &size, 8);
  out += header;
  for (size_t i = 0; i < data_bytes; ++i) out.push_back(static_cast<char>(i));
  return out;
}

const char kGood[] =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"c":{"dtype":"I64","shape":[],"data_offsets":[32,40]}})";

absl::StatusOr<std::unique_ptr<SafetensorsCheckpoint>> Parse(const std::string& bytes) {
  return SafetensorsCheckpoint::Parse(MappedFile::FromBytes("m.safetensors", bytes));
}

// Reads every byte that a successful parse hands out, so that a sanitizer sees a range that leaves the file.
uint64_t Touch(const SafetensorsCheckpoint& checkpoint) {
  uint64_t sum = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    for (const char byte : tensor.bytes) sum += static_cast<uint8_t>(byte);
  }
  return sum;
}

TEST(SafetensorsTest, ReadsNamesShapesAndBytes) {
  auto checkpoint = Parse(WithHeader(kGood, 40));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto& tensors = (*checkpoint)->tensors();
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors.at("a").encoding, Encoding::kF32);
  EXPECT_EQ(tensors.at("a").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(tensors.at("b").bytes.size(), 8u);
  EXPECT_EQ(static_cast<uint8_t>(tensors.at("b").bytes[0]), 24);
  EXPECT_TRUE(tensors.at("c").shape.empty());
  EXPECT_EQ((*checkpoint)->FileOf("a"), "m.safetensors");
}

struct BadCase {
  const char* header;
  size_t data_bytes;
  const char* message;
};

TEST(SafetensorsTest, RefusesWrongHeadersByNamingFileAndTensor) {
  const BadCase cases[] = {
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7, "m.safetensors: tensor a: ends at byte 8"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 9, "1 bytes after the last tensor"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})", 9, "a hole lies before tensor a"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12,
       "tensor b overlaps another"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, "tensor a: has 8 bytes, its shape and dtype need 12"},
      {R"({"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}})", 8, "tensor a: dtype F8_E4M3 is not supported"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "tensor a: a dimension is not a whole number"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "tensor a: the shape is too large"},
      {R"({"a":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[8,0]}})", 8, "tensor a: data_offsets are not rising"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8, "tensor a: a dimension"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8, "tensor a: data_offsets is missing or not a pair"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8, "tensor a: shape is missing"},
      {R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8, "tensor a: dtype is missing"},
      {R"({"a":7})", 0, "tensor a: the entry is not an object"},
      {R"([1])", 0, "the header is not an object"},
      {R"({"a":)", 0, "m.safetensors: header: "},
  };
  for (const BadCase& bad : cases) {
    auto checkpoint = Parse(WithHeader(bad.header, bad.data_bytes));
    ASSERT_FALSE(checkpoint.ok()) << bad.header;
    EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr(bad.message));
    EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr("m.safetensors"));
  }
}

TEST(SafetensorsTest, RefusesAHeaderLongerThanTheFileOrTheCap) {
  for (const uint64_t size : {uint64_t{33}, uint64_t{100'000'001}, UINT64_MAX, UINT64_MAX - 7}) {
    std::string bytes = WithHeader("{}", 30);
    std::memcpy(bytes.data(), &size, 8);
    auto checkpoint = Parse(bytes);
    ASSERT_FALSE(checkpoint.ok()) << size;
    EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr("the header claims"));
  }
}

TEST(SafetensorsTest, EveryTruncationIsAnError) {
  const std::string good = WithHeader(kGood, 40);
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(Parse(good.substr(0, size)).ok()) << size;
  }
}

TEST(SafetensorsTest, RandomMutationsNeverReadOutside) {
  const std::string good = WithHeader(kGood, 40);
  std::mt19937 random(1);
  uint64_t sum = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = good;
    for (uint32_t n = random() % 4 + 1; n > 0; --n) bytes[random() % bytes.size()] = static_cast<char>(random());
    if (auto checkpoint = Parse(bytes); checkpoint.ok()) sum += Touch(**checkpoint);
  }
  EXPECT_GT(sum, 0u);
}

class ShardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "shards.XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    Write("s1.safetensors", WithHeader(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
    Write("s2.safetensors", WithHeader(R"({"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void Write(const std::string& name, const std::string& bytes) { std::ofstream(folder_ + "/" + name, std::ios::binary) << bytes; }
  std::string OpenError() {
    auto checkpoint = SafetensorsCheckpoint::Open(folder_);
    return checkpoint.ok() ? "" : std::string(checkpoint.status().message());
  }
  std::string folder_;
};

TEST_F(ShardTest, AFolderWithAnIndexJoinsItsShards) {
  Write("model.safetensors.index.json", R"({"metadata":{},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})");
  auto checkpoint = SafetensorsCheckpoint::Open(folder_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), 2u);
  EXPECT_EQ((*checkpoint)->FileOf("b"), folder_ + "/s2.safetensors");
}

TEST_F(ShardTest, TheIndexAndTheShardsMustAgree) {
  Write("model.safetensors.index.json", R"({"weight_map":{"a":"s1.safetensors","b":"s1.safetensors"}})");
  EXPECT_THAT(OpenError(), HasSubstr("s1.safetensors: tensor b is missing"));
  Write("model.safetensors.index.json", R"({"weight_map":{"a":"s1.safetensors","c":"s2.safetensors"}})");
  EXPECT_THAT(OpenError(), HasSubstr("tensor c is missing"));
  Write("model.safetensors.index.json", R"({"weight_map":{"a":"s1.safetensors","a2":"s3.safetensors"}})");
  EXPECT_THAT(OpenError(), HasSubstr("s3.safetensors: cannot open"));
  Write("s2.safetensors", WithHeader(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8));
  Write("model.safetensors.index.json", R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})");
  EXPECT_THAT(OpenError(), HasSubstr("tensor x is not in"));
}

TEST_F(ShardTest, AShardMayNotLeaveTheFolder) {
  Write("model.safetensors.index.json", R"({"weight_map":{"a":"../s1.safetensors"}})");
  EXPECT_THAT(OpenError(), HasSubstr("must be a plain file name"));
  Write("model.safetensors.index.json", R"({"weight_map":{"a":7}})");
  EXPECT_THAT(OpenError(), HasSubstr("is not a string"));
  Write("model.safetensors.index.json", R"({"other":{}})");
  EXPECT_THAT(OpenError(), HasSubstr("weight_map is missing"));
}

TEST_F(ShardTest, TheSameTensorInTwoShardsIsRefused) {
  Write("s2.safetensors", WithHeader(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
  Write("model.safetensors.index.json", R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})");
  EXPECT_THAT(OpenError(), HasSubstr("tensor a appears twice"));
}

TEST_F(ShardTest, MissingAndEmptyFilesAreNamed) {
  EXPECT_THAT(OpenError(), HasSubstr("holds neither model.safetensors nor"));
  Write("model.safetensors", "");
  EXPECT_THAT(OpenError(), HasSubstr("model.safetensors: the file is empty"));
  EXPECT_EQ(SafetensorsCheckpoint::Open(folder_ + "/none").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace phalanx::formats
