// worker/back_end.h: which back end a worker runs on: the one that was asked for, or the GPU when plug-in, driver and card are there,
// else the CPU.
// Refuses to know: models, flags' other meanings. Thread: any, once at start. Neighbours: main.cc opens it, kernels/load.h finds tables.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"
#include "services/status.h"

namespace phalanx::worker {

// The device outlives whatever was made on it.
using DevicePtr = std::unique_ptr<kernels::Device, void (*)(kernels::Device*)>;

struct BackEnd {
  const kernels::Table* table = nullptr;
  DevicePtr device{nullptr, nullptr};
  kernels::DeviceInfo info{};
  bool gpu = false;
  std::string note;              // `auto` on the CPU: why not the GPU, in one line
};

// `wish` is auto, cpu or cuda. An explicit wish is never replaced by something else. Errors: kFailedPrecondition with the reason.
absl::StatusOr<BackEnd> OpenBackEnd(std::string_view wish, const kernels::DeviceOptions& options, const std::vector<std::string>& plugins);

// Where libphalanx_cuda.so is looked for: PHALANX_CUDA_PLUGIN alone if it is set, whether it exists or not; else beside the program and in
// ../lib, those that exist.
std::vector<std::string> PluginPaths();

}  // namespace phalanx::worker
