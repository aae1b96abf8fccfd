// Operations that treat each row alone: embedding, gather_rows, silu_mul.
//
//   embedding    weight [n, k]        ids  [rows]   out [rows, k]     a row copied, or widened or rounded if the dtypes differ
//   gather_rows  x [from, columns]    rows [rows]   out [rows, columns]
//   silu_mul     gate_up [rows, 2 n]                out [rows, n]     silu(left half) * right half
//
// All are pure traffic: each value is read and written once, 16 bytes a thread where rows are aligned to that.
#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/device/chain.cuh"
#include "kernels/cuda/device/vec.cuh"
#include "kernels/cuda/device/warp.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kMostThreads = 256;
constexpr int64_t kMostColumns = int64_t{1} << 23;  // of silu_mul: parts of a row are the grid's y

unsigned ThreadsFor(int64_t units) {
  return static_cast<unsigned>(std::min<int64_t>(kMostThreads, (units + kWarp - 1) / kWarp * kWarp));
}

bool IsMultiple(const void* data, int64_t bytes, size_t of) {
  return (reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(bytes)) % of == 0;
}

// ---- copies of chosen rows ------------------------------------------------------------------------------------------

// Row ids[r] of `from`, or zeros if there is no such row. Strides and `units` count values of type U.
template <class U>
__global__ void CopyRows(const U* from, int64_t from_rows, int64_t from_stride, const int32_t* ids, U* to, int64_t to_stride,
                         int64_t units) {
  PassGate();
  const int64_t row = blockIdx.x, id = ids[row];
  const bool known = id >= 0 && id < from_rows;
  for (int64_t i = threadIdx.x; i < units; i += blockDim.x) {
    U value{};
    if (known) value = from[id * from_stride + i];
    to[row * to_stride + i] = value;
  }
}

template <class U>
void LaunchCopy(const void* from, int64_t from_rows, int64_t from_bytes, const int32_t* ids, void* to, int64_t to_bytes, int64_t rows,
                int64_t row_bytes, cudaStream_t stream) {
  const int64_t size = sizeof(U);
  Launch(CopyRows<U>, dim3(static_cast<unsigned>(rows)), dim3(ThreadsFor(row_bytes / size)), 0, stream, static_cast<const U*>(from),
         from_rows, from_bytes / size, ids, static_cast<U*>(to), to_bytes / size, row_bytes / size);
}

// In the widest unit that rows and both strides are a multiple of. Strides in bytes.
void CopyChosen(const void* from, int64_t from_rows, int64_t from_bytes, const int32_t* ids, void* to, int64_t to_bytes, int64_t rows,
                int64_t row_bytes, cudaStream_t stream) {
  const auto fits = [&](size_t size) { return IsMultiple(from, from_bytes | row_bytes, size) && IsMultiple(to, to_bytes, size); };
  const auto launch = fits(16) ? LaunchCopy<uint4> : fits(4) ? LaunchCopy<uint32_t> : fits(2) ? LaunchCopy<uint16_t> : LaunchCopy<uint8_t>;
  launch(from, from_rows, from_bytes, ids, to, to_bytes, rows, row_bytes, stream);
}

template <class From, class To>
__global__ void ConvertRows(const From* from, int64_t from_rows, int64_t columns, const int32_t* ids, To* to, int64_t to_stride) {
  PassGate();
  const int64_t row = blockIdx.x, id = ids[row];
  const bool known = id >= 0 && id < from_rows;
  for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
    to[row * to_stride + i] = FromFloat<To>(known ? ToFloat(from[id * columns + i]) : 0.0f);
  }
}

// ---- silu * up ------------------------------------------------------------------------------------------------------

// Grid: x = rows, y = parts of a row. kN values a thread.
template <class T, int kN>
__global__ void SiluMulRows(const T* gate_up, int64_t from_stride, T* out, int64_t to_stride, int64_t n) {
  PassGate();
  const int64_t at = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kN;
  if (at >= n) return;
  const T* gate = gate_up + blockIdx.x * from_stride + at;
  const Pack<T, kN> g = LoadPack<T, kN>(gate), u = LoadPack<T, kN>(gate + n);
  Pack<T, kN> result;
#pragma unroll
  for (int i = 0; i < kN; ++i) result.v[i] = FromFloat<T>(Silu(ToFloat(g.v[i])) * ToFloat(u.v[i]));
  StorePack(out + blockIdx.x * to_stride + at, result);
}

template <class T>
void LaunchSiluMul(const Tensor& gate_up, int64_t from, const Tensor& out, int64_t to, int64_t rows, int64_t n, cudaStream_t stream) {
  constexpr int kN = kPackOf<T>;
  const int64_t size = sizeof(T);
  const bool aligned = IsMultiple(gate_up.data, (from | n) * size, 16) && IsMultiple(out.data, to * size, 16);
  const int64_t units = aligned ? n / kN : n;
  const unsigned threads = ThreadsFor(units);
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>((units + threads - 1) / threads));
  const T* g = static_cast<const T*>(gate_up.data);
  T* o = static_cast<T*>(out.data);
  if (aligned) {
    Launch(SiluMulRows<T, kN>, grid, dim3(threads), 0, stream, g, from, o, to, n);
  } else {
    Launch(SiluMulRows<T, 1>, grid, dim3(threads), 0, stream, g, from, o, to, n);
  }
}

// ids[i] = taken[from[i]] where from[i] >= 0.
__global__ void TakeEach(int32_t* ids, const int32_t* from, const int32_t* taken, int count) {
  PassGate();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count && from[i] >= 0) ids[i] = taken[from[i]];
}

}  // namespace

cudaError_t ProbeCode() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, CopyRows<uint4>);
}

Code Embedding(Device* device, const Weight* weight, const int32_t* ids, Tensor out, Stream stream) {
  int64_t stride;
  const int64_t rows = Rows(out), k = weight->k;
  if (!IsModelDType(out.dtype) || !IsModelDType(weight->dtype) || !RowStride(out, &stride) || Columns(out) != k || k < 1 ||
      rows > INT32_MAX || weight->layout != 0) {
    return device->Fail(kBadShape, "embedding: out [%lld, %lld], weight [%lld, %lld] layout %d", static_cast<long long>(rows),
                        static_cast<long long>(Columns(out)), static_cast<long long>(weight->n), static_cast<long long>(k), weight->layout);
  }
  if (rows == 0) return kOk;
  const cudaStream_t s = device->StreamOf(stream);
  if (weight->dtype == out.dtype) {
    const int64_t size = static_cast<int64_t>(DTypeBytes(out.dtype));
    CopyChosen(weight->data, weight->n, k * size, ids, out.data, stride * size, rows, k * size, s);
  } else if (out.dtype == kF32) {
    Launch(ConvertRows<bf16, float>, dim3(static_cast<unsigned>(rows)), dim3(ThreadsFor(k)), 0, s, static_cast<const bf16*>(weight->data),
           weight->n, k, ids, static_cast<float*>(out.data), stride);
  } else {
    Launch(ConvertRows<float, bf16>, dim3(static_cast<unsigned>(rows)), dim3(ThreadsFor(k)), 0, s, static_cast<const float*>(weight->data),
           weight->n, k, ids, static_cast<bf16*>(out.data), stride);
  }
  return device->Launched("embedding");
}

// The indices are in device memory, so that a wrong one cannot be refused here: it gives zeros.
Code GatherRows(Device* device, Tensor x, const int32_t* rows, Tensor out, Stream stream) {
  int64_t from, to;
  const int64_t size = static_cast<int64_t>(DTypeBytes(x.dtype)), count = Rows(out);
  if (x.dtype != out.dtype || size == 0 || !RowStride(x, &from) || !RowStride(out, &to) || Columns(x) != Columns(out) || Columns(x) < 1 ||
      count > INT32_MAX) {
    return device->Fail(kBadShape, "gather_rows: x [%lld, %lld], out [%lld, %lld]", static_cast<long long>(Rows(x)),
                        static_cast<long long>(Columns(x)), static_cast<long long>(count), static_cast<long long>(Columns(out)));
  }
  if (count == 0) return kOk;
  CopyChosen(x.data, Rows(x), from * size, rows, out.data, to * size, count, Columns(x) * size, device->StreamOf(stream));
  return device->Launched("gather_rows");
}

Code TakeIds(Device* device, int32_t* ids, const int32_t* from, const int32_t* taken, int32_t count, Stream stream) {
  if (count < 0) return device->Fail(kBadShape, "take_ids: count %d", count);
  if (count == 0) return kOk;
  constexpr int kThreads = 128;
  Launch(TakeEach, dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), dim3(kThreads), 0, device->StreamOf(stream), ids, from,
         taken, count);
  return device->Launched("take_ids");
}

Code SiluMul(Device* device, Tensor gate_up, Tensor out, Stream stream) {
  int64_t from, to;
  const int64_t n = Columns(out), rows = Rows(out);
  if (!IsModelDType(out.dtype) || gate_up.dtype != out.dtype || !RowStride(gate_up, &from) || !RowStride(out, &to) || n < 1 ||
      Columns(gate_up) != 2 * n || Rows(gate_up) != rows || rows > INT32_MAX || n > kMostColumns) {
    return device->Fail(kBadShape, "silu_mul: gate_up [%lld, %lld], out [%lld, %lld]", static_cast<long long>(Rows(gate_up)),
                        static_cast<long long>(Columns(gate_up)), static_cast<long long>(rows), static_cast<long long>(n));
  }
  if (rows == 0) return kOk;
  if (out.dtype == kBF16) {
    LaunchSiluMul<bf16>(gate_up, from, out, to, rows, n, device->StreamOf(stream));
  } else {
    LaunchSiluMul<float>(gate_up, from, out, to, rows, n, device->StreamOf(stream));
  }
  return device->Launched("silu_mul");
}

}  // namespace phalanx::kernels::cuda
