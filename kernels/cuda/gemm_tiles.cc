#include "kernels/cuda/gemm_tiles.h"

#include <cuda.h>

#include <algorithm>
#include <set>
#include <utility>

#include "kernels/cuda/device.h"
#include "kernels/cuda/tensor_map.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int64_t kCacheBytes = int64_t{16} << 20;  // of x that token tiles taken together may have

// A bf16 matrix [rows, k] at `stride`, read in boxes [box_rows, kTileK] with the 128-byte swizzle.
CUresult Map(CUtensorMap* map, const void* data, int64_t rows, int64_t k, int64_t stride, int box_rows) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t box[2] = {kTileK, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
  return FindTensorMapEncoder()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, box, steps,
                                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// Lets a kernel have its shared memory, once for each thread, card and kernel.
cudaError_t Prepare(const Device* device, const TilesKernel& kernel) {
  thread_local std::set<std::pair<int, const void*>> prepared;
  if (prepared.contains({device->index, kernel.function})) return cudaSuccess;
  const cudaError_t status = cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes);
  if (status == cudaSuccess) prepared.insert({device->index, kernel.function});
  return status;
}

TilesOut OutOf(const ProductArgs& a) {
  if (a.out_dtype == kF32) return TilesOut::kF32;
  return a.epilogue == kEpilogueSiluMul ? TilesOut::kBf16Silu : TilesOut::kBf16;
}

}  // namespace

bool TilesSupported(const Device* device) {
#ifdef PHALANX_CUDA_HOPPER
  return device->capability == 90 && FindTensorMapEncoder() != nullptr;
#else
  return false;
#endif
}

bool TilesTake(const ProductArgs& a) {
  if (a.out_dtype == kF32 && a.epilogue == kEpilogueSiluMul) return false;
  // Tiles and blocks are counted in 32 bits; a tensor map's strides end at 2^40 bytes.
  return (a.m / 32 + 1) * (a.n / kTileRows + 1) < (int64_t{1} << 30) && a.x_stride < (int64_t{1} << 38);
}

Code LaunchTiles(Device* device, const ProductArgs& a, const TileConfig& c, cudaStream_t stream) {
  const TilesOut out = OutOf(a);
  const TilesKernel kernel = c.tokens <= 128 ? SmallTilesKernel(c.tokens, c.kind, out) : LargeTilesKernel(c.tokens, c.kind, out);
  if (kernel.function == nullptr || static_cast<uint64_t>(TilesPartialBytes(c)) > WorkspaceBytes(device)) {
    return device->Fail(kDeviceError, "linear: no kernel for tiles of %d tokens", c.tokens);
  }
  CUtensorMap weight, x;
  const int box = c.kind == TileCluster::kPair ? c.tokens / 2 : static_cast<int>(std::min<int64_t>(c.tokens, a.m));
  CUresult status = Map(&weight, a.weight, a.n, a.k, a.k, kTileRows);
  if (status == CUDA_SUCCESS) status = Map(&x, a.x, a.m, a.k, a.x_stride, box);
  if (status != CUDA_SUCCESS) {
    return device->Fail(kDeviceError, "linear: cuTensorMapEncodeTiled, m %lld, n %lld, k %lld: error %d", static_cast<long long>(a.m),
                        static_cast<long long>(a.n), static_cast<long long>(a.k), status);
  }
  const int64_t out_bytes = static_cast<int64_t>(DTypeBytes(a.out_dtype));
  TilesParams p{};
  p.partial = static_cast<float4*>(Workspace(device));
  p.flags = static_cast<uint32_t*>(Counters(device));
  p.bias = a.bias, p.out = a.out, p.out_stride = a.out_stride;
  p.m = static_cast<int>(a.m), p.n = static_cast<int>(a.n);
  p.k_blocks = static_cast<int>((a.k + kTileK - 1) / kTileK);
  p.weight_units = c.weight_units, p.token_tiles = c.token_tiles;
  p.group_tokens = static_cast<int>(std::clamp<int64_t>(kCacheBytes / (c.tokens * a.k * 2), 1, c.token_tiles));
  p.cluster = c.cluster, p.units = c.units, p.whole_tiles = c.whole_tiles, p.shared_blocks = c.shared_blocks;
  p.add = a.epilogue == kEpilogueAdd;
  p.wide = (reinterpret_cast<uintptr_t>(a.out) | static_cast<uintptr_t>(a.out_stride * out_bytes)) % 16 == 0;

  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = static_cast<unsigned>(c.cluster);
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(c.ctas()));
  launch.blockDim = dim3(kTilesThreads);
  launch.dynamicSmemBytes = static_cast<size_t>(kernel.shared_bytes);
  launch.stream = stream;
  launch.attrs = attributes, launch.numAttrs = LaunchesOverlap() ? 2 : 1;
  void* arguments[] = {&weight, &x, &p};
  cudaError_t launched = Prepare(device, kernel);
  if (launched == cudaSuccess) launched = cudaLaunchKernelExC(&launch, kernel.function, arguments);
  return device->Check(launched, "linear");
}

}  // namespace phalanx::kernels::cuda
