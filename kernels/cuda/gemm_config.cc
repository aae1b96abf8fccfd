#include "kernels/cuda/gemm_config.h"

#include <algorithm>

namespace phalanx::kernels::cuda {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t to) { return CeilDiv(a, to) * to; }

}  // namespace

ProductWay ChooseWay(const ProductShape& s) {
  if (s.m == 0) return ProductWay::kNothing;
  const bool fast = s.tensor_cores && s.x == kBF16 && s.weight == kBF16 && s.aligned && s.k % 8 == 0;
  if (fast && s.m > kSmallRows) return s.tiles ? ProductWay::kTiles : ProductWay::kLibrary;
  if (fast) return ProductWay::kStream;
  return s.m <= kPlainRows ? ProductWay::kPlainRows : ProductWay::kPlainTiles;
}

// Each SM gets one CTA and about the same number of weight rows, however odd: rows that a tile lacks are not read, so they cost nothing.
// What the memory does while one kernel gives way to the next is decided here, by what fits an SM side by side: the next kernel's CTAs
// should find room on every SM, for if they crowd the product takes as long as the fullest one.
// - The ring is deep where this kernel's CTA and another stream's share an SM.
// - A product whose ring holds all its weights (qkv, o of a small model) is brief and small: the next kernel may start beside it and its
//   predecessor. Else the next one starts when the previous one has ended, and finds only this one.
// - With a norm and a long stream (gate+up, the head) a CTA asks for more than half an SM, so that two never share one.
// - Gate+up follows attention and a brief product, during which the memory would idle: part of its weights is brought into L2 then.
StreamConfig ChooseStream(int64_t m, int64_t n, int64_t k, bool norm, const StreamDevice& device) {
  constexpr int64_t kShare = 113 * 1024;       // Hopper: 228 KB, of which 1 KB a CTA goes to the system
  constexpr int64_t kMoreThanHalf = 116 * 1024;
  constexpr int64_t kAhead = int64_t{16} << 20;
  constexpr int64_t kSlotBytes = int64_t{kStreamWarps} * kStreamTile * kStreamUnit * 2;
  const int64_t pairs = CeilDiv(n, 2), ctas = std::min<int64_t>(device.sm_count, pairs);
  const int64_t rows = std::min(n, 2 * CeilDiv(pairs, ctas));  // of the largest CTA
  const int64_t units = CeilDiv(CeilDiv(rows, kStreamTile) * StreamUnits(k), kStreamWarps);  // of a warp
  const int64_t rest = StreamRestBytes(m, k, norm), room = std::min<int64_t>(kShare, device.shared_bytes);
  const int64_t stages = rest + std::min<int64_t>(kStreamDeep, units) * kSlotBytes <= room ? kStreamDeep : kStreamShallow;
  const int64_t slots = std::min(stages, units);
  const bool brief = units <= stages, ahead = norm && !brief;
  int64_t shared = slots * kSlotBytes + rest;
  if (ahead) shared = std::max(shared, std::min<int64_t>(kMoreThanHalf, device.shared_bytes));
  return {static_cast<int>(ctas),   static_cast<int>(stages), static_cast<int>(slots),
          static_cast<int>(shared), brief,                    ahead ? static_cast<int>(kAhead / ctas / 16 * 16) : 0};
}

bool StreamTakesNorm(int64_t m, int64_t k, const StreamDevice& device) {
  constexpr int64_t kMost = 160 * 1024;  // more would leave the next kernel no room to begin
  constexpr int64_t kRing = int64_t{kStreamShallow} * kStreamWarps * kStreamTile * kStreamUnit * 2;
  return m <= kSmallRows && kRing + StreamRestBytes(m, k, true) <= std::min<int64_t>(kMost, device.shared_bytes);
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
