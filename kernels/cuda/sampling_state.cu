// sampling_state_set: clears one row of the penalty tables and counts ids into it.
//
//   prompt_seen    [state rows, ceil(width / 32)]  bits
//   output_counts  [state rows, width]
//   ids            host memory, brought over in pieces through the workspace
//
// Once a request, not a step: it copies from the host and is never captured.
#include <algorithm>

#include "kernels/cuda/device.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void MarkSeen(const int32_t* ids, int64_t n, int32_t width, uint32_t* seen) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n && ids[i] >= 0 && ids[i] < width) atomicOr(seen + ids[i] / 32, 1u << (ids[i] % 32));
}

__global__ void CountIds(const int32_t* ids, int64_t n, int32_t width, int32_t* counts) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n && ids[i] >= 0 && ids[i] < width) atomicAdd(counts + ids[i], 1);
}

// Calls `launch(device ids, how many, CTAs)` for pieces of `ids` that fit the workspace.
template <class Launch>
Code ForPieces(Device* device, const int32_t* ids, int64_t n, cudaStream_t stream, Launch launch) {
  const int64_t most = static_cast<int64_t>(WorkspaceBytes(device) / sizeof(int32_t));
  int32_t* const piece = static_cast<int32_t*>(Workspace(device));
  for (int64_t at = 0; at < n; at += most) {
    const int64_t count = std::min(most, n - at);
    const size_t bytes = static_cast<size_t>(count) * sizeof(int32_t);
    const Code code = device->Check(cudaMemcpyAsync(piece, ids + at, bytes, cudaMemcpyHostToDevice, stream), "sampling_state_set");
    if (code != kOk) return code;
    launch(piece, count, static_cast<unsigned>((count + kThreads - 1) / kThreads));
  }
  return kOk;
}

// A copy from pageable memory has left it when the call returns; one from pinned memory has not.
bool IsPinned(const void* memory) {
  cudaPointerAttributes attributes{};
  return memory != nullptr && cudaPointerGetAttributes(&attributes, memory) == cudaSuccess && attributes.type != cudaMemoryTypeUnregistered;
}

}  // namespace

Code SamplingStateSet(Device* device, int32_t width, uint32_t* prompt_seen, int32_t* output_counts, int32_t state,
                      const int32_t* prompt_ids, int32_t num_prompt, const int32_t* output_ids, int32_t num_output, Stream stream) {
  if (width < 1 || state < 0 || prompt_seen == nullptr || output_counts == nullptr || num_prompt < 0 || num_output < 0) {
    return device->Fail(kBadShape, "sampling_state_set: width %d, state %d, %d prompt ids, %d output ids", width, state, num_prompt,
                        num_output);
  }
  const cudaStream_t s = device->StreamOf(stream);
  const int64_t words = (static_cast<int64_t>(width) + 31) / 32;
  uint32_t* seen = prompt_seen + state * words;
  int32_t* counts = output_counts + static_cast<int64_t>(state) * width;
  Code code = device->Check(cudaMemsetAsync(seen, 0, static_cast<size_t>(words) * sizeof(uint32_t), s), "sampling_state_set");
  if (code != kOk) return code;
  code = device->Check(cudaMemsetAsync(counts, 0, static_cast<size_t>(width) * sizeof(int32_t), s), "sampling_state_set");
  if (code != kOk) return code;
  code = ForPieces(device, prompt_ids, num_prompt, s,
                   [&](const int32_t* ids, int64_t n, unsigned ctas) { MarkSeen<<<ctas, kThreads, 0, s>>>(ids, n, width, seen); });
  if (code != kOk) return code;
  code = ForPieces(device, output_ids, num_output, s,
                   [&](const int32_t* ids, int64_t n, unsigned ctas) { CountIds<<<ctas, kThreads, 0, s>>>(ids, n, width, counts); });
  if (code != kOk) return code;
  if (IsPinned(prompt_ids) || IsPinned(output_ids)) {
    code = device->Check(cudaStreamSynchronize(s), "sampling_state_set");
    if (code != kOk) return code;
  }
  return device->Launched("sampling_state_set");
}

}  // namespace phalanx::kernels::cuda
