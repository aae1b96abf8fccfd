// kernels/cuda/host_device.h: marks a pure function that the host and kernels both call.
// Refuses to know: CUDA, where there is none. Thread: any. Neighbours: gemm_config.h, attention_config.h.
#pragma once

#ifdef __CUDACC__
#define PHALANX_HOST_DEVICE __host__ __device__ inline
#else
#define PHALANX_HOST_DEVICE inline
#endif
