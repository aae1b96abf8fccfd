#include "services/grpc_status.h"

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/strings/cord.h"

namespace phalanx::services {
namespace {

// Details are a list of (length, bytes) pairs: type URL, value, type URL, value ... Lengths are 32-bit little-endian.
void PutBytes(std::string_view bytes, std::string& out) {
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>(bytes.size() >> shift));
  out.append(bytes);
}

bool TakeBytes(std::string_view& in, std::string_view& bytes) {
  if (in.size() < 4) return false;
  uint32_t size = 0;
  for (int i = 3; i >= 0; --i) size = size << 8 | static_cast<unsigned char>(in[i]);
  if (in.size() - 4 < size) return false;
  bytes = in.substr(4, size);
  in.remove_prefix(4 + size_t{size});
  return true;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string details;
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& value) {
    PutBytes({url.data(), url.size()}, details);
    PutBytes(std::string(value), details);
  });
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()), details);
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status out(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  const std::string bytes = status.error_details();  // returned by value
  std::string_view details(bytes);
  std::string_view url;
  std::string_view value;
  while (TakeBytes(details, url) && TakeBytes(details, value)) out.SetPayload({url.data(), url.size()}, absl::Cord(absl::string_view(value.data(), value.size())));
  return out;
}

}  // namespace phalanx::services
