#include "kernels/cuda/sampling_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <random>
#include <vector>

#include "kernels/cuda/sampling_config.h"

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
    ASSERT_LT(Gumbel(u), kMostGumbel);
    ASSERT_LE(static_cast<double>(Gumbel(u)), -std::log(static_cast<double>(u)) + 1e-5) << "a draw skips values by this bound";
  }
}

TEST(SamplingMath, NoNoiseIsAboveItsBound) { EXPECT_LT(Gumbel(0x1p-33f), kMostGumbel); }

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

TEST(SamplingMath, DivisionRoundsToNearest) {
  std::mt19937 rng(8);
  std::uniform_real_distribution<float> temperature(1e-5f, 2), large(2, 1e5f), logit(-60, 60);
  for (int i = 0; i < 2000000; ++i) {
    const float t = i % 8 == 0 ? large(rng) : temperature(rng), y = 1.0f / t;
    const float x = i % 5 == 0 ? BitsFloat(static_cast<uint32_t>(rng())) : logit(rng);
    ASSERT_TRUE(CanDivideBy(t));
    if (!CanDivide(x)) continue;
    ASSERT_EQ(Divide(x, t, y), x / t) << x << " / " << t;
  }
  EXPECT_FALSE(CanDivide(0.0f) || CanDivide(-INFINITY) || CanDivide(NAN) || CanDivide(1e-30f) || CanDivide(-1e30f));
  EXPECT_TRUE(CanDivide(-20.0f) && CanDivide(1e-15f) && CanDivide(1e15f));
}

// select.cuh on one thread.
struct Search {
  const std::vector<float>& row;
  bool by_mass;
  float top;
  uint64_t target;
  int levels = 0;  // after the first

  uint64_t WeightOf(float x) const { return by_mass ? Mass(x, top) : 1; }
  uint64_t CompositeOf(size_t i) const { return Composite(row[i], static_cast<int32_t>(i)); }

  // The bins that bounds of their weight leave, as a range.
  Range FirstLevel(float span) const {
    const float per_unit = static_cast<float>(kBins - 1) / span;
    std::vector<uint64_t> count(kBins, 0);
    uint64_t exactly = 0;
    for (float x : row) {
      const int bin = BinBelow(x, top, per_unit);
      if (bin == kBins - 1) continue;
      ++count[static_cast<size_t>(bin)];
      exactly += WeightOf(x);
    }
    std::vector<uint64_t> most = {0}, least = {0};  // of the first bins
    for (int bin = 0; bin < kBins; ++bin) {
      const uint64_t n = count[static_cast<size_t>(bin)];
      most.push_back(most.back() + (by_mass ? n * MostMass(bin, per_unit) : n));
      least.push_back(least.back() + (by_mass ? n * LeastMass(bin, per_unit) : n));
    }
    const Prefix prefix{most.back(), least.back(), exactly};
    int first = kBins - 1, last = kBins - 1;
    for (size_t bin = kBins - 1; bin-- > 0;) {
      const uint64_t bin_most = prefix.Most(most[bin + 1], least[bin + 1]), bin_least = prefix.Least(most[bin + 1], least[bin + 1]);
      EXPECT_LE(bin_least, bin_most);
      if (target <= bin_most) first = static_cast<int>(bin);
      if (target <= bin_least) last = static_cast<int>(bin);
    }
    return RangeOfKeys(last == kBins - 1 ? OrderedKey(-INFINITY) : LastKeyFrom(last + 1, top, per_unit) + 1,
                       first == 0 ? OrderedKey(top) : LastKeyFrom(first, top, per_unit));
  }

  // The bin of a range in which the target lies.
  Range NextLevel(const Range& range, int least) {
    ++levels;
    const int shift = ShiftOf(range, least);
    std::vector<uint64_t> weight(kBins, 0);
    uint64_t above = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      if (CompositeOf(i) > range.high) above += WeightOf(row[i]);
      if (range.Holds(CompositeOf(i))) weight.at(static_cast<size_t>(BinInRange(range, CompositeOf(i), shift))) += WeightOf(row[i]);
    }
    EXPECT_LT(above, target) << "what lies above the range must not reach it";
    int bin = 0;
    for (; above + weight.at(static_cast<size_t>(bin)) < target; ++bin) above += weight[static_cast<size_t>(bin)];
    return RangeOfBin(range, bin, shift);
  }

  float Value(float span) {
    Range range = FirstLevel(span);
    while (!range.OneValue()) range = NextLevel(range, kIdBits);
    EXPECT_LE(levels, 4);
    return ValueOfComposite(range.low);
  }
};

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
      EXPECT_EQ((Search{row, false, sorted[0], k}.Value(kWidestSpan)), sorted[k - 1]) << "k " << k << " of " << row.size();
    }
  }
}

TEST(SamplingMath, LevelsDownToIdsTellEqualValuesApart) {
  const std::vector<float> row = {1, 3, 3, 2, 3, 1, -INFINITY};
  const std::vector<int32_t> best_first = {1, 2, 4, 3, 0, 5, 6};
  for (size_t k = 1; k <= row.size(); ++k) {
    const int32_t id = best_first[k - 1];
    Search search{row, false, 3, k};
    Range range = search.FirstLevel(kWidestSpan);
    while (range.low != range.high) range = search.NextLevel(range, 0);
    EXPECT_EQ(range.low, Composite(row[static_cast<size_t>(id)], id));
    EXPECT_LE(search.levels, 7);
  }
}

TEST(SamplingMath, SelectionFindsTheLastValueOfTheNucleus) {
  for (const std::vector<float>& row : Rows()) {
    std::vector<float> sorted = row;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const float top = sorted[0];
    uint64_t total = 0;
    for (float v : row) total += Mass(v, top);
    for (float p : {0.0f, 0.01f, 0.5f, 0.9f, 0.95f, 0.999f}) {
      const uint64_t limit = MassLimit(p, total);
      ASSERT_LE(limit, total);
      const float kept = Search{row, true, top, limit}.Value(SpanOfTopP(p, static_cast<int32_t>(row.size())));
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

TEST(SamplingMath, TheFirstLevelLeavesLittleOfALargeRow) {
  std::mt19937 rng(6);
  for (float spread : {1.0f, 3.0f, 10.0f}) {
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> row(150000);
    for (float& v : row) v = normal(rng);
    const float top = *std::max_element(row.begin(), row.end());
    uint64_t total = 0;
    for (float v : row) total += Mass(v, top);
    for (float p : {0.5f, 0.95f, 0.99f}) {
      const Search search{row, true, top, MassLimit(p, total)};
      const Range range = search.FirstLevel(SpanOfTopP(p, 150000));
      int within = 0;
      for (size_t i = 0; i < row.size(); ++i) within += range.Holds(search.CompositeOf(i));
      EXPECT_LE(within, 8000) << "spread " << spread << " p " << p;
      EXPECT_GE(within, 1);
    }
  }
}

TEST(SamplingMath, BordersOfBinsAreExact) {
  std::mt19937 rng(7);
  std::uniform_real_distribution<float> any(-40, 40);
  for (int i = 0; i < 200; ++i) {
    const float top = any(rng), per_unit = 511.0f / (0.001f + std::fabs(any(rng)));
    const int bin = 1 + static_cast<int>(rng() % (kBins - 1));
    const uint32_t key = LastKeyFrom(bin, top, per_unit);
    EXPECT_GE(BinBelow(FromKey(key), top, per_unit), bin);
    EXPECT_LT(BinBelow(FromKey(key + 1), top, per_unit), bin);
  }
}

TEST(SamplingMath, AFullVocabularyOfEqualValuesFitsItsMass) {
  EXPECT_EQ(Mass(0, 0) * uint64_t{kMaxVocab} / uint64_t{kMaxVocab}, Mass(0, 0));
  EXPECT_EQ(MostMass(0, 16) * uint64_t{kMaxVocab} / uint64_t{kMaxVocab}, MostMass(0, 16));
  EXPECT_EQ(BinBelow(-INFINITY, 5.0f, 16), kBins - 1);
  EXPECT_EQ(BinBelow(5.0f, 5.0f, 16), 0);
}

TEST(SamplingMath, StripsCoverTheRowAndFillTheDevice) {
  for (int64_t rows : {1, 8, 64, 140, 256, 1000}) {
    for (int64_t vocab : {5, 592, 49152, 151936}) {
      const Strips strips = StripsOf(rows, vocab, 4096, 264);
      EXPECT_EQ(strips.size % 4096, 0);
      EXPECT_GE(strips.parts * strips.size, vocab);
      EXPECT_LT((strips.parts - 1) * strips.size, vocab) << "none is empty";
    }
  }
  EXPECT_EQ(StripsOf(1, 151936, 2048, 264).size, 2048);
  EXPECT_EQ(StripsOf(256, 151936, 4096, 264).parts, 1);
  EXPECT_GE(StripsOf(140, 151936, 4096, 264).parts, 3) << "one and a half rows a slot would leave many idle";
}

TEST(SamplingMath, ATeamCoversItsRow) {
  EXPECT_EQ(RanksOf(592), 1);
  EXPECT_EQ(RanksOf(151936), kMostRanks);
  for (int32_t vocab : {1, 5, 592, 5000, 49152, 151936, 262144}) {
    EXPECT_GE(PartSize(vocab, RanksOf(vocab)) * RanksOf(vocab), vocab);
    EXPECT_EQ(PartSize(vocab, RanksOf(vocab)) % 4, 0);
  }
}

}  // namespace
}  // namespace phalanx::kernels::cuda
