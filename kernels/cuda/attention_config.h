// kernels/cuda/attention_config.h: which attention kernels a step takes and how contexts are cut: pure choices from shapes.
// Refuses to know: CUDA, devices, pointers. Thread: any; `CutContext` also runs on the device.
// Neighbours: attention.cc acts on it; attention_config_test.cc needs no GPU.
#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"
#include "kernels/kernels.h"

namespace phalanx::kernels::cuda {

constexpr int kQueryRows = 16;     // queries of one tensor core tile: a decode CTA takes so many heads of a group
constexpr int kDecodeTurn = 64;    // positions that a decode CTA takes at once: 16 for each of its four warps
constexpr int kMaxSplits = 32;     // parts of one context: a warp merges them, a lane a part
constexpr int kPrefillRows = 64;   // (query row, head of the group) pairs of a prefill CTA; twice as many where there are enough on Hopper
constexpr int kPlainMaxHeadDim = 256;

// An attention step with what its kernels depend on.
struct AttentionShape {
  int64_t tokens;
  int sequences;
  int heads, kv_heads, head_dim;
  int max_query_length, max_context_length;
  int window;    // 0 = unlimited
  DType q, cache;
  bool aligned;  // rows of q, out, k and v start at multiples of 16 bytes
  bool tensor_cores = true;  // for bf16: compute capability 8.0 and later
};

// How a context is cut into parts. It follows from the shapes of the model and the number of sequences, rounded up to a power of two, so
// that rows and positions which only pad a step do not change a sequence's parts, and so not its bits.
struct SplitRule {
  int min_chunk;  // positions that are worth a part
  int fill;       // parts of any context that use the whole device
  int level;      // parts of 512 positions or more that level out contexts of different lengths
  int most;       // at most kMaxSplits
};

struct AttentionChoice {
  bool plain;     // attention_plain.cu takes all rows; the others are false
  bool decode;    // attention_decode.cu takes the sequences of one row
  bool prefill;   // attention_prefill.cu takes the longer ones
  int splits;     // decode: parts of the longest context, at most kMaxSplits
  SplitRule rule;  // decode: how each context is cut
  int prefill_rows;  // prefill on Hopper: kPrefillRows or twice that
};

AttentionChoice ChooseAttention(const AttentionShape& shape, int sm_count, uint64_t workspace_bytes, uint64_t counter_bytes);

// Whether the tensor core kernels are built for this head_dim.
constexpr bool IsFastHeadDim(int head_dim) { return head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128; }

// Query heads that share a kv head, in tiles of kQueryRows.
PHALANX_HOST_DEVICE constexpr int GroupTiles(int group) { return (group + kQueryRows - 1) / kQueryRows; }

// Bytes of the partial results of a split decode: per part and query row the sums of values, the maximum and the sum of weights.
constexpr uint64_t PartialBytes(int64_t sequences, int heads, int kv_heads, int head_dim, int splits) {
  const int group = heads / kv_heads, rows = group < kQueryRows ? group : kQueryRows;
  return static_cast<uint64_t>(sequences) * static_cast<uint64_t>(kv_heads) * static_cast<uint64_t>(GroupTiles(group)) *
         static_cast<uint64_t>(splits) * static_cast<uint64_t>(rows) * (static_cast<uint64_t>(head_dim) + 2) * sizeof(float);
}

// One sequence's visible positions in equal parts of whole turns, from its own length: the grid only bounds their number.
struct ContextCut {
  int chunks;  // >= 1; the last may be shorter
  int tokens;  // positions of one
};
PHALANX_HOST_DEVICE int PartsOf(int length, const SplitRule& rule) {
  const int small = (length + rule.min_chunk - 1) / rule.min_chunk, large = (length + 511) / 512;
  const int level = large < rule.level ? large : rule.level, wanted = level > rule.fill ? level : rule.fill;
  const int parts = small < wanted ? small : wanted;
  return parts < rule.most ? parts : rule.most;
}
PHALANX_HOST_DEVICE ContextCut CutContext(int length, const SplitRule& rule) {
  int chunks = PartsOf(length, rule);
  if (chunks < 1) chunks = 1;
  const int turns = (length + chunks * kDecodeTurn - 1) / (chunks * kDecodeTurn);
  const int tokens = (turns < 1 ? 1 : turns) * kDecodeTurn;
  chunks = (length + tokens - 1) / tokens;
  return {chunks < 1 ? 1 : chunks, tokens};
}

// At least as many as the tiles of `rows` packed queries in all sequences of more than one row (device/prefill_work.cuh numbers them).
PHALANX_HOST_DEVICE int64_t PrefillTileCount(int64_t tokens, int sequences, int group, int rows) {
  if (sequences == 1) return (tokens * group + rows - 1) / rows;
  const int64_t longer = sequences < tokens / 2 ? sequences : tokens / 2;  // sequences of more than one row, each with a part of a tile
  return tokens * group / rows + longer;
}

}  // namespace phalanx::kernels::cuda
