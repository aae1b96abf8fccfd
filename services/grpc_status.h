// services/grpc_status.h: the only translation between absl::Status and grpc::Status, both ways.
// Refuses to know: HTTP codes, error bodies. Thread: any.
// Neighbours: every door and every gRPC client. Payloads travel as binary error details (status type URL -> bytes).
#pragma once

#include <grpcpp/support/status.h>

#include "services/status.h"

namespace phalanx::services {

// Codes are the same numbers on both sides; the message and the payloads are kept.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace phalanx::services
