#include "worker/model/device.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace phalanx::worker::model {

absl::Status ToStatus(const kernels::Table& table, kernels::Device* device, kernels::Code code, const std::string& operation) {
  if (code == kernels::kOk) return absl::OkStatus();
  const std::string message = absl::StrCat(operation, " failed on ", table.name, " with code ", static_cast<int>(code), ": ",
                                           table.last_error != nullptr ? table.last_error(device) : "no reason given");
  return code == kernels::kOutOfMemory ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

DeviceMemory::~DeviceMemory() {
  for (void* memory : taken_) table_.free(device_, memory);
  for (void* memory : taken_host_) table_.host_free(device_, memory);
}

absl::StatusOr<void*> DeviceMemory::Take(uint64_t bytes, const char* what) {
  void* memory = nullptr;
  const uint64_t size = std::max<uint64_t>(bytes, 1);
  PHX_RETURN_IF_ERROR(
      ToStatus(table_, device_, table_.alloc(device_, size, &memory), absl::StrCat("taking ", size, " bytes for ", what)));
  taken_.push_back(memory);
  bytes_ += size;
  return memory;
}

absl::StatusOr<void*> DeviceMemory::TakeHost(uint64_t bytes, const char* what) {
  void* memory = nullptr;
  const uint64_t size = std::max<uint64_t>(bytes, 1);
  PHX_RETURN_IF_ERROR(
      ToStatus(table_, device_, table_.host_alloc(device_, size, &memory), absl::StrCat("taking ", size, " host bytes for ", what)));
  taken_host_.push_back(memory);
  return memory;
}

}  // namespace phalanx::worker::model
