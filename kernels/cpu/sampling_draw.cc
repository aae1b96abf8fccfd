// Truncation and the draw of one row, without a sort of the row: each step first narrows the row to few candidates.
#include "kernels/cpu/sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace phalanx::kernels::cpu {
namespace {

constexpr int64_t kTile = 2048;        // values looked at between two updates of a running limit
constexpr int64_t kSmall = 2048;       // so few candidates are sorted as they are
constexpr int64_t kDrawBlock = 512;    // candidates whose random words are made together
constexpr int kBins = 2048;
constexpr float kBinsPerUnit = 64.0f;  // 32 units of log-probability below the maximum; the last bin takes the rest

// Philox4x32-10, first output word. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
inline uint32_t Philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c0;
}

inline uint32_t Word(const SamplingRow& o, int32_t id) {
  return Philox(o.seed, static_cast<uint32_t>(o.position), static_cast<uint32_t>(id), o.stream, 0);
}

inline float GumbelOf(uint32_t word) {
  const float u = std::min(std::fma(static_cast<float>(word), 0x1p-32f, 0x1p-33f), 0x1.fffffep-1f);
  return -std::log(-std::log1p(-u));
}

inline float Finite(float cut) { return std::max(cut, -FLT_MAX); }  // -infinity is never a candidate

// Walks sorted values while the mass of strictly larger ones stays below `limit`; `before` is the mass above all of them.
float WalkTopP(const float* sorted, int64_t count, float top, double before, double limit) {
  float kept = sorted[0];
  double larger = before;
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0 && sorted[i] < sorted[i - 1]) larger = before;
    if (i > 0 && larger >= limit) break;
    kept = sorted[i];
    before += std::exp(static_cast<double>(sorted[i]) - top);
  }
  return kept;
}

// TopP over b.spare[0..count), which is all that is left, or the largest of it with mass `total` in all of it.
float TopPOfCandidates(const Level& level, float p, int64_t count, float top, double total, float cut, const RowBuffers& b) {
  auto greater = [](float a, float c) { return a > c; };
  if (count <= kSmall) {
    std::sort(b.spare, b.spare + count, greater);
    return WalkTopP(b.spare, count, top, 0, p * total);
  }
  // Bins of the distance below the maximum hold the mass; only the bin in which the limit lies is sorted.
  double mass[kBins] = {}, before = 0;
  auto bin_of = [top](float v) { return static_cast<int>(std::min((top - v) * kBinsPerUnit, static_cast<float>(kBins - 1))); };
  for (int64_t i = 0; i < count; ++i) mass[bin_of(b.spare[i])] += static_cast<double>(b.mass[i]);
  int bin = 0;
  while (bin < kBins && before + mass[bin] < p * total) before += mass[bin++];
  if (bin == kBins) return cut;
  int64_t inside = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (bin_of(b.spare[i]) == bin) b.spare[inside++] = b.spare[i];
  }
  if (inside == 0) return cut;
  std::sort(b.spare, b.spare + inside, greater);
  return WalkTopP(b.spare, inside, top, before, p * total);
}

float TopPCut(const Level& level, float p, const DrawRow& row, float cut, const RowBuffers& b) {
  // A nucleus is small: values far below the maximum are only counted into the total, unless what is above them turns out too little.
  const bool narrow = cut == -INFINITY && row.clean;
  const double all = narrow ? level.exp_sum(row.x, row.n, row.top) : 0;
  for (float depth = narrow ? 6.0f : INFINITY;; depth *= 2) {
    const float limit = std::max(Finite(cut), row.top - depth);
    const int64_t count = level.collect(row.x, row.n, limit, b.ids);
    for (int64_t i = 0; i < count; ++i) b.spare[i] = row.x[b.ids[i]];
    level.exp_shift(b.spare, count, row.top, b.mass);
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += static_cast<double>(b.mass[i]);
    const bool whole = limit == Finite(cut) || depth > 100.0f;  // exp(-100) adds nothing
    if (whole) return TopPOfCandidates(level, p, count, row.top, total, cut, b);
    if (total > p * all * (1 + 1e-5)) return TopPOfCandidates(level, p, count, row.top, all, cut, b);
  }
}

}  // namespace

float KthLargest(const Level& level, const float* x, int64_t n, int64_t k, float* spare, int32_t* ids) {
  auto greater = [](float a, float b) { return a > b; };
  if (k > 1024) {
    std::copy(x, x + n, spare);
    std::nth_element(spare, spare + k - 1, spare + n, greater);
    return spare[k - 1];
  }
  // A heap of the k largest so far; its smallest is the limit for what is looked at next.
  std::copy(x, x + k, spare);
  std::make_heap(spare, spare + k, greater);
  for (int64_t begin = k; begin < n; begin += kTile) {
    const int64_t count = level.collect(x + begin, std::min(kTile, n - begin), spare[0], ids);
    for (int64_t i = 0; i < count; ++i) {
      const float v = x[begin + ids[i]];
      if (!(v > spare[0])) continue;
      std::pop_heap(spare, spare + k, greater);
      spare[k - 1] = v;
      std::push_heap(spare, spare + k, greater);
    }
  }
  return spare[0];
}

float TruncationCut(const Level& level, const SamplingRow& o, const DrawRow& row, const RowBuffers& b) {
  float cut = -INFINITY;
  if (o.min_p > 0) cut = row.top + std::log(std::min(o.min_p, 1.0f));
  if (o.top_k > 0 && o.top_k < row.n) cut = std::max(cut, KthLargest(level, row.x, row.n, o.top_k, b.spare, b.ids));
  if (o.top_p < 1.0f) cut = std::max(cut, TopPCut(level, o.top_p, row, cut, b));
  return cut;
}

int32_t DrawGumbel(const Level& level, const SamplingRow& o, const DrawRow& row, float cut, const RowBuffers& b) {
  const float* x = row.x;
  int64_t count = row.n;
  const bool all = cut == -INFINITY && row.clean;  // ids are places; -infinity has no mass and is never chosen
  if (!all) {
    count = level.collect(row.x, row.n, Finite(cut), b.ids);
    if (count <= 1) return row.best;
    for (int64_t i = 0; i < count; ++i) b.spare[i] = row.x[b.ids[i]];
    x = b.spare;
  }
  level.exp_shift(x, count, row.top, b.mass);
  int32_t chosen = row.best, ids[kDrawBlock], places[kDrawBlock];
  uint32_t words[kDrawBlock];
  float noisy = row.top + GumbelOf(Word(o, chosen));
  // x + g(u) can only reach `noisy` if u <= exp(x - noisy), because -log1p(-u) >= u. So most candidates cost one random word and
  // no logarithm; the margin covers the rounding of both sides.
  float scale = std::exp(row.top - noisy) * 1.001f * 4294967296.0f;
  for (int64_t begin = 0; begin < count; begin += kDrawBlock) {
    const int64_t size = std::min(kDrawBlock, count - begin);
    for (int64_t i = 0; i < size; ++i) ids[i] = all ? static_cast<int32_t>(begin + i) : b.ids[begin + i];
    level.philox(o.seed, static_cast<uint32_t>(o.position), o.stream, ids, size, words);
    const int64_t close = level.within_reach(b.mass + begin, words, size, scale, places);
    for (int64_t j = 0; j < close; ++j) {
      const int32_t i = places[j];
      const float limit = b.mass[begin + i] * scale;
      if (!(limit >= 0.49f) || static_cast<float>(words[i]) > limit + 1.0f) continue;
      const float value = x[begin + i] + GumbelOf(words[i]);
      if (value < noisy || (value == noisy && ids[i] >= chosen)) continue;
      chosen = ids[i];
      noisy = value;
      scale = std::exp(row.top - noisy) * 1.001f * 4294967296.0f;
    }
  }
  return chosen;
}

void TopIds(const Level& level, const float* x, int64_t n, int32_t count, int32_t* spare_ids, int32_t* out) {
  auto better = [x](int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
  for (int32_t i = 0; i < count; ++i) out[i] = i;
  std::make_heap(out, out + count, better);
  for (int64_t begin = count; begin < n; begin += kTile) {
    const int64_t found = level.collect(x + begin, std::min(kTile, n - begin), x[out[0]], spare_ids);
    for (int64_t i = 0; i < found; ++i) {
      const int32_t id = static_cast<int32_t>(begin) + spare_ids[i];
      if (!better(id, out[0])) continue;
      std::pop_heap(out, out + count, better);
      out[count - 1] = id;
      std::push_heap(out, out + count, better);
    }
  }
  std::sort(out, out + count, better);
}

}  // namespace phalanx::kernels::cpu
