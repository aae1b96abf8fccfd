// rope_append: splits a fused qkv row, norms and rotates its heads, writes q out and k, v into the cache.
//
//   qkv      [tokens, (heads + 2 kv_heads) * head_dim]      model dtype   in: q heads, k heads, v heads
//   q        [tokens, heads, head_dim]                      model dtype   out
//   cache    [blocks, kv_heads, block_size, head_dim] x 2   bf16 or f32   out, at slots[token]
//   cos_sin  [positions, rotary_dim]                        f32           cosines, then sines, of rotary_dim / 2 angles
//
// Reads and writes each value of qkv once. One warp a head: a lane holds pairs (i, i + rotary_dim / 2) and the values past rotary_dim, so
// norm and rotation stay in registers. kN = 2 where every row is aligned to two values, which fills 128 bytes a load at head_dim 128.
#include "kernels/cuda/device.h"
#include "kernels/cuda/device/vec.cuh"
#include "kernels/cuda/device/warp.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kMaxHeadDim = 256;
constexpr int kWarps = 8;  // heads of a CTA

struct RopeParams {
  const void* qkv;         // [tokens, qkv_stride]
  void* q;                 // [tokens, heads, head_dim] at q_token_stride, q_head_stride
  const void* q_norm;      // [head_dim] or null
  const void* k_norm;      // [head_dim] or null
  const float* cos_sin;    // [positions, rotary_dim]
  const int32_t* positions;  // [tokens]
  const int32_t* slots;      // [tokens]
  int64_t qkv_stride, q_token_stride, q_head_stride;
  KvLayer cache;
  int heads, rotary_dim;
  float epsilon;
};

// A lane's part of a head, kN neighbours at a time: pair p is (first[p], second[p]), rest[p] is not rotated.
template <int kN>
struct Part {
  static constexpr int kPairs = kMaxHeadDim / 2 / kWarp / kN;
  static constexpr int kRest = kMaxHeadDim / kWarp / kN;
  float first[kPairs][kN], second[kPairs][kN], rest[kRest][kN];
};

// Calls `fn(values, index in the head)` for each pack of a lane.
template <int kN, class Fn>
__device__ __forceinline__ void ForPacks(Part<kN>& part, int half, int head_dim, int lane, Fn fn) {
#pragma unroll
  for (int p = 0; p < Part<kN>::kPairs; ++p) {
    const int at = (lane + p * kWarp) * kN;
    if (at >= half) continue;
    fn(part.first[p], at);
    fn(part.second[p], at + half);
  }
#pragma unroll
  for (int p = 0; p < Part<kN>::kRest; ++p) {
    const int at = 2 * half + (lane + p * kWarp) * kN;
    if (at < head_dim) fn(part.rest[p], at);
  }
}

template <class T, int kN>
__device__ __forceinline__ void NormHead(Part<kN>& part, int half, int head_dim, int lane, const T* gamma, float epsilon) {
  float squares = 0;
  ForPacks(part, half, head_dim, lane, [&](float* x, int) {
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += x[i] * x[i];
  });
  const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(head_dim) + epsilon);
  ForPacks(part, half, head_dim, lane, [&](float* x, int at) {
    const Pack<T, kN> g = LoadPack<T, kN>(gamma + at);
#pragma unroll
    for (int i = 0; i < kN; ++i) x[i] = Rounded<T>(Rounded<T>(x[i] * scale) * ToFloat(g.v[i]));
  });
}

template <int kN>
__device__ __forceinline__ void Rotate(Part<kN>& part, int half, int lane, const float* angles) {
#pragma unroll
  for (int p = 0; p < Part<kN>::kPairs; ++p) {
    const int at = (lane + p * kWarp) * kN;
    if (at >= half) continue;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float cosine = angles[at + i], sine = angles[half + at + i], a = part.first[p][i], b = part.second[p][i];
      part.first[p][i] = a * cosine - b * sine;
      part.second[p][i] = b * cosine + a * sine;
    }
  }
}

// Rounds to the model dtype T, then to what is stored.
template <class T, class To, int kN>
__device__ __forceinline__ void StoreHead(Part<kN>& part, int half, int head_dim, int lane, To* to) {
  ForPacks(part, half, head_dim, lane, [&](float* x, int at) {
    Pack<To, kN> pack;
#pragma unroll
    for (int i = 0; i < kN; ++i) pack.v[i] = FromFloat<To>(Rounded<T>(x[i]));
    StorePack(to + at, pack);
  });
}

// Grid: x = tokens, y = groups of kWarps heads.
template <class T, class Cache, int kN>
__global__ void __launch_bounds__(kWarps* kWarp) RopeAppendHeads(const RopeParams p) {
  const KvLayer& kv = p.cache;
  const int64_t token = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  if (head >= p.heads + 2 * kv.kv_heads) return;
  const bool is_q = head < p.heads, is_v = head >= p.heads + kv.kv_heads;
  const int32_t slot = p.slots[token];
  if (!is_q && (slot < 0 || slot >= static_cast<int64_t>(kv.num_blocks) * kv.block_size)) return;

  const int half = p.rotary_dim / 2, head_dim = kv.head_dim;
  const T* from = static_cast<const T*>(p.qkv) + token * p.qkv_stride + static_cast<int64_t>(head) * head_dim;
  Part<kN> part;
  ForPacks(part, half, head_dim, lane, [&](float* x, int at) {
    const Pack<T, kN> pack = LoadPack<T, kN>(from + at);
#pragma unroll
    for (int i = 0; i < kN; ++i) x[i] = ToFloat(pack.v[i]);
  });
  const T* gamma = static_cast<const T*>(is_q ? p.q_norm : is_v ? nullptr : p.k_norm);
  if (gamma != nullptr) NormHead<T, kN>(part, half, head_dim, lane, gamma, p.epsilon);
  if (!is_v) Rotate<kN>(part, half, lane, p.cos_sin + static_cast<int64_t>(p.positions[token]) * p.rotary_dim);
  if (is_q) {
    StoreHead<T>(part, half, head_dim, lane, static_cast<T*>(p.q) + token * p.q_token_stride + head * p.q_head_stride);
    return;
  }
  const int kv_head = is_v ? head - p.heads - kv.kv_heads : head - p.heads;
  const int64_t row = (static_cast<int64_t>(slot / kv.block_size) * kv.kv_heads + kv_head) * kv.block_size + slot % kv.block_size;
  StoreHead<T>(part, half, head_dim, lane, static_cast<Cache*>(is_v ? kv.v : kv.k) + row * head_dim);
}

// Whether two neighbours can be moved at once everywhere.
bool TakesPairs(const RopeParams& p, size_t size, size_t cache_size) {
  const auto multiple = [](const void* data, size_t of) { return reinterpret_cast<uintptr_t>(data) % of == 0; };
  return p.rotary_dim % 4 == 0 && p.cache.head_dim % 2 == 0 && (p.qkv_stride | p.q_token_stride | p.q_head_stride) % 2 == 0 &&
         multiple(p.qkv, 2 * size) && multiple(p.q, 2 * size) && multiple(p.q_norm, 2 * size) && multiple(p.k_norm, 2 * size) &&
         multiple(p.cache.k, 2 * cache_size) && multiple(p.cache.v, 2 * cache_size);
}

template <class T, class Cache>
void Launch(const RopeParams& p, int tokens, cudaStream_t stream) {
  const int heads = p.heads + 2 * p.cache.kv_heads;
  const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>((heads + kWarps - 1) / kWarps));
  if (TakesPairs(p, sizeof(T), sizeof(Cache))) {
    RopeAppendHeads<T, Cache, 2><<<grid, kWarps * kWarp, 0, stream>>>(p);
  } else {
    RopeAppendHeads<T, Cache, 1><<<grid, kWarps * kWarp, 0, stream>>>(p);
  }
}

}  // namespace

Code RopeAppend(Device* device, const RopeAppendArgs* args, const StepLayout* layout, Stream stream) {
  const KvLayer& kv = args->cache;
  const DType dtype = args->qkv.dtype;
  RopeParams p{args->qkv.data,     args->q.data,  args->q_norm, args->k_norm, args->cos_sin, layout->positions, layout->slots, 0,
               args->q.stride[0], args->q.stride[1], kv,         args->heads,  args->rotary_dim, args->norm_epsilon};
  const int tokens = layout->num_tokens;
  if (!IsModelDType(dtype) || args->q.dtype != dtype || !IsModelDType(kv.dtype) || !RowStride(args->qkv, &p.qkv_stride) ||
      args->q.rank != 3 || args->q.stride[2] != 1 || args->q.shape[0] < tokens || args->q.shape[1] != args->heads ||
      args->q.shape[2] != kv.head_dim || kv.head_dim < 1 || kv.head_dim > kMaxHeadDim || kv.kv_heads < 1 || kv.block_size < 1 ||
      args->rotary_dim < 0 || args->rotary_dim > kv.head_dim || args->rotary_dim % 2 != 0 ||
      Columns(args->qkv) != (args->heads + 2 * static_cast<int64_t>(kv.kv_heads)) * kv.head_dim || Rows(args->qkv) < tokens) {
    return device->Fail(kBadShape, "rope_append: %d tokens, %d heads, %d kv heads of %d, rotary %d; qkv [%lld, %lld]", tokens, args->heads,
                        kv.kv_heads, kv.head_dim, args->rotary_dim, static_cast<long long>(Rows(args->qkv)),
                        static_cast<long long>(Columns(args->qkv)));
  }
  if (tokens <= 0) return kOk;
  const cudaStream_t s = device->StreamOf(stream);
  if (dtype == kBF16 && kv.dtype == kBF16) {
    Launch<bf16, bf16>(p, tokens, s);
  } else if (dtype == kBF16) {
    Launch<bf16, float>(p, tokens, s);
  } else if (kv.dtype == kBF16) {
    Launch<float, bf16>(p, tokens, s);
  } else {
    Launch<float, float>(p, tokens, s);
  }
  return device->Launched("rope_append");
}

}  // namespace phalanx::kernels::cuda
