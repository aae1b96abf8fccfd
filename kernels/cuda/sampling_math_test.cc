#include "kernels/cuda/sampling_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <random>
#include <vector>

namespace phalanx::kernels::cuda {
namespace {

// Source of the numbers: Random123's known-answer vectors, first output word.
TEST(SamplingMath, PhiloxGivesThePublishedNumbers) {
  EXPECT_EQ(Philox(0, 0, 0, 0, 0), 0x6627e8d5u);
  EXPECT_EQ(Philox(~uint64_t{0}, ~0u, ~0u, ~0u, ~0u), 0x408f276du);
  EXPECT_EQ(Philox(0x299f31d0a4093822u, 0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u), 0xd16cfe09u);
}

TEST(SamplingMath, UniformStaysInsideItsBounds) {
  SamplingRow o{};
  for (int32_t id = 0; id < 20000; ++id) {
    const float u = Uniform(o, id);
    ASSERT_GT(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    ASSERT_TRUE(std::isfinite(Gumbel(u)));
    ASSERT_LE(static_cast<double>(Gumbel(u)), -std::log(static_cast<double>(u)) + 1e-5) << "a draw skips values by this bound";
  }
}

TEST(SamplingMath, KeysKeepTheOrderAndComeBack) {
  std::vector<float> x = {-INFINITY, -FLT_MAX, -3.5f, -FLT_MIN, -1e-45f, 0.0f, 1e-45f, FLT_MIN, 1.0f, 3.5f, FLT_MAX, INFINITY};
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(FromKey(OrderedKey(x[i])), x[i]);
    if (i == 0) continue;
    EXPECT_LT(OrderedKey(x[i - 1]), OrderedKey(x[i])) << x[i];
  }
  EXPECT_EQ(OrderedKey(-0.0f), OrderedKey(0.0f));
  EXPECT_GT(Candidate(1.0f, 3), Candidate(1.0f, 4));
  EXPECT_GT(Candidate(2.0f, 9), Candidate(1.0f, 0));
  EXPECT_GT(Candidate(-INFINITY, kMaxVocab), kNobody);
  EXPECT_LT(Candidate(INFINITY, 0), kBadRow);
  EXPECT_EQ(IdOf(Candidate(-7.0f, 12345)), 12345);
  EXPECT_EQ(ValueOf(Candidate(-7.0f, 12345)), -7.0f);
  EXPECT_EQ(IdOf(kNobody), -1);
  EXPECT_EQ(IdOf(kBadRow), -1);
}

// select.cuh on one thread: the bin of the distance, then digits of the composite. Returns the composite's prefix after `levels`.
template <class WeightOf>
uint64_t Select(const std::vector<float>& x, float top, uint64_t target, int levels, WeightOf weight_of) {
  const auto find = [&target](const std::vector<uint64_t>& weights) {
    int bin = 0;
    while (target > weights[static_cast<size_t>(bin)]) target -= weights[static_cast<size_t>(bin++)];
    return bin;
  };
  std::vector<uint64_t> weights(kBins, 0);
  for (float v : x) weights[static_cast<size_t>(BinBelow(v, top))] += weight_of(v);
  const int bin = find(weights);
  uint64_t prefix = 0;
  int shift = 64;
  for (int level = 0; level < levels; ++level) {
    const Digit digit = DigitOf(level);
    weights.assign(kBins, 0);
    for (size_t i = 0; i < x.size(); ++i) {
      const uint64_t composite = Composite(x[i], static_cast<int32_t>(i));
      if (BinBelow(x[i], top) != bin || (shift != 64 && composite >> shift != prefix)) continue;
      weights[static_cast<size_t>(DigitBin(composite, digit))] += weight_of(x[i]);
    }
    prefix = (shift == 64 ? 0 : prefix << digit.bits) | static_cast<uint64_t>((1 << digit.bits) - 1 - find(weights));
    shift = digit.shift;
  }
  return prefix;
}

std::vector<std::vector<float>> Rows() {
  std::mt19937 rng(5);
  std::vector<std::vector<float>> rows;
  for (float spread : {0.0f, 0.001f, 0.3f, 3.0f, 40.0f}) {
    std::normal_distribution<float> normal(1, spread);
    for (size_t n : {1u, 7u, 500u, 3000u}) {
      std::vector<float> row(n);
      for (float& v : row) v = spread == 3.0f ? std::round(normal(rng)) : normal(rng);
      rows.push_back(row);
    }
  }
  return rows;
}

TEST(SamplingMath, SelectionFindsTheKthLargest) {
  for (const std::vector<float>& row : Rows()) {
    std::vector<float> sorted = row;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    for (size_t k : {size_t{1}, size_t{2}, row.size() / 2, row.size()}) {
      if (k < 1 || k > row.size()) continue;
      const uint64_t key = Select(row, sorted[0], k, kValueDigits, [](float) { return uint64_t{1}; });
      EXPECT_EQ(FromKey(static_cast<uint32_t>(key)), sorted[k - 1]) << "k " << k << " of " << row.size();
    }
  }
}

TEST(SamplingMath, AllDigitsTellEqualValuesApartByTheirIds) {
  const std::vector<float> row = {1, 3, 3, 2, 3, 1};
  const std::vector<int32_t> best_first = {1, 2, 4, 3, 0, 5};
  for (size_t k = 1; k <= row.size(); ++k) {
    const int32_t id = best_first[k - 1];
    EXPECT_EQ(Select(row, 3, k, kAllDigits, [](float) { return uint64_t{1}; }), Composite(row[static_cast<size_t>(id)], id));
  }
}

TEST(SamplingMath, SelectionFindsTheLastValueOfTheNucleus) {
  for (const std::vector<float>& row : Rows()) {
    std::vector<float> sorted = row;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const float top = sorted[0];
    uint64_t total = 0;
    for (float v : row) total += Mass(v, top);
    for (float p : {0.0f, 0.01f, 0.5f, 0.9f, 0.999f}) {
      const uint64_t limit = MassLimit(p, total);
      ASSERT_LE(limit, total);
      const float kept = FromKey(static_cast<uint32_t>(Select(row, top, limit, kValueDigits, [&](float v) { return Mass(v, top); })));
      // The contract's words: a token stays if the mass of strictly larger ones is below p.
      float want = top;
      for (float v : sorted) {
        double larger = 0;
        for (float other : sorted) {
          if (other <= v) break;
          larger += static_cast<double>(Mass(other, top));
        }
        if (v < top && larger >= static_cast<double>(p) * static_cast<double>(total)) break;
        if (Mass(v, top) > 0) want = v;
      }
      EXPECT_EQ(kept, want) << "p " << p << " of " << row.size();
    }
  }
}

TEST(SamplingMath, AFullVocabularyOfEqualValuesFitsItsMass) {
  EXPECT_EQ(Mass(0, 0) * uint64_t{kMaxVocab} / uint64_t{kMaxVocab}, Mass(0, 0));
  EXPECT_EQ(BinBelow(-INFINITY, 5.0f), kBins - 1);
  EXPECT_EQ(BinBelow(5.0f, 5.0f), 0);
}

}  // namespace
}  // namespace phalanx::kernels::cuda
