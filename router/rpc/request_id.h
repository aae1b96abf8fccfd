// router/rpc/request_id.h: the id that one request carries through logs, headers and its reply.
// Refuses to know: what is asked. Thread: any. Neighbours: both doors; the gateway sends the id as metadata x-request-id.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

namespace phalanx::router::rpc {

// The metadata's id, else `from_body`, else a new random one. An id longer than 128 bytes or with other than printable ASCII
// characters counts as none: it will stand in log lines and headers.
std::string RequestId(const grpc::CallbackServerContext& context, const std::string& from_body);

}  // namespace phalanx::router::rpc
