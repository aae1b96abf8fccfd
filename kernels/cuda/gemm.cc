// Linear layers: weights as they are, the choice of a kernel, and products through cuBLASLt.
//
// A row-major out[m, n] = x[m, k] * weight[n, k]^T is the library's column-major C[n, m] = A^T B with A = weight [k, n], B = x [k, m]: its
// best supported form. Bias is its epilogue, in the dtype of out; the residual add is beta = 1. It has no silu * up: that product goes to a
// buffer in the dtype of out, part by part, and a small kernel finishes it.
#include "kernels/cuda/gemm.h"

#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <new>
#include <optional>
#include <utility>

#include "kernels/cuda/device.h"

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

// The library's first choice for a key. In-place and output-type reductions would round partial sums to bf16: not allowed.
std::optional<cublasLtMatmulAlgo_t> AskLibrary(const GemmState& gemm, const LibraryKey& key, const void* bias) {
  LibraryCall call;
  cublasLtMatmulPreferenceOpaque_t preference;
  if (Describe(key, key.m, bias, &call) != CUBLAS_STATUS_SUCCESS) return std::nullopt;
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
  if (status != CUBLAS_STATUS_SUCCESS) return std::nullopt;
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  status = cublasLtMatmulAlgoGetHeuristic(gemm.handle, &call.operation, &call.weight, &call.x, &call.out, &call.out, &preference, 1,
                                          &result, &found);
  if (status != CUBLAS_STATUS_SUCCESS || found < 1 || result.state != CUBLAS_STATUS_SUCCESS) return std::nullopt;
  return result.algo;
}

const std::optional<cublasLtMatmulAlgo_t>& AlgorithmFor(GemmState* gemm, const LibraryKey& key, const void* bias) {
  if (const auto known = gemm->algorithms.find(key); known != gemm->algorithms.end()) return known->second;
  if (gemm->algorithms.size() >= kMostAlgorithms) gemm->algorithms.clear();
  return gemm->algorithms.emplace(key, AskLibrary(*gemm, key, bias)).first->second;
}

cublasStatus_t RunLibrary(const GemmState& gemm, const LibraryKey& key, const cublasLtMatmulAlgo_t& algorithm, const ProductArgs& a,
                          const void* bias, cudaStream_t stream) {
  LibraryCall call;
  if (const cublasStatus_t status = Describe(key, a.m, bias, &call); status != CUBLAS_STATUS_SUCCESS) return status;
  const float alpha = 1, beta = key.add ? 1 : 0;
  return cublasLtMatmul(gemm.handle, &call.operation, &alpha, a.weight, &call.weight, a.x, &call.x, &beta, a.out, &call.out, a.out,
                        &call.out, &algorithm, gemm.workspace, kWorkspaceBytes, stream);
}

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
    const std::optional<cublasLtMatmulAlgo_t>& algorithm = AlgorithmFor(gemm, key, bias);
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

bool IsAligned(const void* data, int64_t row_bytes) {
  return (reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(row_bytes)) % 16 == 0;
}

// Checks what the contract asks for and fills `p`.
bool Read(const LinearArgs& a, ProductArgs* p) {
  const Weight& w = a.weight;
  const bool silu = a.epilogue == kEpilogueSiluMul;
  if (!IsModelDType(a.x.dtype) || !IsModelDType(w.dtype) || !IsModelDType(a.out.dtype) || w.layout != 0) return false;
  if (!silu && a.epilogue != kEpilogueNone && a.epilogue != kEpilogueAdd) return false;
  if (w.n < 1 || w.k < 1 || w.n > (1 << 24) || w.k > (1 << 24) || Rows(a.x) > (1 << 21) || (silu && w.n % 2 != 0)) return false;
  if (!RowStride(a.x, &p->x_stride) || !RowStride(a.out, &p->out_stride)) return false;
  const int64_t columns = silu ? w.n / 2 : w.n;
  if (Rows(a.x) != Rows(a.out) || Columns(a.x) != w.k || Columns(a.out) != columns) return false;
  if (p->x_stride < w.k || p->out_stride < columns) return false;
  p->x = a.x.data, p->weight = w.data, p->bias = static_cast<const float*>(a.bias), p->out = a.out.data;
  p->m = Rows(a.x), p->n = w.n, p->k = w.k;
  p->x_dtype = a.x.dtype, p->weight_dtype = w.dtype, p->out_dtype = a.out.dtype;
  p->epilogue = a.epilogue;
  return true;
}

}  // namespace

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

uint64_t PackedBytes(Device*, int64_t n, int64_t k, DType dtype) {
  return static_cast<uint64_t>(n) * static_cast<uint64_t>(k) * DTypeBytes(dtype);
}

// Layout 0: the rows as they are.
Code PackWeight(Device* device, Weight* weight, const void* rows, void* to, Stream stream) {
  if (!IsModelDType(weight->dtype) || weight->n < 1 || weight->k < 1) {
    return device->Fail(kBadShape, "pack_weight: [%lld, %lld] of dtype %d", static_cast<long long>(weight->n),
                        static_cast<long long>(weight->k), weight->dtype);
  }
  weight->data = to;
  weight->layout = 0;
  weight->bytes = PackedBytes(device, weight->n, weight->k, weight->dtype);
  return device->Check(cudaMemcpyAsync(to, rows, weight->bytes, cudaMemcpyHostToDevice, device->StreamOf(stream)), "pack_weight");
}

// The normalised rows first, then the product of them.
Code LinearAfterNorm(Device* device, LinearArgs args, Stream stream) {
  if (args.norm_scratch == nullptr) return device->Fail(kBadShape, "linear: norm_scratch is missing");
  const Tensor normed = Dense(args.norm_scratch, args.x.dtype, 2, Rows(args.x), Columns(args.x));
  if (const Code code = RmsNorm(device, args.x, args.norm_gamma, args.norm_epsilon, normed, stream); code != kOk) return code;
  args.x = normed;
  args.norm_gamma = nullptr;
  return Linear(device, &args, stream);
}

Code Linear(Device* device, const LinearArgs* args, Stream stream) {
  if (args->norm_gamma != nullptr) return LinearAfterNorm(device, *args, stream);
  ProductArgs a{};
  if (!Read(*args, &a)) {
    return device->Fail(kBadShape, "linear: x [%lld, %lld], weight [%lld, %lld] layout %d, out [%lld, %lld], epilogue %d",
                        static_cast<long long>(Rows(args->x)), static_cast<long long>(Columns(args->x)),
                        static_cast<long long>(args->weight.n), static_cast<long long>(args->weight.k), args->weight.layout,
                        static_cast<long long>(Rows(args->out)), static_cast<long long>(Columns(args->out)), args->epilogue);
  }
  const bool aligned = IsAligned(a.x, a.x_stride * 2) && IsAligned(a.weight, a.k * 2);  // asked of bf16 only
  const ProductShape shape{a.m, a.n, a.k, a.x_dtype, a.weight_dtype, aligned};
  const cudaStream_t s = device->StreamOf(stream);
  switch (ChooseWay(shape)) {
    case ProductWay::kNothing: return kOk;
    case ProductWay::kStream: LaunchStream(a, ChooseStream(a.m, a.n, a.k, device->sm_count), s); break;
    case ProductWay::kLibrary: return a.epilogue == kEpilogueSiluMul ? LibrarySiluMul(device, a, s) : LibraryProduct(device, a, s);
    case ProductWay::kPlainRows: LaunchPlainRows(a, s); break;
    case ProductWay::kPlainTiles: LaunchPlainTiles(a, s); break;
  }
  return device->Launched("linear");
}

}  // namespace phalanx::kernels::cuda
