// rope_append: splits a fused qkv row, norms and rotates its heads, writes q out and k, v into the cache.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/device.h"

namespace phalanx::kernels::cpu {
namespace {

constexpr int kMaxHeadDim = 256;
constexpr int64_t kTaskElements = 16384;

// Norm and rotation of one head, rounded to the model dtype at the end.
void TurnHead(const Level& level, const RopeAppendArgs& a, const char* head, const void* gamma, const float* angles, char* out) {
  const DType dtype = a.qkv.dtype;
  const int head_dim = a.cache.head_dim;
  alignas(64) char normed[kMaxHeadDim * 4];
  alignas(64) float x[kMaxHeadDim], turned[kMaxHeadDim];
  if (gamma != nullptr) {
    level.rms_norm(head, dtype, gamma, a.norm_epsilon, head_dim, normed);
    head = normed;
  }
  level.to_f32(head, dtype, head_dim, x);
  const int half = a.rotary_dim / 2;
  level.rope(x, angles, angles + half, half, turned);
  std::copy(x + a.rotary_dim, x + head_dim, turned + a.rotary_dim);
  level.from_f32(turned, head_dim, dtype, out);
}

// A head in model dtype -> the cache's dtype.
void StoreHead(const Level& level, const char* head, DType dtype, const KvLayer& kv, void* base, int32_t slot, int kv_head) {
  const int64_t at = ((static_cast<int64_t>(slot / kv.block_size) * kv.kv_heads + kv_head) * kv.block_size + slot % kv.block_size) * kv.head_dim;
  char* to = static_cast<char*>(base) + at * static_cast<int64_t>(DTypeBytes(kv.dtype));
  if (dtype == kv.dtype) {
    std::memcpy(to, head, static_cast<size_t>(kv.head_dim) * DTypeBytes(dtype));
    return;
  }
  alignas(64) float x[kMaxHeadDim];
  level.to_f32(head, dtype, kv.head_dim, x);
  level.from_f32(x, kv.head_dim, kv.dtype, to);
}

void AppendRow(const Level& level, const RopeAppendArgs& a, const StepLayout& layout, int64_t row, int64_t qkv_stride) {
  const DType dtype = a.qkv.dtype;
  const KvLayer& kv = a.cache;
  const float* angles = a.cos_sin + static_cast<int64_t>(layout.positions[row]) * a.rotary_dim;
  const int32_t slot = layout.slots[row];
  const char* heads = At(a.qkv, row * qkv_stride);
  const int64_t head_bytes = kv.head_dim * static_cast<int64_t>(DTypeBytes(dtype));
  for (int h = 0; h < a.heads; ++h) {
    TurnHead(level, a, heads + h * head_bytes, a.q_norm, angles, At(a.q, row * a.q.stride[0] + h * a.q.stride[1]));
  }
  if (slot < 0) return;
  alignas(64) char turned[kMaxHeadDim * 4];
  for (int h = 0; h < kv.kv_heads; ++h) {
    TurnHead(level, a, heads + (a.heads + h) * head_bytes, a.k_norm, angles, turned);
    StoreHead(level, turned, dtype, kv, kv.k, slot, h);
    StoreHead(level, heads + (a.heads + kv.kv_heads + h) * head_bytes, dtype, kv, kv.v, slot, h);
  }
}

}  // namespace

Code RopeAppend(Device* device, const RopeAppendArgs* args, const StepLayout* layout, Stream) {
  const KvLayer& kv = args->cache;
  int64_t stride;
  if (!IsModelDType(args->qkv.dtype) || args->q.dtype != args->qkv.dtype || !IsModelDType(kv.dtype) || !RowStride(args->qkv, &stride) ||
      args->q.rank != 3 || args->q.shape[1] != args->heads || args->q.shape[2] != kv.head_dim || kv.head_dim % 8 != 0 ||
      kv.head_dim > kMaxHeadDim || args->rotary_dim > kv.head_dim || args->rotary_dim % 2 != 0 ||
      Columns(args->qkv) != (args->heads + 2 * kv.kv_heads) * static_cast<int64_t>(kv.head_dim) || Rows(args->qkv) < layout->num_tokens) {
    return device->Fail(kBadShape, "rope_append: %d heads, %d kv heads of %d, rotary %d", args->heads, kv.kv_heads, kv.head_dim, args->rotary_dim);
  }
  const int64_t rows = layout->num_tokens, per_task = std::max<int64_t>(1, kTaskElements / Columns(args->qkv));
  device->pool.For(static_cast<int>((rows + per_task - 1) / per_task), [&](int task, int) {
    const int64_t end = std::min(rows, (task + 1) * per_task);
    for (int64_t row = task * per_task; row < end; ++row) AppendRow(*device->level, *args, *layout, row, stride);
  });
  return kOk;
}

}  // namespace phalanx::kernels::cpu
