#include "kernels/cuda/gemm_config.h"

#include <algorithm>

namespace phalanx::kernels::cuda {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t to) { return CeilDiv(a, to) * to; }

}  // namespace

ProductWay ChooseWay(const ProductShape& s) {
  if (s.m == 0) return ProductWay::kNothing;
  const bool fast = s.x == kBF16 && s.weight == kBF16 && s.aligned && s.k % 8 == 0;
  if (fast) return s.m <= kSmallRows ? ProductWay::kStream : ProductWay::kLibrary;
  return s.m <= kPlainRows ? ProductWay::kPlainRows : ProductWay::kPlainTiles;
}

// Each SM gets the same number of weight rows, however odd: rows that a tile lacks are not read, so they cost nothing by themselves.
// Few rows an SM (o, qkv, down): one CTA, of 32 warps where k is long, so that enough bytes are in flight. More tokens take more shared
// memory a warp, so 16 then. Many rows (gate+up, lm_head): several CTAs, so that one reads while another sums up; of the ways to do that
// the one that keeps most lanes reading: the busiest SM has little more than its share, and the tiles of a CTA are full.
StreamConfig ChooseStream(int64_t m, int64_t n, int64_t k, int sm_count) {
  const int64_t steps = CeilDiv(k, 64);  // a warp takes 64 of k at a time
  const auto cut = [&](int ctas_per_sm, int warps) {
    const int64_t rows = RoundUp(CeilDiv(n, static_cast<int64_t>(sm_count) * ctas_per_sm), 2);
    return StreamConfig{static_cast<int>(CeilDiv(n, rows)), static_cast<int>(rows), steps <= 8 ? 8 : warps};
  };
  if (CeilDiv(n, sm_count) <= kStreamTile) return cut(1, steps >= 48 && m <= 8 ? 32 : 16);
  const auto used = [&](const StreamConfig& c) {
    const double share = static_cast<double>(n) / static_cast<double>(sm_count * CeilDiv(c.ctas, sm_count) * c.rows);
    return share * static_cast<double>(c.rows) / static_cast<double>(RoundUp(c.rows, kStreamTile));
  };
  StreamConfig best = cut(4, 8);
  for (const StreamConfig& other : {cut(3, 8), cut(2, 16)}) {
    if (used(other) > used(best)) best = other;
  }
  return best;
}

int64_t RowBucket(int64_t m) {
  int64_t bucket = 16;
  while (bucket < m) {
    if (bucket + bucket / 2 >= m) return bucket + bucket / 2;
    bucket *= 2;
  }
  return bucket;
}

uint32_t AlignmentOf(uint64_t address) {
  uint32_t alignment = 256;
  while (address % alignment != 0) alignment /= 2;
  return alignment;
}

int64_t ChunkRows(int64_t m, int64_t row_bytes, int64_t bytes) {
  const int64_t most = bytes / row_bytes;
  if (m <= most) return m;
  if (most == 0) return 0;
  const int64_t equal = CeilDiv(m, CeilDiv(m, most));
  return RoundUp(equal, 128) <= most ? RoundUp(equal, 128) : equal;
}

}  // namespace phalanx::kernels::cuda
