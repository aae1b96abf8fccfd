#include "worker/exec/staging.h"

namespace phalanx::worker::exec {

absl::StatusOr<Staging> Staging::Create(const kernels::Table& table, kernels::Device* device, uint64_t bytes,
                                        model::DeviceMemory* memory) {
  Staging staging(table, device);
  staging.bytes_ = bytes;
  for (char*& buffer : staging.host_) {
    PHX_ASSIGN_OR_RETURN(void* host, memory->TakeHost(bytes, "step inputs"));
    buffer = static_cast<char*>(host);
  }
  PHX_ASSIGN_OR_RETURN(void* on_device, memory->Take(bytes, "step inputs"));
  staging.on_device_ = static_cast<char*>(on_device);
  return staging;
}

void Staging::Begin() {
  turn_ = (turn_ + 1) % kTurns;
  used_ = 0;
}

absl::Status Staging::Upload() {
  return model::ToStatus(*table_, device_, table_->copy_to_device(device_, on_device_, host_[turn_], used_, nullptr), "copy_to_device");
}

}  // namespace phalanx::worker::exec
