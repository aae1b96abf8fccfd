// kernels/cuda/tensor_map.h: the driver's encoder of tensor maps, found at run time: a machine without a driver has no libcuda.
// Refuses to know: what is mapped. Thread: any. Neighbours: attention_prefill_wgmma.cu, gemm_tiles.cc.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace phalanx::kernels::cuda {

using TensorMapEncoder = decltype(&cuTensorMapEncodeTiled);

// Null if the driver has none.
inline TensorMapEncoder FindTensorMapEncoder() {
  static const TensorMapEncoder encoder = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    if (status != cudaSuccess || result != cudaDriverEntryPointSuccess) found = nullptr;
    return reinterpret_cast<TensorMapEncoder>(found);
  }();
  return encoder;
}

}  // namespace phalanx::kernels::cuda
