// rope_append: splits a fused qkv row, norms and rotates its heads, writes q out and k, v into the cache.
//
//   qkv      [tokens, (heads + 2 kv_heads) * head_dim]      model dtype   in: q heads, k heads, v heads
//   q        [tokens, heads, head_dim]                      model dtype   out
//   cache    [blocks, kv_heads, block_size, head_dim] x 2   bf16 or f32   out, at slots[token]
//   cos_sin  [positions, rotary_dim]                        f32           cosines, then sines, of rotary_dim / 2 angles
//
// Reads and writes each value of qkv once. One warp a head.
#include "kernels/cuda/rope.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/device/chain.cuh"
#include "kernels/cuda/device/rope_head.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kMaxHeadDim = 256;
constexpr int kWarps = 8;  // heads of a CTA

// Grid: x = tokens, y = groups of kWarps heads.
template <class T, class Cache, int kN>
__global__ void __launch_bounds__(kWarps* kWarp) RopeAppendHeads(const RopeParams p) {
  PassGate();
  const KvLayer& kv = p.cache;
  const int64_t token = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  if (head >= p.heads + 2 * kv.kv_heads) return;
  const bool is_q = head < p.heads, is_v = head >= p.heads + kv.kv_heads;
  const int32_t slot = p.slots[token];
  if (!is_q && (slot < 0 || slot >= static_cast<int64_t>(kv.num_blocks) * kv.block_size)) return;

  const HeadShape shape{p.rotary_dim / 2, kv.head_dim};
  HeadPart<kN, kMaxHeadDim> part;
  LoadHead(part, shape, lane, static_cast<const T*>(p.qkv) + token * p.qkv_stride + static_cast<int64_t>(head) * kv.head_dim);
  const T* gamma = static_cast<const T*>(is_q ? p.q_norm : is_v ? nullptr : p.k_norm);
  if (gamma != nullptr) NormHead(part, shape, lane, gamma, p.epsilon);
  if (!is_v) {
    const float* angles = p.cos_sin + static_cast<int64_t>(p.positions[token]) * p.rotary_dim;
    Rotate(part, LoadAngles<kN, kMaxHeadDim>(shape, lane, angles), shape, lane);
  }
  if (is_q) {
    StoreHead<T>(part, shape, lane, static_cast<T*>(p.q) + token * p.q_token_stride + head * p.q_head_stride);
    return;
  }
  const int kv_head = is_v ? head - p.heads - kv.kv_heads : head - p.heads;
  const int64_t row = (static_cast<int64_t>(slot / kv.block_size) * kv.kv_heads + kv_head) * kv.block_size + slot % kv.block_size;
  StoreHead<T>(part, shape, lane, static_cast<Cache*>(is_v ? kv.v : kv.k) + row * kv.head_dim);
}

template <class T, class Cache>
void LaunchHeads(const RopeParams& p, int tokens, cudaStream_t stream) {
  const int heads = p.heads + 2 * p.cache.kv_heads;
  const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>((heads + kWarps - 1) / kWarps));
  const auto kernel = TakesPairs(p, sizeof(T), sizeof(Cache)) ? RopeAppendHeads<T, Cache, 2> : RopeAppendHeads<T, Cache, 1>;
  Launch(kernel, grid, dim3(kWarps * kWarp), 0, stream, p);
}

}  // namespace

bool TakesPairs(const RopeParams& p, size_t size, size_t cache_size) {
  const auto multiple = [](const void* data, size_t of) { return reinterpret_cast<uintptr_t>(data) % of == 0; };
  return p.rotary_dim % 4 == 0 && p.cache.head_dim % 2 == 0 && (p.qkv_stride | p.q_token_stride | p.q_head_stride) % 2 == 0 &&
         multiple(p.qkv, 2 * size) && multiple(p.q, 2 * size) && multiple(p.q_norm, 2 * size) && multiple(p.k_norm, 2 * size) &&
         multiple(p.cache.k, 2 * cache_size) && multiple(p.cache.v, 2 * cache_size);
}

bool ReadRope(const RopeAppendArgs& a, const StepLayout& layout, RopeParams* p) {
  const KvLayer& kv = a.cache;
  const int tokens = layout.num_tokens;
  *p = {a.qkv.data, a.q.data, a.q_norm, a.k_norm, a.cos_sin, layout.positions, layout.slots, 0, a.q.stride[0], a.q.stride[1], kv, a.heads,
        a.rotary_dim, a.norm_epsilon};
  return IsModelDType(a.qkv.dtype) && a.q.dtype == a.qkv.dtype && IsModelDType(kv.dtype) && RowStride(a.qkv, &p->qkv_stride) &&
         a.q.rank == 3 && a.q.stride[2] == 1 && a.q.shape[0] >= tokens && a.q.shape[1] == a.heads && a.q.shape[2] == kv.head_dim &&
         kv.head_dim >= 1 && kv.head_dim <= kMaxHeadDim && kv.kv_heads >= 1 && kv.block_size >= 1 && a.rotary_dim >= 0 &&
         a.rotary_dim <= kv.head_dim && a.rotary_dim % 2 == 0 &&
         Columns(a.qkv) == (a.heads + 2 * static_cast<int64_t>(kv.kv_heads)) * kv.head_dim && Rows(a.qkv) >= tokens;
}

Code RopeAppend(Device* device, const RopeAppendArgs* args, const StepLayout* layout, Stream stream) {
  const KvLayer& kv = args->cache;
  const int tokens = layout->num_tokens;
  RopeParams p;
  if (!ReadRope(*args, *layout, &p)) {
    return device->Fail(kBadShape, "rope_append: %d tokens, %d heads, %d kv heads of %d, rotary %d; qkv [%lld, %lld]", tokens, args->heads,
                        kv.kv_heads, kv.head_dim, args->rotary_dim, static_cast<long long>(Rows(args->qkv)),
                        static_cast<long long>(Columns(args->qkv)));
  }
  if (tokens <= 0) return kOk;
  const cudaStream_t s = device->StreamOf(stream);
  if (args->qkv.dtype == kBF16) {
    kv.dtype == kBF16 ? LaunchHeads<bf16, bf16>(p, tokens, s) : LaunchHeads<bf16, float>(p, tokens, s);
  } else {
    kv.dtype == kBF16 ? LaunchHeads<float, bf16>(p, tokens, s) : LaunchHeads<float, float>(p, tokens, s);
  }
  return device->Launched("rope_append");
}

}  // namespace phalanx::kernels::cuda
