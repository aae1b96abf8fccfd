// What an error reply needs beside code and message, kept as payloads of the status.
#include <string>
#include <string_view>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "router/core/validate.h"

namespace phalanx::router::core {
namespace {

constexpr char kFieldPayload[] = "phalanx/field";
constexpr char kCodePayload[] = "phalanx/error-code";
constexpr char kRetryPayload[] = "phalanx/retry-after-s";

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

std::string PayloadOf(const absl::Status& status, const char* name) {
  const auto payload = status.GetPayload(name);
  return payload ? std::string(*payload) : std::string();
}

}  // namespace

absl::Status FieldError(std::string_view field, std::string_view message) {
  absl::Status status = absl::InvalidArgumentError(Absl(message));
  status.SetPayload(kFieldPayload, absl::Cord(Absl(field)));
  return status;
}

std::string FieldOf(const absl::Status& status) { return PayloadOf(status, kFieldPayload); }

absl::Status WithErrorCode(absl::Status status, std::string_view code) {
  status.SetPayload(kCodePayload, absl::Cord(Absl(code)));
  return status;
}

std::string ErrorCodeOf(const absl::Status& status) { return PayloadOf(status, kCodePayload); }

absl::Status WithRetryAfter(absl::Status status, int seconds) {
  status.SetPayload(kRetryPayload, absl::Cord(absl::StrCat(seconds)));
  return status;
}

int RetryAfterOf(const absl::Status& status) {
  int seconds = 0;
  return absl::SimpleAtoi(PayloadOf(status, kRetryPayload), &seconds) && seconds > 0 ? seconds : 0;
}

}  // namespace phalanx::router::core
