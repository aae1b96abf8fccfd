#include "router/openai/error.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "router/core/validate.h"
#include "router/openai/json_text.h"

namespace phalanx::router::openai {
namespace {

constexpr size_t kMaxMessage = 1000;
constexpr int kMaxRetryAfter = 60;  // clients ignore more
constexpr char kRequest[] = "invalid_request_error";
constexpr char kServer[] = "server_error";

struct Shape {
  int http_code;
  const char* type;
  const char* code;  // used when the status carries none; nullptr = null
  bool should_retry = true;
};

Shape ShapeOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted: return {400, kRequest, nullptr};
    case absl::StatusCode::kUnauthenticated: return {401, kRequest, "invalid_api_key"};
    case absl::StatusCode::kPermissionDenied: return {403, kRequest, nullptr};
    case absl::StatusCode::kNotFound: return {404, kRequest, nullptr};
    case absl::StatusCode::kResourceExhausted: return {429, "rate_limit_error", "rate_limit_exceeded"};
    case absl::StatusCode::kCancelled: return {499, kRequest, nullptr};
    case absl::StatusCode::kUnimplemented: return {501, kServer, "not_implemented", false};
    case absl::StatusCode::kUnavailable: return {503, kServer, "unavailable"};
    case absl::StatusCode::kDeadlineExceeded: return {504, kServer, "timeout"};
    default: return {500, kServer, nullptr};
  }
}

// Our own failures may name files or addresses: they are for the log, not for the client.
std::string_view MessageOf(const absl::Status& status, int http_code) {
  if (http_code == 500) return "The server had an internal error while processing the request.";
  std::string_view message(status.message().data(), status.message().size());
  if (message.size() <= kMaxMessage) return message;
  size_t end = kMaxMessage;  // not inside a character
  while (end > 0 && (static_cast<uint8_t>(message[end]) & 0xC0) == 0x80) --end;
  return message.substr(0, end);
}

void AppendStringOrNull(const std::string& text, std::string* out) {
  text.empty() ? static_cast<void>(out->append("null")) : AppendJsonString(text, out);
}

}  // namespace

ErrorReply ToErrorReply(const absl::Status& status) {
  const Shape shape = ShapeOf(status.code());
  ErrorReply reply;
  reply.head.http_code = shape.http_code;
  reply.head.should_retry = shape.should_retry;
  reply.head.retry_after_s = std::min(core::RetryAfterOf(status), kMaxRetryAfter);
  std::string code = core::ErrorCodeOf(status);
  if (code.empty() && shape.code != nullptr) code = shape.code;
  std::string param = core::FieldOf(status);
  if (param.empty() && code == "model_not_found") param = "model";
  reply.body = "{\"error\":{\"message\":";
  AppendJsonString(MessageOf(status, shape.http_code), &reply.body);
  reply.body.append(",\"type\":\"").append(shape.type).append("\",\"param\":");
  AppendStringOrNull(param, &reply.body);
  reply.body.append(",\"code\":");
  AppendStringOrNull(code, &reply.body);
  reply.body.append("}}");
  return reply;
}

}  // namespace phalanx::router::openai
