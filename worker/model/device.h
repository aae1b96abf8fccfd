// worker/model/device.h: device memory that frees itself, and kernel codes as statuses.
// Refuses to know: what the memory holds. Thread: the thread that calls the device.
// Neighbours: weights.cc, decoder.cc and worker/exec take memory here.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"
#include "services/status.h"

namespace phalanx::worker::model {

// OK, or the operation's name with the back end's reason: kResourceExhausted for kOutOfMemory, else kInternal.
absl::Status ToStatus(const kernels::Table& table, kernels::Device* device, kernels::Code code, const std::string& operation);

// True if the device's memory is the host's, where other programs live and the system decides what is free.
inline bool IsHost(const kernels::Table& table) { return std::string_view(table.name) != "cuda"; }

// "14.19 GiB", "3.50 MiB".
std::string HumanBytes(uint64_t bytes);

// Takes device (or fast host) memory and gives all of it back when it dies.
class DeviceMemory {
 public:
  DeviceMemory(const kernels::Table& table, kernels::Device* device) : table_(table), device_(device) {}
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // `bytes` uninitialised bytes, at least 1. `what` names them in the error: kResourceExhausted says how much was needed and is free.
  absl::StatusOr<void*> Take(uint64_t bytes, const char* what);
  absl::StatusOr<void*> TakeHost(uint64_t bytes, const char* what);
  uint64_t bytes() const { return bytes_; }

 private:
  absl::Status Refused(kernels::Code code, uint64_t bytes, const char* what, const char* operation) const;

  const kernels::Table& table_;
  kernels::Device* const device_;
  std::vector<void*> taken_;
  std::vector<void*> taken_host_;
  uint64_t bytes_ = 0;
};

}  // namespace phalanx::worker::model
