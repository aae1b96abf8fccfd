// kernels/cuda/attention.h: the kernels that attention.cc launches. Arguments are checked before.
// Refuses to know: tensors, errors, which kernel is best. Thread: the device's.
// Neighbours: attention.cc; attention_decode.cu, attention_prefill.cu and attention_plain.cu define them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/attention_config.h"
#include "kernels/cuda/rope.h"
#include "kernels/kernels.h"

namespace phalanx::kernels::cuda {

// Pointers and strides of one call; strides in elements.
struct AttentionParams {
  const void* q;    // [tokens, heads, head_dim] at q_row, q_head
  void* out;        // [tokens, heads * head_dim] at out_row
  const void* k;    // [blocks, kv_heads, block_size, head_dim]
  const void* v;
  int64_t q_row, q_head, out_row;
  const int32_t* query_start;     // [sequences + 1]
  const int32_t* context_length;  // [sequences]
  const int32_t* block_table;     // [sequences, max_blocks]
  int max_blocks, block_size;
  int64_t tokens;
  int sequences, heads, kv_heads, group, head_dim;
  float scale;
  int window;  // 0 = unlimited
};

// How decode shares a context among CTAs.
struct DecodeSplit {
  int splits;          // parts of the longest context
  SplitRule rule;
  void* workspace;     // PartialBytes if splits > 1
  uint32_t* counters;  // [sequences, kv_heads, group tiles]: zero, and left zero
};

// bf16 everywhere, IsFastHeadDim(head_dim), rows aligned to 16 bytes. Sequences of one query row; others are left alone.
void LaunchDecode(const AttentionParams& params, const DecodeSplit& split, cudaStream_t stream);
// rope_append and LaunchDecode in one: q and the newest k and v come from rope.qkv; params.q is not used. Every sequence has one row, and
// TakesPairs. Reads the cache rows of earlier steps before the previous kernel in the stream has ended.
void LaunchRopeDecode(const AttentionParams& params, const DecodeSplit& split, const RopeParams& rope, cudaStream_t stream);
// LaunchDecode for sequences of more than one query row.
void LaunchPrefill(const AttentionParams& params, cudaStream_t stream);
// The same on Hopper, in tiles of AttentionChoice::prefill_rows; `blocks` are the cache's. Only what WgmmaPrefillTakes. beside_decode:
// LaunchDecode for the same call was the last launch on the stream, and both may run at once.
bool WgmmaPrefillTakes(const Device* device, const AttentionParams& params);
Code LaunchWgmmaPrefill(Device* device, const AttentionParams& params, int blocks, int rows, bool beside_decode, cudaStream_t stream);

// Any dtype, any head_dim up to kPlainMaxHeadDim, any alignment; all rows.
void LaunchPlainAttention(const AttentionParams& params, DType q, DType cache, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda
