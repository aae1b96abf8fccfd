// kernels/reference/reference.h: the twin: every operation written the slow and plain way, to compare others with.
// Refuses to know: speed, threads, instruction sets, packed layouts. It shares no code with the back ends it judges.
// Thread: the caller's alone. Sums are taken in double, rounded where the contract says.
// Neighbours: kernels/ops_test.cc compares any table with this one; nothing in a product links it.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/kernels.h"

namespace phalanx::kernels::reference {

// bf16 is the upper half of an f32; rounding is to nearest, ties to even; NaN stays NaN.
inline float Bf16ToFloat(uint16_t h) {
  uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t FloatToBf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (std::isnan(f)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float Load(const void* data, DType dtype, int64_t i) {
  return dtype == kF32 ? static_cast<const float*>(data)[i] : Bf16ToFloat(static_cast<const uint16_t*>(data)[i]);
}

inline void Store(void* data, DType dtype, int64_t i, float value) {
  if (dtype == kF32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<uint16_t*>(data)[i] = FloatToBf16(value);
  }
}

inline float RoundTo(DType dtype, float value) { return dtype == kF32 ? value : Bf16ToFloat(FloatToBf16(value)); }
inline bool IsModelDType(DType dtype) { return dtype == kF32 || dtype == kBF16; }
inline double Silu(double x) { return x / (1.0 + std::exp(-x)); }

// All leading dimensions as rows. Strides of the leading dimensions may leave gaps only in the last of them.
inline int64_t Rows(const Tensor& t) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < t.rank; ++i) rows *= t.shape[i];
  return rows;
}
inline int64_t Columns(const Tensor& t) { return t.shape[t.rank - 1]; }
// Element index of row `row`, by walking the leading dimensions from the last.
inline int64_t RowOffset(const Tensor& t, int64_t row) {
  int64_t offset = 0;
  for (int i = t.rank - 2; i >= 0; --i) {
    offset += (row % t.shape[i]) * t.stride[i];
    row /= t.shape[i];
  }
  return offset;
}

Code Embedding(Device*, const Weight* weight, const int32_t* ids, Tensor out, Stream);
Code RmsNorm(Device*, Tensor x, const void* gamma, float epsilon, Tensor out, Stream);
Code AddRmsNorm(Device*, Tensor residual, Tensor x, const void* gamma, float epsilon, Tensor out, Stream);
Code Linear(Device*, const LinearArgs* args, Stream);
Code SiluMul(Device*, Tensor gate_up, Tensor out, Stream);
Code GatherRows(Device*, Tensor x, const int32_t* rows, Tensor out, Stream);
Code TakeIds(Device*, int32_t* ids, const int32_t* from, const int32_t* taken, int32_t count, Stream);
Code RopeAppend(Device*, const RopeAppendArgs* args, const StepLayout* layout, Stream);
Code Attention(Device*, const AttentionArgs* args, const StepLayout* layout, Stream);
Code SamplingStateSet(Device*, int32_t width, uint32_t* prompt_seen, int32_t* output_counts, int32_t state,
                      const int32_t* prompt_ids, int32_t num_prompt, const int32_t* output_ids, int32_t num_output, Stream);
Code Sample(Device*, const SampleArgs* args, Stream);
Code Logprobs(Device*, const LogprobArgs* args, Stream);

}  // namespace phalanx::kernels::reference
