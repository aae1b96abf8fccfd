// kernels/cuda/sampling.h: what the sampling kernels share on the host side. Arguments are checked before.
// Refuses to know: options. Thread: the device's. Neighbours: sampling.cu and logprobs.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/device.h"

namespace phalanx::kernels::cuda {

// Rows of logits on the device.
struct LogitRows {
  const float* data;  // [rows, vocab] at stride
  int64_t stride;     // elements
  int32_t vocab;
  bool aligned;       // every row starts at a multiple of 16 bytes
};

// kBadShape unless they are rows of f32 that the kernels take.
Code CheckLogits(Device* device, const char* what, const Tensor& logits, int32_t vocab, LogitRows* out);

struct ReportParams {
  LogitRows logits;
  const int32_t* ids;           // [rows]; outside [0, vocab): there is none
  const SamplingRow* options;   // [rows]: num_logprobs from here; a row with -1 is left alone; or null:
  const int32_t* num_logprobs;  // [rows]
  float* logprobs;              // [rows]
  int32_t* ranks;               // [rows] or null
  int32_t* top_ids;             // [rows, kMaxTopLogprobs] or null
  float* top_logprobs;
};

// Log-softmax, rank and top entries of raw rows.
void LaunchReport(const ReportParams& params, int64_t rows, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda
