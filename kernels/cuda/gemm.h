// kernels/cuda/gemm.h: the kernels that gemm.cc launches for a linear layer. Arguments are checked before.
// Refuses to know: tensors, weights' layouts, errors. Thread: the device's. Neighbours: gemm.cc; gemv.cu, gemm_plain.cu and
// gemm_library.cc define them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/gemm_config.h"
#include "kernels/kernels.h"

namespace phalanx::kernels::cuda {

struct ProductArgs {
  const void* x;       // [m, k] at x_stride
  const void* weight;  // [n, k] dense
  const float* bias;   // [n] or null
  void* out;           // [m, n] at out_stride; [m, n / 2] with kEpilogueSiluMul
  int64_t m, n, k;
  int64_t x_stride, out_stride;  // elements
  DType x_dtype, weight_dtype, out_dtype;
  Epilogue epilogue;
  const void* norm_gamma;  // [k] of x's dtype: the product is of rms_norm(x) * gamma. LaunchStream alone; null elsewhere
  float norm_epsilon;
};

// bf16 x, weight and gamma, rows aligned to 16 bytes, k a multiple of 8, m <= kSmallRows; with a norm StreamTakesNorm.
void LaunchStream(const ProductArgs& args, const StreamConfig& config, cudaStream_t stream);

// Any dtype, any alignment. Rows: m <= kPlainRows.
void LaunchPlainRows(const ProductArgs& args, cudaStream_t stream);
void LaunchPlainTiles(const ProductArgs& args, cudaStream_t stream);

// out[i, j] = silu(product[i, 2 j] + bias[2 j]) * (product[i, 2 j + 1] + bias[2 j + 1]); product [rows, 2 n] dense, of out's dtype.
void LaunchSiluMulPairs(const void* product, const float* bias, void* out, int64_t out_stride, DType dtype, int64_t rows, int64_t n,
                        cudaStream_t stream);

// gemm_library.cc: bf16 x and weight through cuBLASLt, rows aligned to 16 bytes; the second one with kEpilogueSiluMul.
Code LibraryProduct(Device* device, const ProductArgs& args, cudaStream_t stream);
Code LibrarySiluMul(Device* device, const ProductArgs& args, cudaStream_t stream);
// cuBLASLt's version, for logs.
uint64_t LibraryVersion();

// f32 [n] -> bf16 [n].
void LaunchRound(const float* from, void* to, int64_t n, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda
