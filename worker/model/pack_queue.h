// worker/model/pack_queue.h: turns stored rows into packed device weights: threads read ahead, the caller's thread packs in order.
// Refuses to know: what a matrix is for. Thread: Add and Run from one thread; reading threads live inside Run.
// Neighbours: weights.cc fills it, stage.h reads rows.
//
// Two ways. A back end that keeps rows as they are (Weight.layout 0) gets matrices in slices through a few slots of fast host memory: a
// slot is read while others are on their way to the device, and is free again when its copy is done. Any other back end gets each matrix
// whole, from the heap, because only it knows how rows and packed form correspond.
#pragma once

#include <functional>
#include <vector>

#include "kernels/kernels.h"
#include "services/status.h"
#include "worker/model/checkpoint.h"
#include "worker/model/device.h"
#include "worker/model/stage.h"

namespace phalanx::worker::model {

// What Run takes for the time being, at most.
struct PackLimits {
  uint64_t slot_bytes = uint64_t{16} << 20;   // fast host memory; a matrix may be larger than a slot, a row that is makes the slots larger
  int slots = 6;
  unsigned threads = 16;                      // that read
};

// Whether the back end keeps rows as they are. Found out by packing one.
absl::StatusOr<bool> KeepsRows(const kernels::Table& table, kernels::Device* device, kernels::DType dtype);

class PackQueue {
 public:
  explicit PackQueue(PackLimits limits = {}) : limits_(limits) {}

  void Add(PackJob job) { jobs_.push_back(std::move(job)); }
  // Packs all jobs as `dtype`, in the order of their files, and waits until the device has them. Errors: those of reading;
  // kResourceExhausted if the weights do not fit, before anything is read.
  absl::Status Run(const kernels::Table& table, kernels::Device* device, const Checkpoint& checkpoint, kernels::DType dtype,
                   DeviceMemory* memory, const std::function<void(double)>& progress);

 private:
  const PackLimits limits_;
  std::vector<PackJob> jobs_;
};

}  // namespace phalanx::worker::model
