// How many teams of CTAs share the rows, and where they keep them.
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_config.h"

namespace phalanx::kernels::cuda {
namespace {

// Teams that run at the same time.
int TeamsThatFit(const Device* device, const void* kernel, int threads, const TeamShape& shape) {
  int fit = 0;
  if (shape.ranks == 1) {
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, threads, shape.shared_bytes);
    return fit * device->sm_count;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(shape.ranks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.ranks)), config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = &cluster, config.numAttrs = 1;
  cudaOccupancyMaxActiveClusters(&fit, kernel, &config);
  return fit;
}

}  // namespace

TeamShape ShapeOfTeams(Device* device, const void* kernel, int threads, int32_t vocab, int64_t rows) {
  TeamShape shape{device->capability >= 90 ? RanksOf(vocab) : 1, 1, 0, nullptr};
  const size_t part_bytes = static_cast<size_t>(PartSize(vocab, shape.ranks)) * sizeof(float);
  cudaFuncAttributes attributes{};
  cudaFuncGetAttributes(&attributes, kernel);
  const int room = device->shared_bytes - static_cast<int>(attributes.sharedSizeBytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, room);
  const bool in_shared = part_bytes <= static_cast<size_t>(room);
  shape.shared_bytes = in_shared ? part_bytes : 0;
  int64_t most = std::max(1, TeamsThatFit(device, kernel, threads, shape));
  if (!in_shared) {
    shape.workspace = static_cast<float*>(Workspace(device));
    most = std::min(most, static_cast<int64_t>(WorkspaceBytes(device) / (part_bytes * static_cast<size_t>(shape.ranks))));
  }
  shape.teams = static_cast<int>(std::min(most, rows));
  return shape;
}

}  // namespace phalanx::kernels::cuda
