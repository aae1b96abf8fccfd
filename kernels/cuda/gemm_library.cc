// Products through cuBLASLt.
//
// A row-major out[m, n] = x[m, k] * weight[n, k]^T is the library's column-major C[n, m] = A^T B with A = weight [k, n], B = x [k, m]: its
// best supported form. Bias is its epilogue, in the dtype of out; the residual add is beta = 1. It has no silu * up: that product goes to a
// buffer in the dtype of out, part by part, and a small kernel finishes it.
//
// The algorithm for a shape is one that was measured on such a card before (gemm_cache.h), else the library's first choice. Measuring is
// asked for with PHALANX_CUDA_TUNE=1 and happens where a shape is first used outside a graph: some ten milliseconds each, which a server
// in service has not, so that it is a run of its own (`phalanx bench kernels`).
#include <cublasLt.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_cache.h"

namespace phalanx::kernels::cuda {

namespace {
constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr size_t kProductBytes = size_t{64} << 20;    // gate and up of one part of the rows
constexpr size_t kBiasBytes = size_t{1} << 20;        // a bias in bf16
}  // namespace

// Memory of its own, not the device's scratch: other operations keep counters there.
struct GemmState {
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  void* product = nullptr;
  void* bias = nullptr;
  std::map<LibraryKey, std::optional<cublasLtMatmulAlgo_t>> algorithms;  // nothing: the library has none for this key
  KnownAlgorithms measured;  // by this run and earlier ones
  std::string path, title;   // of the file that keeps them
  bool tune = false;
};

namespace {

// Above this many keys the choices are made anew: row counts come in buckets, so that only odd strides could reach it.
constexpr size_t kMostAlgorithms = 4096;

// What the library needs to know about one product, on the stack.
struct LibraryCall {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t weight, x, out;
};

cublasStatus_t Describe(const LibraryKey& key, int64_t m, const void* bias, LibraryCall* call) {
  const cudaDataType_t out_type = key.out == kF32 ? CUDA_R_32F : CUDA_R_16BF;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  cublasStatus_t status = cublasLtMatmulDescInit(&call->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    if (status == CUBLAS_STATUS_SUCCESS) status = cublasLtMatmulDescSetAttribute(&call->operation, attribute, &value, sizeof(value));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
  if (key.bias) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  const auto layout = [&](cublasLtMatrixLayoutOpaque_t* to, cudaDataType_t type, int64_t rows, int64_t columns, int64_t stride) {
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = cublasLtMatrixLayoutInit(to, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), stride);
    }
  };
  layout(&call->weight, CUDA_R_16BF, key.k, key.n, key.k);
  layout(&call->x, CUDA_R_16BF, key.k, m, key.x_stride);
  layout(&call->out, out_type, key.n, m, key.out_stride);
  return status;
}

constexpr int kMostCandidates = 16;

// The library's choices for a key, best first by its own estimate. In-place and output-type reductions would round partial sums to bf16:
// not allowed.
std::vector<cublasLtMatmulAlgo_t> AskLibrary(const GemmState& gemm, const LibraryKey& key, const void* bias, int most) {
  LibraryCall call;
  cublasLtMatmulPreferenceOpaque_t preference;
  if (Describe(key, key.m, bias, &call) != CUBLAS_STATUS_SUCCESS) return {};
  cublasStatus_t status = cublasLtMatmulPreferenceInit(&preference);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    if (status == CUBLAS_STATUS_SUCCESS) status = cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value));
  };
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  const uint64_t workspace_bytes = kWorkspaceBytes;
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.weight_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.x_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.out_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.out_alignment);
  if (status != CUBLAS_STATUS_SUCCESS) return {};
  cublasLtMatmulHeuristicResult_t results[kMostCandidates]{};
  int found = 0;
  status = cublasLtMatmulAlgoGetHeuristic(gemm.handle, &call.operation, &call.weight, &call.x, &call.out, &call.out, &preference, most,
                                          results, &found);
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < found; ++i) {
    if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(results[i].algo);
  }
  return algorithms;
}

cublasStatus_t RunLibrary(const GemmState& gemm, const LibraryKey& key, const cublasLtMatmulAlgo_t& algorithm, const ProductArgs& a,
                          const void* bias, cudaStream_t stream) {
  LibraryCall call;
  if (const cublasStatus_t status = Describe(key, a.m, bias, &call); status != CUBLAS_STATUS_SUCCESS) return status;
  const float alpha = 1, beta = key.add ? 1 : 0;
  return cublasLtMatmul(gemm.handle, &call.operation, &alpha, a.weight, &call.weight, a.x, &call.x, &beta, a.out, &call.out, a.out,
                        &call.out, &algorithm, gemm.workspace, kWorkspaceBytes, stream);
}

// Leaves nothing else in the cache than the product buffer: reads it, writes next to nothing (written lines would have to go to memory
// during the call that follows).
void EvictCache(const GemmState& gemm, cudaStream_t stream) {
  ProductArgs a{};
  a.m = 1, a.k = 2048, a.n = static_cast<int64_t>(kProductBytes) / (a.k * 2);
  a.x = a.weight = gemm.product, a.out = gemm.workspace;
  a.x_stride = a.k, a.out_stride = a.n;
  a.x_dtype = a.weight_dtype = a.out_dtype = kBF16;
  LaunchPlainRows(a, stream);
}

// Microseconds of one call over weights that are not in the cache, the median of seven; negative if the algorithm fails. Writes the
// product buffer alone.
float TimeOnce(const GemmState& gemm, const LibraryKey& key, const cublasLtMatmulAlgo_t& algorithm, ProductArgs a, const void* bias,
               cudaStream_t stream, const cudaEvent_t (&events)[2]) {
  a.out = gemm.product;
  std::vector<float> times;
  for (int i = 0; i < 8; ++i) {  // the first loads the kernel
    float ms = 0;
    EvictCache(gemm, stream);
    cudaEventRecord(events[0], stream);
    if (RunLibrary(gemm, key, algorithm, a, bias, stream) != CUBLAS_STATUS_SUCCESS) return -1;
    cudaEventRecord(events[1], stream);
    if (cudaEventSynchronize(events[1]) != cudaSuccess || cudaEventElapsedTime(&ms, events[0], events[1]) != cudaSuccess) return -1;
    if (i > 0) times.push_back(ms * 1000);
  }
  std::nth_element(times.begin(), times.begin() + 3, times.end());
  return times[3];
}

// Measures the library's choices for a key on these operands and keeps the best, on disk too: the first unless another is clearly better.
void Tune(GemmState* gemm, const LibraryKey& key, const ProductArgs& a, const void* bias, cudaStream_t stream) {
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  const size_t bytes = static_cast<size_t>(a.m * a.out_stride) * DTypeBytes(a.out_dtype);
  if (cudaStreamIsCapturing(stream, &capturing) != cudaSuccess || capturing != cudaStreamCaptureStatusNone) return;
  if (bytes > kProductBytes || a.x == gemm->product) return;
  cudaEvent_t events[2] = {nullptr, nullptr};
  if (cudaEventCreate(&events[0]) == cudaSuccess && cudaEventCreate(&events[1]) == cudaSuccess) {
    float best = -1;
    for (const cublasLtMatmulAlgo_t& algorithm : AskLibrary(*gemm, key, bias, kMostCandidates)) {
      const float us = TimeOnce(*gemm, key, algorithm, a, bias, stream, events);
      if (us < 0 || (best >= 0 && us >= 0.97f * best)) continue;
      best = us;
      std::memcpy(gemm->measured[key].data(), &algorithm, sizeof(algorithm));
    }
    if (best >= 0) WriteAlgorithms(gemm->path, gemm->title, gemm->measured);
  }
  for (cudaEvent_t event : events) {
    if (event != nullptr) cudaEventDestroy(event);
  }
}

// A measured algorithm, if there is one that the library takes for this key.
std::optional<cublasLtMatmulAlgo_t> Measured(const GemmState& gemm, const LibraryKey& key, const void* bias) {
  static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(AlgorithmBits));
  const auto known = gemm.measured.find(key);
  LibraryCall call;
  if (known == gemm.measured.end() || Describe(key, key.m, bias, &call) != CUBLAS_STATUS_SUCCESS) return std::nullopt;
  cublasLtMatmulAlgo_t algorithm;
  std::memcpy(&algorithm, known->second.data(), sizeof(algorithm));
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(gemm.handle, &call.operation, &call.weight, &call.x, &call.out, &call.out,
                                                        &algorithm, &result);
  if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > kWorkspaceBytes) return std::nullopt;
  return algorithm;
}

const std::optional<cublasLtMatmulAlgo_t>& AlgorithmFor(GemmState* gemm, const LibraryKey& key, const ProductArgs& a, const void* bias,
                                                        cudaStream_t stream) {
  if (const auto known = gemm->algorithms.find(key); known != gemm->algorithms.end()) return known->second;
  if (gemm->algorithms.size() >= kMostAlgorithms) gemm->algorithms.clear();
  if (gemm->tune && !gemm->measured.contains(key)) Tune(gemm, key, a, bias, stream);
  std::optional<cublasLtMatmulAlgo_t> algorithm = Measured(*gemm, key, bias);
  if (!algorithm.has_value()) {
    const std::vector<cublasLtMatmulAlgo_t> first = AskLibrary(*gemm, key, bias, 1);
    if (!first.empty()) algorithm = first.front();
  }
  return gemm->algorithms.emplace(key, algorithm).first->second;
}

}  // namespace

// out = x * weight^T (+ bias) (+ out) by the library; the plain kernel if it has no algorithm for the shape.
Code LibraryProduct(Device* device, const ProductArgs& a, cudaStream_t stream) {
  GemmState* gemm = device->gemm;
  const void* bias = a.bias;
  if (a.bias != nullptr && a.out_dtype == kBF16) {
    if (static_cast<size_t>(a.n) * 2 > kBiasBytes) {
      LaunchPlainTiles(a, stream);
      return device->Launched("linear");
    }
    LaunchRound(a.bias, gemm->bias, a.n, stream);
    bias = gemm->bias;
  }
  const auto alignment = [](const void* data, int64_t row_bytes) {
    return AlignmentOf(reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(row_bytes));
  };
  LibraryKey key{};
  key.m = RowBucket(a.m), key.n = a.n, key.k = a.k;
  key.x_stride = a.x_stride, key.out_stride = a.out_stride;
  key.out = a.out_dtype;
  key.bias = bias != nullptr, key.add = a.epilogue == kEpilogueAdd;
  key.x_alignment = alignment(a.x, a.x_stride * 2);
  key.weight_alignment = alignment(a.weight, a.k * 2);
  key.out_alignment = alignment(a.out, a.out_stride * static_cast<int64_t>(DTypeBytes(a.out_dtype)));
  for (const int64_t m : {key.m, a.m}) {  // the bucket's choice, else one for this very shape
    key.m = m;
    const std::optional<cublasLtMatmulAlgo_t>& algorithm = AlgorithmFor(gemm, key, a, bias, stream);
    if (!algorithm.has_value()) continue;
    const cublasStatus_t status = RunLibrary(*gemm, key, *algorithm, a, bias, stream);
    if (status == CUBLAS_STATUS_SUCCESS) return device->Launched("linear");
    if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE) {
      return device->Fail(kDeviceError, "linear: cublasLtMatmul, m %lld, n %lld, k %lld: %s", static_cast<long long>(a.m),
                          static_cast<long long>(a.n), static_cast<long long>(a.k), cublasLtGetStatusString(status));
    }
  }
  LaunchPlainTiles(a, stream);
  return device->Launched("linear");
}

// silu * up of interleaved rows, as many rows of x at a time as the buffer takes.
Code LibrarySiluMul(Device* device, const ProductArgs& a, cudaStream_t stream) {
  const int64_t out_bytes = static_cast<int64_t>(DTypeBytes(a.out_dtype));
  const int64_t rows = ChunkRows(a.m, a.n * out_bytes, static_cast<int64_t>(kProductBytes));
  if (rows == 0) {
    LaunchPlainTiles(a, stream);
    return device->Launched("linear");
  }
  for (int64_t row = 0; row < a.m; row += rows) {
    ProductArgs part = a;
    part.m = std::min(rows, a.m - row);
    part.x = static_cast<const char*>(a.x) + row * a.x_stride * 2;
    part.bias = nullptr;
    part.out = device->gemm->product;
    part.out_stride = a.n;
    part.epilogue = kEpilogueNone;
    if (const Code code = LibraryProduct(device, part, stream); code != kOk) return code;
    void* out = static_cast<char*>(a.out) + row * a.out_stride * out_bytes;
    LaunchSiluMulPairs(part.out, a.bias, out, a.out_stride, a.out_dtype, part.m, a.n / 2, stream);
  }
  return device->Launched("linear");
}

Code GemmCreate(Device* device) {
  device->gemm = new (std::nothrow) GemmState;
  if (device->gemm == nullptr) return device->Fail(kOutOfMemory, "gemm: no memory");
  GemmState* gemm = device->gemm;
  if (const cublasStatus_t status = cublasLtCreate(&gemm->handle); status != CUBLAS_STATUS_SUCCESS) {
    return device->Fail(kDeviceError, "cublasLtCreate: %s", cublasLtGetStatusString(status));
  }
  for (auto [to, bytes] : {std::pair{&gemm->workspace, kWorkspaceBytes}, {&gemm->product, kProductBytes}, {&gemm->bias, kBiasBytes}}) {
    if (const Code code = device->Check(cudaMalloc(to, bytes), "gemm: workspace"); code != kOk) return code;
  }
  cudaDeviceProp properties;
  if (const Code code = device->Check(cudaGetDeviceProperties(&properties, device->index), "gemm: properties"); code != kOk) return code;
  gemm->path = AlgorithmsPath(LibraryVersion(), properties.name);
  gemm->title = AlgorithmsTitle(LibraryVersion(), properties.name);
  gemm->measured = ReadAlgorithms(gemm->path, gemm->title);
  const char* tune = std::getenv("PHALANX_CUDA_TUNE");
  gemm->tune = tune != nullptr && std::strcmp(tune, "1") == 0;
  return kOk;
}

void GemmDestroy(Device* device) {
  GemmState* gemm = device->gemm;
  if (gemm == nullptr) return;
  for (void* memory : {gemm->workspace, gemm->product, gemm->bias}) cudaFree(memory);
  if (gemm->handle != nullptr) cublasLtDestroy(gemm->handle);
  delete gemm;
  device->gemm = nullptr;
}

uint64_t LibraryVersion() { return cublasLtGetVersion(); }

}  // namespace phalanx::kernels::cuda
