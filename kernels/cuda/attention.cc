// attention: checks the operands, asks attention_config for the kernels and launches them.
#include "kernels/cuda/attention.h"

#include <algorithm>

#include "kernels/cuda/device.h"

namespace phalanx::kernels::cuda {
namespace {

bool IsAligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

bool IsAligned(const AttentionArgs& a, const AttentionParams& p) {
  const int64_t step = 16 / static_cast<int64_t>(DTypeBytes(a.q.dtype));
  return IsAligned(p.q) && IsAligned(p.out) && IsAligned(p.k) && IsAligned(p.v) && p.q_row % step == 0 && p.q_head % step == 0 &&
         p.out_row % step == 0;
}

bool Takes(const AttentionArgs& a, const StepLayout& l, int64_t* out_row) {
  const KvLayer& kv = a.cache;
  return IsModelDType(a.q.dtype) && a.out.dtype == a.q.dtype && IsModelDType(kv.dtype) && a.q.rank == 3 && a.q.stride[2] == 1 &&
         a.q.shape[0] >= l.num_tokens && a.q.shape[2] == kv.head_dim && kv.head_dim >= 1 && kv.head_dim <= kPlainMaxHeadDim &&
         kv.kv_heads >= 1 && a.q.shape[1] >= 1 && a.q.shape[1] <= 65535 && a.q.shape[1] % kv.kv_heads == 0 && kv.block_size >= 1 &&
         RowStride(a.out, out_row) && Columns(a.out) == a.q.shape[1] * kv.head_dim && Rows(a.out) >= l.num_tokens && a.window >= 0 &&
         static_cast<int64_t>(kv.num_blocks) * kv.kv_heads * kv.block_size <= INT32_MAX;
}

// The parameters of a call that Takes accepts.
AttentionParams ParamsOf(const AttentionArgs& a, const StepLayout& l, int64_t out_row) {
  const KvLayer& kv = a.cache;
  const int heads = static_cast<int>(a.q.shape[1]);
  return {a.q.data,     a.out.data,   kv.k,        kv.v,    a.q.stride[0],         a.q.stride[1],
          out_row,      l.query_start, l.context_length, l.block_table, l.max_blocks, kv.block_size,
          l.num_tokens, l.num_sequences, heads,    kv.kv_heads, heads / kv.kv_heads, kv.head_dim,
          a.scale,      a.window};
}

AttentionChoice Choose(const Device* device, const AttentionArgs& a, const StepLayout& l, const AttentionParams& p) {
  const AttentionShape shape{l.num_tokens,         l.num_sequences, p.heads,   p.kv_heads, p.head_dim, l.max_query_length,
                             l.max_context_length, a.window,        a.q.dtype, a.cache.dtype, IsAligned(a, p),
                             device->capability >= 80};
  return ChooseAttention(shape, device->sm_count, WorkspaceBytes(device), kCounterBytes);
}

DecodeSplit SplitOf(Device* device, const AttentionChoice& choice) {
  return {choice.splits, choice.rule, Workspace(device), static_cast<uint32_t*>(Counters(device))};
}

}  // namespace

Code Attention(Device* device, const AttentionArgs* args, const StepLayout* layout, Stream stream) {
  const AttentionArgs& a = *args;
  const StepLayout& l = *layout;
  const KvLayer& kv = a.cache;
  int64_t out_row = 0;
  if (!Takes(a, l, &out_row)) {
    return device->Fail(kBadShape, "attention: q [%lld, %lld, %lld], %d kv heads of %d, %d blocks of %d, window %d",
                        static_cast<long long>(a.q.shape[0]), static_cast<long long>(a.q.shape[1]), static_cast<long long>(a.q.shape[2]),
                        kv.kv_heads, kv.head_dim, kv.num_blocks, kv.block_size, a.window);
  }
  const AttentionParams p = ParamsOf(a, l, out_row);
  const AttentionChoice choice = Choose(device, a, l, p);
  const cudaStream_t s = device->StreamOf(stream);
  if (choice.plain) LaunchPlainAttention(p, a.q.dtype, kv.dtype, s);
  if (choice.decode) LaunchDecode(p, SplitOf(device, choice), s);
  if (choice.prefill && WgmmaPrefillTakes(device, p)) {
    return LaunchWgmmaPrefill(device, p, kv.num_blocks, choice.prefill_rows, choice.decode, s);
  }
  if (choice.prefill) LaunchPrefill(p, s);
  return device->Launched("attention");
}

Code RopeAttention(Device* device, const RopeAppendArgs* rope, const AttentionArgs* attention, const StepLayout* layout, Stream stream) {
  const AttentionArgs& a = *attention;
  const StepLayout& l = *layout;
  int64_t out_row = 0;
  RopeParams r;
  if (l.num_tokens > 0 && l.num_tokens == l.num_sequences && l.max_query_length == 1 && ReadRope(*rope, l, &r) && Takes(a, l, &out_row) &&
      rope->heads == a.q.shape[1] && rope->qkv.dtype == kBF16 && TakesPairs(r, 2, 2)) {
    const AttentionParams p = ParamsOf(a, l, out_row);
    const AttentionChoice choice = Choose(device, a, l, p);
    if (choice.decode) {
      LaunchRopeDecode(p, SplitOf(device, choice), r, device->StreamOf(stream));
      return device->Launched("rope_attention");
    }
  }
  if (const Code code = RopeAppend(device, rope, layout, stream); code != kOk) return code;
  return Attention(device, attention, layout, stream);
}

}  // namespace phalanx::kernels::cuda
