// worker/model/pack_queue.h: turns stored rows into packed device weights: threads decode ahead, the caller's thread packs in order.
// Refuses to know: what a matrix is for. Thread: Add and Run from one thread; decoding threads live inside Run.
// Neighbours: weights.cc fills it, checkpoint.h decodes rows.
#pragma once

#include <functional>
#include <vector>

#include "kernels/kernels.h"
#include "services/status.h"
#include "worker/model/checkpoint.h"
#include "worker/model/device.h"

namespace phalanx::worker::model {

// Row i of `tensor` becomes row `first_row` + i * `row_step` of the matrix.
struct PackPart {
  SourceTensor tensor;
  int64_t first_row = 0;
  int64_t row_step = 1;
};

struct PackJob {
  kernels::Weight* weight = nullptr;   // filled by Run
  int64_t n = 0;
  int64_t k = 0;
  std::vector<PackPart> parts;         // cover every row once
};

class PackQueue {
 public:
  void Add(PackJob job) { jobs_.push_back(std::move(job)); }
  // Packs all jobs as `dtype`. At most kMaxStagedBytes of decoded rows wait at a time (or one matrix, if larger).
  absl::Status Run(const kernels::Table& table, kernels::Device* device, kernels::DType dtype, DeviceMemory* memory,
                   const std::function<void(double)>& progress);

 private:
  std::vector<PackJob> jobs_;
};

}  // namespace phalanx::worker::model
