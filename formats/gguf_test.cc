#include "formats/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace phalanx::formats {
namespace {

using ::testing::HasSubstr;

// Writes a GGUF file piece by piece; tests break one piece at a time.
struct Writer {
  std::string bytes;
  template <typename T>
  Writer& Put(T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Writer& Text(const std::string& text) {
    Put<uint64_t>(text.size());
    bytes += text;
    return *this;
  }
  Writer& Header(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    bytes += "GGUF";
    return Put(version).Put(tensors).Put(keys);
  }
  Writer& Tensor(const std::string& name, std::vector<uint64_t> shape, uint32_t type, uint64_t offset) {
    Text(name).Put(static_cast<uint32_t>(shape.size()));
    for (const uint64_t size : shape) Put(size);
    return Put(type).Put(offset);
  }
  Writer& Pad(size_t alignment = 32) {
    while (bytes.size() % alignment != 0) bytes.push_back('\0');
    return *this;
  }
  Writer& Data(size_t count) {
    for (size_t i = 0; i < count; ++i) bytes.push_back(static_cast<char>(i * 7));
    return *this;
  }
};

// One of every value type, two tensors.
std::string Good() {
  Writer w;
  w.Header(2, 9);
  w.Text("general.architecture").Put<uint32_t>(8).Text("llama");
  w.Text("u32").Put<uint32_t>(4).Put<uint32_t>(7);
  w.Text("i64").Put<uint32_t>(11).Put<int64_t>(-5);
  w.Text("f32").Put<uint32_t>(6).Put<float>(0.5f);
  w.Text("flag").Put<uint32_t>(7).Put<uint8_t>(1);
  w.Text("names").Put<uint32_t>(9).Put<uint32_t>(8).Put<uint64_t>(2).Text("x").Text("yz");
  w.Text("ints").Put<uint32_t>(9).Put<uint32_t>(5).Put<uint64_t>(2).Put<int32_t>(-1).Put<int32_t>(2);
  w.Text("floats").Put<uint32_t>(9).Put<uint32_t>(12).Put<uint64_t>(1).Put<double>(1.5);
  w.Text("bools").Put<uint32_t>(9).Put<uint32_t>(7).Put<uint64_t>(2).Put<uint8_t>(0).Put<uint8_t>(1);
  w.Tensor("a", {32, 2}, 8, 0).Tensor("b", {3}, 0, 96).Pad().Data(108);
  return w.bytes;
}

absl::StatusOr<std::unique_ptr<GgufFile>> Parse(const std::string& bytes) { return GgufFile::Parse(MappedFile::FromBytes("m.gguf", bytes)); }

// Decodes every tensor that a successful parse hands out, so that a sanitizer sees a range that leaves the file.
void Touch(const GgufFile& file) {
  for (const auto& [name, tensor] : file.tensors()) {
    uint64_t count = 1;
    for (const int64_t size : tensor.shape) count *= static_cast<uint64_t>(size);
    std::vector<float> out(count);
    (void)DecodeToF32(tensor.encoding, tensor.bytes.data(), count, out.data()).ok();
  }
}

void ExpectError(const Writer& w, const char* message) {
  auto file = Parse(w.bytes);
  ASSERT_FALSE(file.ok()) << message;
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(message));
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("m.gguf"));
}

TEST(GgufTest, ReadsEveryValueTypeAndReversesShapes) {
  auto file = Parse(Good());
  ASSERT_TRUE(file.ok()) << file.status();
  const GgufFile& gguf = **file;
  EXPECT_EQ(*gguf.GetString("general.architecture"), "llama");
  EXPECT_EQ(*gguf.GetInt("u32"), 7);
  EXPECT_EQ(*gguf.GetInt("i64"), -5);
  EXPECT_EQ(*gguf.GetFloat("f32"), 0.5);
  EXPECT_EQ(*gguf.GetFloat("u32"), 7.0);
  EXPECT_EQ(std::get<bool>(*gguf.Find("flag")), true);
  EXPECT_EQ(std::get<std::vector<std::string>>(*gguf.Find("names")), (std::vector<std::string>{"x", "yz"}));
  EXPECT_EQ(std::get<std::vector<int64_t>>(*gguf.Find("ints")), (std::vector<int64_t>{-1, 2}));
  EXPECT_EQ(std::get<std::vector<double>>(*gguf.Find("floats")), (std::vector<double>{1.5}));
  EXPECT_EQ(std::get<std::vector<bool>>(*gguf.Find("bools")), (std::vector<bool>{false, true}));
  EXPECT_EQ(gguf.tensors().at("a").shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(gguf.tensors().at("a").encoding, Encoding::kQ8_0);
  EXPECT_EQ(gguf.tensors().at("b").bytes.size(), 12u);
  EXPECT_EQ(gguf.GetInt("none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(gguf.GetInt("f32").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(gguf.GetString("u32").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(GgufTest, RefusesWrongHeadersAndKeys) {
  ExpectError(Writer{"GGML"}, "bad magic");
  ExpectError(Writer().Header(0, 0, 2), "version 2 is not supported");
  ExpectError(Writer().Header(UINT64_MAX, 0), "too many tensors");
  ExpectError(Writer().Header(0, UINT64_MAX), "too many tensors or keys");
  ExpectError(Writer().Header(0, 1).Put<uint64_t>(UINT64_MAX), "key number 0: bad name");
  ExpectError(Writer().Header(0, 1).Text("k").Put<uint32_t>(13), "key k has an unknown value type 13");
  ExpectError(Writer().Header(0, 1).Text("k").Put<uint32_t>(9).Put<uint32_t>(9).Put<uint64_t>(0), "key k is an array of arrays");
  ExpectError(Writer().Header(0, 1).Text("k").Put<uint32_t>(9).Put<uint32_t>(8).Put<uint64_t>(UINT64_MAX), "key k claims");
  ExpectError(Writer().Header(0, 1).Text("k").Put<uint32_t>(10).Put<uint64_t>(UINT64_MAX), "key k has an integer above 2^63 - 1");
  ExpectError(Writer().Header(0, 1).Text("k").Put<uint32_t>(8).Put<uint64_t>(99), "key k ends early");
  ExpectError(Writer().Header(0, 2).Text("k").Put<uint32_t>(7).Put<uint8_t>(1).Text("k").Put<uint32_t>(7).Put<uint8_t>(1), "key k appears twice");
  ExpectError(Writer().Header(0, 1).Text("general.alignment").Put<uint32_t>(4).Put<uint32_t>(24), "general.alignment is not a power of two");
  ExpectError(Writer().Header(0, 1).Text("general.alignment").Put<uint32_t>(4).Put<uint32_t>(0), "general.alignment is not a power of two");
}

TEST(GgufTest, RefusesWrongTensorsByNamingThem) {
  const auto one = [](std::vector<uint64_t> shape, uint32_t type, uint64_t offset, size_t data) {
    return Writer().Header(1, 0).Tensor("t", std::move(shape), type, offset).Pad().Data(data);
  };
  ExpectError(one({4}, 0, 0, 15), "tensor t: needs 16 bytes from 0 of the data");
  ExpectError(one({4}, 0, 16, 64), "tensor t: offset 16 is not a multiple of 32");
  ExpectError(one({4}, 0, UINT64_MAX - 31, 64), "tensor t: needs 16 bytes");
  ExpectError(one({33}, 8, 0, 64), "rows of 33 are not whole Q8_0 blocks");
  ExpectError(one({4}, 10, 0, 64), "tensor t: type Q2_K (10) is not supported");
  ExpectError(one({4}, 99, 0, 64), "tensor t: type unknown (99)");
  ExpectError(one({4, 0}, 0, 0, 64), "tensor t: the shape is empty or too large");
  ExpectError(one({uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0, 64), "tensor t: the shape is empty or too large");
  ExpectError(one({1, 1, 1, 1, 1}, 0, 0, 64), "tensor t: the number of dimensions");
  ExpectError(one({}, 0, 0, 64), "tensor t: the number of dimensions");
  ExpectError(Writer().Header(2, 0).Tensor("t", {16}, 0, 0).Tensor("u", {16}, 0, 32).Pad().Data(96), "tensor u overlaps tensor t");
  ExpectError(Writer().Header(2, 0).Tensor("t", {8}, 0, 0).Tensor("t", {8}, 0, 32).Pad().Data(96), "tensor t appears twice");
}

TEST(GgufTest, EveryTruncationIsAnError) {
  const std::string good = Good();
  for (size_t size = 0; size < good.size(); ++size) EXPECT_FALSE(Parse(good.substr(0, size)).ok()) << size;
}

TEST(GgufTest, RandomMutationsNeverReadOutside) {
  const std::string good = Good();
  std::mt19937 random(2);
  int parsed = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = good;
    for (uint32_t n = random() % 4 + 1; n > 0; --n) bytes[random() % bytes.size()] = static_cast<char>(random());
    if (auto file = Parse(bytes); file.ok()) {
      Touch(**file);
      ++parsed;
    }
  }
  EXPECT_GT(parsed, 0);
}

}  // namespace
}  // namespace phalanx::formats
