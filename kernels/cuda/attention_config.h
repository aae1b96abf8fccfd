// kernels/cuda/attention_config.h: which attention kernels a step takes and how contexts are cut: pure choices from shapes.
// Refuses to know: CUDA, devices, pointers. Thread: any; `CutContext` also runs on the device.
// Neighbours: attention.cc acts on it; attention_config_test.cc needs no GPU.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

#ifdef __CUDACC__
#define PHALANX_HOST_DEVICE __host__ __device__ inline
#else
#define PHALANX_HOST_DEVICE inline
#endif

namespace phalanx::kernels::cuda {

constexpr int kQueryRows = 16;     // queries of one tensor core tile: a decode CTA takes so many heads of a group
constexpr int kDecodeTurn = 64;    // positions that a decode CTA takes at once: 16 for each of its four warps
constexpr int kMaxSplits = 32;     // parts of one context: a warp merges them, a lane a part
constexpr int kPrefillRows = 64;   // (query row, head of the group) pairs of a prefill CTA
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
};

struct AttentionChoice {
  bool plain;     // attention_plain.cu takes all rows; the others are false
  bool decode;    // attention_decode.cu takes the sequences of one row
  bool prefill;   // attention_prefill.cu takes the longer ones
  int splits;     // decode: most parts of one context, at most kMaxSplits
  int min_chunk;  // decode: positions that are worth a part
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
PHALANX_HOST_DEVICE ContextCut CutContext(int length, int splits, int min_chunk) {
  int chunks = (length + min_chunk - 1) / min_chunk;
  if (chunks > splits) chunks = splits;
  if (chunks < 1) chunks = 1;
  const int turns = (length + chunks * kDecodeTurn - 1) / (chunks * kDecodeTurn);
  const int tokens = (turns < 1 ? 1 : turns) * kDecodeTurn;
  chunks = (length + tokens - 1) / tokens;
  return {chunks < 1 ? 1 : chunks, tokens};
}

// Prefill tiles are numbered over the whole step without a plan: sequence s has the tiles from here to the next sequence's first, which
// are enough for its rows; what is left over has nothing to do.
PHALANX_HOST_DEVICE int64_t FirstTile(int64_t query_start, int sequence, int group) {
  return query_start * group / kPrefillRows + sequence;
}

}  // namespace phalanx::kernels::cuda
