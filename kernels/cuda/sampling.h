// kernels/cuda/sampling.h: what the sampling kernels share on the host side. Arguments are checked before.
// Refuses to know: what a row asks for. Thread: the device's. Neighbours: sampling*.cu and logprobs.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
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

// SampleArgs as the kernels see them.
struct DrawParams {
  LogitRows logits;
  int64_t width;                // row stride of output_counts; masks and seen bits have ceil(width / 32) words
  const SamplingRow* options;   // [rows]
  const uint32_t* masks;
  const int32_t* bias_ids;
  const float* bias_values;
  const uint32_t* prompt_seen;
  int32_t* output_counts;
  int32_t* out_ids;             // [rows]
};

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

// Draws the rows with min-p, top-k or top-p; leaves the others alone.
void LaunchTruncated(Device* device, const DrawParams& params, int64_t rows, cudaStream_t stream);

// Log-softmax, rank and top entries of raw rows.
void LaunchReport(Device* device, const ReportParams& params, int64_t rows, cudaStream_t stream);

// How a row is shared by the CTAs of a cluster (device/team.cuh).
struct TeamShape {
  int ranks;           // CTAs of a team
  int teams;
  size_t shared_bytes; // for the parts of the row, 0 = they are in the workspace
  float* workspace;    // [teams * ranks, PartSize], null = they are in shared memory
};

// The shape for `rows` rows of `kernel`, which has CTAs of `threads`.
TeamShape ShapeOfTeams(Device* device, const void* kernel, int threads, int32_t vocab, int64_t rows);

// Launches clusters of CTAs; the kernel keeps the rule for launches that overlap (device.h). It takes `params`, the rows, and where the
// parts are.
template <class Params>
void LaunchTeams(void (*kernel)(Params, int64_t, float*), int threads, const TeamShape& shape, const Params& params, int64_t rows,
                 cudaStream_t stream) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = static_cast<unsigned>(shape.ranks);
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.teams * shape.ranks)), config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shape.shared_bytes, config.stream = stream;
  const int first = shape.ranks > 1 ? 0 : 1;  // no cluster where one CTA is enough, or all there can be
  config.attrs = attributes + first, config.numAttrs = static_cast<unsigned>((LaunchesOverlap() ? 2 : 1) - first);
  cudaLaunchKernelEx(&config, kernel, params, rows, shape.workspace);
}

}  // namespace phalanx::kernels::cuda
