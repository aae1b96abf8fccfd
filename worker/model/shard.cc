#include "worker/model/shard.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/check.h"

namespace phalanx::worker::model {
namespace {

constexpr int64_t kUnevenStep = 16;   // kernels like widths that are multiples of this

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Part `index` of `parts` parts of [0, total) that differ by one at most.
Cut BalancedCut(int64_t total, int64_t index, int64_t parts) {
  const int64_t first = index * total / parts;
  return {first, (index + 1) * total / parts - first, CeilDivide(total, parts)};
}

// A rank's heads by number.
struct Heads {
  Cut q;
  Cut kv;
};

Heads HeadsOf(const ModelConfig& config, int rank, int size) {
  const int64_t kv_heads = config.num_kv_heads;
  const int64_t group = config.num_heads / kv_heads;   // query heads of a KV head
  if (size <= kv_heads) {
    const Cut kv = BalancedCut(kv_heads, rank, size);
    return {{kv.first * group, kv.count * group, kv.width * group}, kv};
  }
  const int64_t sharing = size / kv_heads;             // ranks of a KV head
  const int64_t kv_head = rank / sharing;
  if (kv_head >= kv_heads) return {};
  Cut q = BalancedCut(group, rank % sharing, sharing);
  q.first += kv_head * group;
  return {q, {kv_head, 1, 1}};
}

Cut Times(const Cut& cut, int64_t factor) { return {cut.first * factor, cut.count * factor, cut.width * factor}; }

}  // namespace

Cut EvenCut(int64_t total, int rank, int size) {
  int64_t width = CeilDivide(total, size);
  if (total % size != 0) width = CeilDivide(width, kUnevenStep) * kUnevenStep;
  const int64_t first = std::min(rank * width, total);
  return {first, std::min(width, total - first), width};
}

absl::StatusOr<Shard> MakeShard(const ModelConfig& config, int rank, int size) {
  PHX_CHECK(size >= 1 && rank >= 0 && rank < size);
  for (int other = 0; other < size; ++other) {   // every rank refuses what one of them must
    if (HeadsOf(config, other, size).q.count > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("num_attention_heads ", config.num_heads, " and num_key_value_heads ",
                                                   config.num_kv_heads, " cannot be spread over ", size, " ranks: rank ", other,
                                                   " would have no head; lower --tensor-parallel-size"));
  }
  const Heads heads = HeadsOf(config, rank, size);
  Shard shard;
  shard.rank = rank;
  shard.size = size;
  shard.heads = static_cast<int32_t>(heads.q.width);
  shard.kv_heads = static_cast<int32_t>(heads.kv.width);
  shard.q = Times(heads.q, config.head_dim);
  shard.kv = Times(heads.kv, config.head_dim);
  shard.inner = EvenCut(config.intermediate_size, rank, size);
  shard.vocab = EvenCut(config.vocab_size, rank, size);
  return shard;
}

}  // namespace phalanx::worker::model
