// router/openai/error.h: the OpenAI shape of every failure.
// Refuses to know: gRPC, what failed. Thread: pure functions. Neighbours: router/rpc for failures before a reply exists, the writers after.
// The gateway writes the same shape for refusals of its own (gateway/refuse.go); a golden test keeps the two equal.
#pragma once

#include <string>

#include "router/openai/reply_writer.h"
#include "services/status.h"

namespace phalanx::router::openai {

struct ErrorReply {
  FinishedReply head;                        // http_code, retry_after_s, should_retry
  std::string body;                          // {"error":{"message":...,"type":...,"param":...,"code":...}}
};

// Codes: kInvalidArgument, kOutOfRange, kFailedPrecondition, kAlreadyExists, kAborted 400; kUnauthenticated 401; kPermissionDenied 403;
// kNotFound 404; kResourceExhausted 429; kCancelled 499; kUnimplemented 501; kUnavailable 503; kDeadlineExceeded 504; others 500 with a
// fixed message. Messages are cut at 1,000 bytes.
ErrorReply ToErrorReply(const absl::Status& status);

}  // namespace phalanx::router::openai
