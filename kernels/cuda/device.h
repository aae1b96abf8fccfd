// kernels/cuda/device.h: the CUDA device: its stream, its libraries' handles, its scratch memory; and the operations of the table.
// Refuses to know: models, requests. Thread: one caller at a time. Neighbours: table.cc fills the table with these functions.
//
// Every operation checks its arguments on the host, launches on `stream` (null = the device's own) and returns without waiting. Nothing
// here allocates, frees or synchronises after `create`, so that every operation can be captured in a graph. A failed launch is
// kDeviceError and sticky.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#include "kernels/kernels.h"

struct cublasLtContext;

namespace phalanx::kernels::cuda {

struct GemmState;  // gemm.cc: the cuBLASLt handle, its workspace and the algorithms chosen so far

}  // namespace phalanx::kernels::cuda

namespace phalanx::kernels {

struct Device {
  int index = 0;
  int sm_count = 0;
  int capability = 0;               // 90 = 9.0
  int shared_bytes = 0;             // most shared memory of a CTA
  cudaStream_t stream = nullptr;    // what a null Stream means
  cuda::GemmState* gemm = nullptr;
  // Scratch of the operations of one stream, taken at create: split attention, split products, sampling. Zeroed once; kernels that use
  // counters in it leave them at zero.
  void* scratch = nullptr;
  uint64_t scratch_bytes = 0;
  char error[256] = "no error";

  cudaStream_t StreamOf(Stream s) const { return s == nullptr ? stream : reinterpret_cast<cudaStream_t>(s); }

  // Keeps the reason and returns the code.
  Code Fail(Code code, const char* format, ...) __attribute__((format(printf, 3, 4))) {
    va_list list;
    va_start(list, format);
    std::vsnprintf(error, sizeof(error), format, list);
    va_end(list);
    return code;
  }

  // kOk, or kDeviceError with CUDA's own words. `what` names the operation.
  Code Check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return kOk;
    return Fail(status == cudaErrorMemoryAllocation ? kOutOfMemory : kDeviceError, "%s: %s", what, cudaGetErrorString(status));
  }
  // After a launch.
  Code Launched(const char* what) { return Check(cudaPeekAtLastError(), what); }
};

}  // namespace phalanx::kernels

namespace phalanx::kernels::cuda {

// ---- launches that overlap ------------------------------------------------------------------------------------------
//
// Programmatic dependent launch (compute capability 9.0 and later): a kernel may start while the one before it in the stream still runs,
// as soon as all CTAs of that one have called `LetNextStart` (device/chain.cuh) or have ended. What a kernel does before it calls
// `WaitForPrevious` overlaps with its predecessors; that call returns when the previous kernel has ended and its writes are visible.
//
// The rule for every kernel that is launched with `Launch`:
//   1. Each CTA calls WaitForPrevious once, on every path, before it reads what a kernel may have written and before it writes anything.
//      So a kernel that has ended waited for the one before it, and that one for its own: behind the call all earlier kernels are over,
//      not only the last one, and nothing that they still read can be overwritten.
//   2. Two kinds of kernels. A *gate* calls WaitForPrevious first and LetNextStart after it: when the next kernel starts, everything
//      before the gate is over. A *prefetcher* (gemv.cu, attention_decode.cu with rope) reads ahead before it waits, and may let the next
//      one start before that too: it reads only what no kernel since the last gate writes, which is weights, the step's layout, and rows
//      of the KV cache that earlier steps wrote. Each step begins with a gate (embedding).
//   3. A kernel launched in the ordinary way, a copy, or the border of a graph waits for all before it; nothing need be known of it.
// Start early enough that the next kernel's CTAs find room beside the running ones; they are never started before all of these run, so
// that waiting ones cannot keep them out.

// Whether launches may overlap: the device can, and PHALANX_CUDA_PDL is not 0. Asked once, of the device that is current then.
inline bool LaunchesOverlap() {
  static const bool overlap = [] {
    const char* wish = std::getenv("PHALANX_CUDA_PDL");
    if (wish != nullptr && std::strcmp(wish, "0") == 0) return false;
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
  }();
  return overlap;
}

// Launches a kernel that keeps the rule above. A failure is found by Device::Launched, as after <<<>>>.
template <class... Parameters, class... Arguments>
void Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  std::tuple<Parameters...> values{static_cast<Parameters>(std::forward<Arguments>(arguments))...};
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = LaunchesOverlap() ? 1 : 0;
  std::apply([&](auto&... value) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
    cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers);
  }, values);
}

// Lets a CTA of `kernel`, which has no static shared memory, have all that the current device gives, and wants as much of the SM's memory
// as possible to be shared memory. The limit is the same at every call, so that a launch in a graph never meets a lower one. An SM changes
// that split only when it is empty: kernels that are to run beside each other must want the same, or the next one's CTAs crowd on the few
// SMs whose split suits them (measured on an H100: 132 CTAs on 73 SMs).
inline void WantSharedMemory(const void* kernel) {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

// ---------------------------------------------------------------------------------------------------------------------

constexpr uint64_t kScratchBytes = uint64_t{64} << 20;
// The scratch begins with counters: they are zero between operations, and nothing else is ever written there. What follows is the
// workspace: an operation finds anything in it and may leave anything.
constexpr uint64_t kCounterBytes = uint64_t{1} << 20;
inline void* Counters(Device* device) { return device->scratch; }
inline void* Workspace(Device* device) { return static_cast<char*>(device->scratch) + kCounterBytes; }
inline uint64_t WorkspaceBytes(const Device* device) { return device->scratch_bytes - kCounterBytes; }

inline bool IsModelDType(DType dtype) { return dtype == kF32 || dtype == kBF16; }
inline int64_t Rows(const Tensor& t) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < t.rank; ++i) rows *= t.shape[i];
  return rows;
}
inline int64_t Columns(const Tensor& t) { return t.rank < 1 ? 0 : t.shape[t.rank - 1]; }

// The leading dimensions of a tensor as one row dimension with one stride; false if its strides do not allow that.
inline bool RowStride(const Tensor& t, int64_t* stride) {
  if (t.rank < 1 || t.rank > kMaxRank || t.stride[t.rank - 1] != 1) return false;
  *stride = t.rank == 1 ? t.shape[0] : t.stride[t.rank - 2];
  for (int i = t.rank - 3; i >= 0; --i) {
    if (t.shape[i] > 1 && t.stride[i] != t.stride[i + 1] * t.shape[i + 1]) return false;
  }
  return true;
}

// gemm.cc
Code GemmCreate(Device* device);
void GemmDestroy(Device* device);
uint64_t PackedBytes(Device* device, int64_t n, int64_t k, DType dtype);
Code PackWeight(Device* device, Weight* weight, const void* rows, void* to, Stream stream);
Code Linear(Device* device, const LinearArgs* args, Stream stream);
// pointwise.cu: an error if this plug-in holds no code for the current device.
cudaError_t ProbeCode();
// pointwise.cu, norm.cu, rope.cu
Code Embedding(Device* device, const Weight* weight, const int32_t* ids, Tensor out, Stream stream);
Code GatherRows(Device* device, Tensor x, const int32_t* rows, Tensor out, Stream stream);
Code TakeIds(Device* device, int32_t* ids, const int32_t* from, const int32_t* taken, int32_t count, Stream stream);
Code SiluMul(Device* device, Tensor gate_up, Tensor out, Stream stream);
Code RmsNorm(Device* device, Tensor x, const void* gamma, float epsilon, Tensor out, Stream stream);
Code AddRmsNorm(Device* device, Tensor residual, Tensor x, const void* gamma, float epsilon, Tensor out, Stream stream);
Code RopeAppend(Device* device, const RopeAppendArgs* args, const StepLayout* layout, Stream stream);
// attention.cc chooses between attention_decode.cu and attention_prefill.cu
Code Attention(Device* device, const AttentionArgs* args, const StepLayout* layout, Stream stream);
// One kernel where the fast decode kernel applies, else RopeAppend and Attention.
Code RopeAttention(Device* device, const RopeAppendArgs* rope, const AttentionArgs* attention, const StepLayout* layout, Stream stream);
// sampling.cu, logprobs.cu
Code SamplingStateSet(Device* device, int32_t width, uint32_t* prompt_seen, int32_t* output_counts, int32_t state,
                      const int32_t* prompt_ids, int32_t num_prompt, const int32_t* output_ids, int32_t num_output, Stream stream);
Code Sample(Device* device, const SampleArgs* args, Stream stream);
Code Logprobs(Device* device, const LogprobArgs* args, Stream stream);

}  // namespace phalanx::kernels::cuda
