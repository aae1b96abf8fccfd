// Every block encoding, bit for bit against what the published `gguf` package decodes (tests/tools/make_goldens.py made the file).
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "formats/gguf.h"

namespace phalanx::formats {
namespace {

std::string Fixture(const std::string& name) {
  const char* root = std::getenv("PHALANX_SOURCE_DIR");
  return std::string(root != nullptr ? root : ".") + "/tests/fixtures/models/" + name;
}

TEST(DecodeTest, EveryEncodingEqualsTheGgufPackageBitForBit) {
  auto file = GgufFile::Open(Fixture("blocks.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  int encodings = 0;
  for (const auto& [name, tensor] : (*file)->tensors()) {
    const auto expected = (*file)->tensors().find(name + ".decoded");
    if (expected == (*file)->tensors().end()) continue;
    ++encodings;
    const auto count = static_cast<uint64_t>(expected->second.shape[0]);
    std::vector<float> decoded(count);
    ASSERT_TRUE(DecodeToF32(tensor.encoding, tensor.bytes.data(), count, decoded.data()).ok());
    EXPECT_EQ(std::memcmp(decoded.data(), expected->second.bytes.data(), count * sizeof(float)), 0) << name;
  }
  EXPECT_EQ(encodings, 10);  // all of enum Encoding but F32 and the integers
}

TEST(DecodeTest, PlainFloatsAreCopied) {
  const float values[] = {0.0f, -1.5f, 3e38f};
  float out[3] = {};
  ASSERT_TRUE(DecodeToF32(Encoding::kF32, values, 3, out).ok());
  EXPECT_EQ(std::memcmp(values, out, sizeof out), 0);
}

TEST(DecodeTest, HalvesKeepSubnormalsInfinitiesAndSigns) {
  const uint16_t halves[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x7bff, 0xfc00, 0x3c00};
  float out[7] = {};
  ASSERT_TRUE(DecodeToF32(Encoding::kF16, halves, 7, out).ok());
  const float expected[] = {0.0f, -0.0f, 0x1p-24f, -1023 * 0x1p-24f, 65504.0f, -HUGE_VALF, 1.0f};
  EXPECT_EQ(std::memcmp(out, expected, sizeof out), 0);
}

TEST(DecodeTest, IntegersAreNoWeights) {
  const int64_t value = 1;
  float out = 0;
  for (const Encoding encoding : {Encoding::kI8, Encoding::kU8, Encoding::kI32, Encoding::kI64}) {
    EXPECT_EQ(DecodeToF32(encoding, &value, 1, &out).code(), absl::StatusCode::kUnimplemented);
  }
}

TEST(DecodeTest, BlockSizesFollowTheSpecification) {
  EXPECT_EQ(EncodedBytes(Encoding::kQ8_0, 64), 68u);
  EXPECT_EQ(EncodedBytes(Encoding::kQ4_0, 32), 18u);
  EXPECT_EQ(EncodedBytes(Encoding::kQ5_1, 32), 24u);
  EXPECT_EQ(EncodedBytes(Encoding::kQ4_K, 512), 288u);
  EXPECT_EQ(EncodedBytes(Encoding::kQ6_K, 256), 210u);
  EXPECT_EQ(BlockElements(Encoding::kQ5_K), 256);
}

}  // namespace
}  // namespace phalanx::formats
