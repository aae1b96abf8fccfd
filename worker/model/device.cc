#include "worker/model/device.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace phalanx::worker::model {

absl::Status ToStatus(const kernels::Table& table, kernels::Device* device, kernels::Code code, const std::string& operation) {
  if (code == kernels::kOk) return absl::OkStatus();
  const std::string message = absl::StrCat(operation, " failed on ", table.name, " with code ", static_cast<int>(code), ": ",
                                           table.last_error != nullptr ? table.last_error(device) : "no reason given");
  return code == kernels::kOutOfMemory ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

std::string HumanBytes(uint64_t bytes) {
  const auto size = static_cast<double>(bytes);
  return bytes >= uint64_t{1} << 30 ? absl::StrFormat("%.2f GiB", size / (1 << 30)) : absl::StrFormat("%.2f MiB", size / (1 << 20));
}

absl::Status DeviceMemory::Refused(kernels::Code code, uint64_t bytes, const char* what, const char* operation) const {
  const absl::Status status = ToStatus(table_, device_, code, operation);
  kernels::DeviceInfo info{};
  if (code != kernels::kOutOfMemory || table_.info(device_, &info) != kernels::kOk) return status;
  return absl::ResourceExhaustedError(absl::StrCat("too little memory for ", what, ": ", HumanBytes(bytes), " are needed, ",
                                                   HumanBytes(info.memory_free), " of ", HumanBytes(info.memory_total), " are free (",
                                                   std::string(status.message()), ")"));
}

DeviceMemory::~DeviceMemory() {
  for (void* memory : taken_) table_.free(device_, memory);
  for (void* memory : taken_host_) table_.host_free(device_, memory);
}

absl::StatusOr<void*> DeviceMemory::Take(uint64_t bytes, const char* what) {
  void* memory = nullptr;
  const uint64_t size = std::max<uint64_t>(bytes, 1);
  if (const kernels::Code code = table_.alloc(device_, size, &memory); code != kernels::kOk) return Refused(code, size, what, "alloc");
  taken_.push_back(memory);
  bytes_ += size;
  return memory;
}

absl::StatusOr<void*> DeviceMemory::TakeHost(uint64_t bytes, const char* what) {
  void* memory = nullptr;
  const uint64_t size = std::max<uint64_t>(bytes, 1);
  if (const kernels::Code code = table_.host_alloc(device_, size, &memory); code != kernels::kOk) {
    return ToStatus(table_, device_, code, absl::StrCat("host_alloc of ", HumanBytes(size), " for ", what));
  }
  taken_host_.push_back(memory);
  return memory;
}

}  // namespace phalanx::worker::model
