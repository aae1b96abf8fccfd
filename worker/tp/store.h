// worker/tp/store.h: named bytes that rank 0 keeps for the group while collectives are set up: addresses, identities.
// Refuses to know: what the bytes mean. Thread: any, every method.
// Neighbours: monitor.h implements it over the pulse connections; gloo_group and nccl_group use it.
#pragma once

#include <string>
#include <string_view>

#include "services/status.h"
#include "worker/tp/socket.h"

namespace phalanx::worker::tp {

constexpr size_t kStoreKeyBytesMax = 256;
constexpr size_t kStoreValueBytesMax = 256 << 10;
constexpr size_t kStoreEntriesMax = 4096;

class Store {
 public:
  virtual ~Store() = default;
  // A key that is there keeps its first value. Errors: kInvalidArgument (too long), the group's verdict once it is broken.
  virtual absl::Status Set(std::string_view key, std::string_view value) = 0;
  // Waits until some rank has set `key`. Errors: kDeadlineExceeded naming the key, the group's verdict.
  virtual absl::StatusOr<std::string> Get(std::string_view key, Time deadline) = 0;
};

}  // namespace phalanx::worker::tp
