#include "kernels/cuda/attention_config.h"

#include <algorithm>
#include <bit>

namespace phalanx::kernels::cuda {
namespace {

constexpr int kCtasPerSm = 2;    // decode CTAs an SM needs to reach the copy rate; three fit
constexpr int kWavesWanted = 4;  // so many turns of the GPU level out contexts of different lengths

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Few sequences: enough parts to use all SMs, small ones. Many: parts only level out, so they are long, because each costs a write and a
// read of its partial result.
void ChooseSplits(const AttentionShape& s, int sm_count, AttentionChoice* choice) {
  const int64_t sequences = static_cast<int64_t>(std::bit_ceil(static_cast<uint32_t>(s.sequences)));
  const int64_t pairs = sequences * s.kv_heads * GroupTiles(s.heads / s.kv_heads);
  const int64_t slots = static_cast<int64_t>(sm_count) * kCtasPerSm;
  const int64_t visible = std::max(1, s.window > 0 ? std::min(s.window, s.max_context_length) : s.max_context_length);
  const int64_t fill = CeilDiv(slots, pairs), level = CeilDiv(kWavesWanted * slots, pairs);
  choice->rule = {fill >= 8 ? 128 : fill >= 2 ? 256 : 512, static_cast<int>(fill), static_cast<int>(level), kMaxSplits};
  choice->splits = std::max(1, PartsOf(static_cast<int>(visible), choice->rule));
}

// Small tiles where large ones would leave SMs without work; large ones read keys and values half as often.
int PrefillRows(const AttentionShape& s, int sm_count) {
  const int64_t tiles = PrefillTileCount(s.tokens, 1, s.heads / s.kv_heads, 2 * kPrefillRows) * s.kv_heads;
  return tiles < sm_count ? kPrefillRows : 2 * kPrefillRows;
}

}  // namespace

AttentionChoice ChooseAttention(const AttentionShape& s, int sm_count, uint64_t workspace_bytes, uint64_t counter_bytes) {
  AttentionChoice choice{false, false, false, 1, {512, 1, 1, 1}, kPrefillRows};
  if (s.tokens <= 0 || s.sequences <= 0) return choice;
  if (!s.tensor_cores || s.q != kBF16 || s.cache != kBF16 || !s.aligned || !IsFastHeadDim(s.head_dim)) {
    choice.plain = true;
    return choice;
  }
  choice.prefill = s.max_query_length > 1;
  choice.prefill_rows = PrefillRows(s, sm_count);
  choice.decode = !choice.prefill || s.sequences > 1;
  if (!choice.decode) return choice;
  ChooseSplits(s, sm_count, &choice);
  const uint64_t pairs = static_cast<uint64_t>(s.sequences) * static_cast<uint64_t>(s.kv_heads * GroupTiles(s.heads / s.kv_heads));
  if (pairs * sizeof(uint32_t) > counter_bytes) choice.splits = choice.rule.most = 1;
  while (choice.splits > 1 && PartialBytes(s.sequences, s.heads, s.kv_heads, s.head_dim, choice.splits) > workspace_bytes) {
    choice.rule.most = --choice.splits;
  }
  return choice;
}

}  // namespace phalanx::kernels::cuda
