// Linear layers: weights as they are, and the choice of a kernel.
#include "kernels/cuda/gemm.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_tiles.h"

namespace phalanx::kernels::cuda {
namespace {

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
  ProductArgs a{};
  if (!Read(*args, &a)) {
    return device->Fail(kBadShape, "linear: x [%lld, %lld], weight [%lld, %lld] layout %d, out [%lld, %lld], epilogue %d",
                        static_cast<long long>(Rows(args->x)), static_cast<long long>(Columns(args->x)),
                        static_cast<long long>(args->weight.n), static_cast<long long>(args->weight.k), args->weight.layout,
                        static_cast<long long>(Rows(args->out)), static_cast<long long>(Columns(args->out)), args->epilogue);
  }
  const bool aligned = IsAligned(a.x, a.x_stride * 2) && IsAligned(a.weight, a.k * 2);  // asked of bf16 only
  const bool silu = a.epilogue == kEpilogueSiluMul;
  const bool tiles = TilesSupported(device) && TilesTake(a) && TilesWin(a.m, a.n, a.k, a.epilogue, a.bias != nullptr, a.out_dtype);
  const ProductShape shape{a.m, a.n, a.k, a.x_dtype, a.weight_dtype, aligned, tiles, device->capability >= 80};
  const cudaStream_t s = device->StreamOf(stream);
  const ProductWay way = ChooseWay(shape);
  const StreamDevice stream_device{device->sm_count, device->shared_bytes};
  if (args->norm_gamma != nullptr) {
    if (way != ProductWay::kStream || !IsAligned(args->norm_gamma, 0) || !StreamTakesNorm(a.m, a.k, stream_device)) {
      return LinearAfterNorm(device, *args, stream);
    }
    a.norm_gamma = args->norm_gamma;
    a.norm_epsilon = args->norm_epsilon;
  }
  switch (way) {
    case ProductWay::kNothing: return kOk;
    case ProductWay::kStream: LaunchStream(a, ChooseStream(a.m, a.n, a.k, a.norm_gamma != nullptr, stream_device), s); break;
    case ProductWay::kTiles: return LaunchTiles(device, a, ChooseTiles(a.m, a.n, a.k, silu, device->sm_count), s);
    case ProductWay::kLibrary: return silu ? LibrarySiluMul(device, a, s) : LibraryProduct(device, a, s);
    case ProductWay::kPlainRows: LaunchPlainRows(a, s); break;
    case ProductWay::kPlainTiles: LaunchPlainTiles(a, s); break;
  }
  return device->Launched("linear");
}

}  // namespace phalanx::kernels::cuda
