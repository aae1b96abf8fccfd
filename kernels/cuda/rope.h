// kernels/cuda/rope.h: rope_append's arguments as its kernels take them; attention with rope in it takes the same.
// Refuses to know: errors, grids. Thread: the device's. Neighbours: rope.cu defines the functions; attention.cc, attention_decode.cu.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace phalanx::kernels::cuda {

// Strides in elements.
struct RopeParams {
  const void* qkv;           // [tokens, qkv_stride]
  void* q;                   // [tokens, heads, head_dim] at q_token_stride, q_head_stride
  const void* q_norm;        // [head_dim] or null
  const void* k_norm;        // [head_dim] or null
  const float* cos_sin;      // [positions, rotary_dim]
  const int32_t* positions;  // [tokens]
  const int32_t* slots;      // [tokens]
  int64_t qkv_stride, q_token_stride, q_head_stride;
  KvLayer cache;
  int heads, rotary_dim;
  float epsilon;
};

// False if shapes, strides or dtypes are not those of the contract.
bool ReadRope(const RopeAppendArgs& args, const StepLayout& layout, RopeParams* params);

// Whether two neighbours can be moved at once everywhere. `size`, `cache_size`: bytes of a value.
bool TakesPairs(const RopeParams& params, size_t size, size_t cache_size);

}  // namespace phalanx::kernels::cuda
