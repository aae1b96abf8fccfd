#include "router/rpc/request_id.h"

#include <algorithm>
#include <random>
#include <string_view>

#include "absl/strings/str_format.h"

namespace phalanx::router::rpc {
namespace {

constexpr size_t kMaxBytes = 128;

bool Usable(std::string_view id) {
  return !id.empty() && id.size() <= kMaxBytes && std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c <= '~'; });
}

std::string NewId() {
  thread_local std::mt19937_64 random{(uint64_t{std::random_device{}()} << 32) | std::random_device{}()};
  const uint64_t high = random();
  const uint64_t low = random();
  return absl::StrFormat("%016x%016x", high, low);
}

}  // namespace

std::string RequestId(const grpc::CallbackServerContext& context, const std::string& from_body) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find("x-request-id");
  if (it != metadata.end() && Usable({it->second.data(), it->second.size()})) return {it->second.data(), it->second.size()};
  return Usable(from_body) ? from_body : NewId();
}

}  // namespace phalanx::router::rpc
