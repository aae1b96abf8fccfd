#include "worker/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "worker/model/convert.h"

namespace phalanx::worker::model {
namespace {

ModelConfig Small() {
  ModelConfig config;
  config.head_dim = 8;
  config.rope_theta = 10000.0;
  return config;
}

TEST(RopeTest, PlainFrequenciesFallGeometrically) {
  const std::vector<float> out = InverseFrequencies(Small());
  ASSERT_EQ(out.size(), 4u);
  for (int i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(out[i], static_cast<float>(std::pow(10000.0, -2.0 * i / 8)));
}

TEST(RopeTest, LinearScalingStretchesEveryWave) {
  ModelConfig config = Small();
  config.rope_scaling = RopeScaling::kLinear;
  config.rope_factor = 4.0;
  const std::vector<float> plain = InverseFrequencies(Small());
  const std::vector<float> out = InverseFrequencies(config);
  for (int i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(out[i], plain[i] / 4);
}

TEST(RopeTest, Llama3KeepsShortWavesStretchesLongOnesAndBlends) {
  ModelConfig config = Small();
  config.rope_scaling = RopeScaling::kLlama3;
  config.rope_factor = 8.0;
  config.rope_low_freq_factor = 1.0;
  config.rope_high_freq_factor = 4.0;
  config.rope_original_max_position = 128;  // waves: 6.3 (short), 62.8 (between 32 and 128), 628 and 6283 (long)
  const std::vector<float> plain = InverseFrequencies(Small());
  const std::vector<float> out = InverseFrequencies(config);
  EXPECT_FLOAT_EQ(out[0], plain[0]);
  EXPECT_LT(out[1], plain[1]);
  EXPECT_GT(out[1], plain[1] / 8);
  EXPECT_FLOAT_EQ(out[2], plain[2] / 8);
  EXPECT_FLOAT_EQ(out[3], plain[3] / 8);
}

TEST(RopeTest, DivisorsOfAGgufFileApply) {
  ModelConfig config = Small();
  config.rope_freq_divisors = {1, 2, 4, 8};
  const std::vector<float> plain = InverseFrequencies(Small());
  const std::vector<float> out = InverseFrequencies(config);
  for (int i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(out[i], plain[i] / static_cast<float>(1 << i));
}

TEST(RopeTest, RowsHoldCosinesThenSinesRoundedForTheModel) {
  const std::vector<float> frequencies = InverseFrequencies(Small());
  float row[8];
  FillRopeRow(frequencies, 3, kernels::kF32, row);
  for (int i = 0; i < 4; ++i) {
    EXPECT_FLOAT_EQ(row[i], std::cos(3 * frequencies[i]));
    EXPECT_FLOAT_EQ(row[4 + i], std::sin(3 * frequencies[i]));
  }
  float rounded[8];
  FillRopeRow(frequencies, 3, kernels::kBF16, rounded);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(rounded[i], FromBf16(ToBf16(row[i])));
}

TEST(ConvertTest, RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(ToBf16(1.0f), 0x3f80);
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // a tie goes to the even neighbour
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_TRUE(std::isnan(FromBf16(ToBf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isinf(FromBf16(ToBf16(HUGE_VALF))));
}

}  // namespace
}  // namespace phalanx::worker::model
