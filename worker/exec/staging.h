// worker/exec/staging.h: everything that a step brings from the host, in one upload: arrays placed one after another.
// Refuses to know: what the arrays mean. Thread: the engine thread.
// Neighbours: inputs.h and sampler.h place their arrays, executor.cc begins and uploads.
//
// There are two host buffers, used in turn, and one on the device. The upload of a step stands behind all work of the step before, so the
// device's buffer is free by then; a host buffer is filled again two steps later, when the step that used it has been collected. Arrays
// of the same sizes lie at the same addresses in every step, which is what recorded graphs need.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "services/check.h"
#include "services/status.h"
#include "worker/model/device.h"

namespace phalanx::worker::exec {

constexpr int32_t kTurns = 2;   // steps whose host buffers exist at once

class Staging {
 public:
  template <typename T>
  struct Array {
    T* host = nullptr;
    T* device = nullptr;
  };

  // Takes all its memory; `bytes` is for the arrays of the largest step, each rounded up to kAlignment.
  static absl::StatusOr<Staging> Create(const kernels::Table& table, kernels::Device* device, uint64_t bytes,
                                        model::DeviceMemory* memory);
  static constexpr uint64_t kAlignment = 64;

  // Starts a step's arrays over; what was placed before is void.
  void Begin();
  int32_t turn() const { return turn_; }
  // Room for `count` items, to be filled on the host before Upload.
  template <typename T>
  Array<T> Place(int64_t count) {
    const uint64_t at = used_;
    used_ += (static_cast<uint64_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    PHX_CHECK(count >= 0 && used_ <= bytes_);
    return {reinterpret_cast<T*>(host_[turn_] + at), reinterpret_cast<T*>(on_device_ + at)};
  }
  absl::Status Upload();

 private:
  Staging(const kernels::Table& table, kernels::Device* device) : table_(&table), device_(device) {}

  const kernels::Table* table_;
  kernels::Device* device_;
  char* host_[kTurns] = {};
  char* on_device_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t used_ = 0;
  int32_t turn_ = 0;
};

}  // namespace phalanx::worker::exec
