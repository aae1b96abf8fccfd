#include "router/admission.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "router/core/validate.h"

namespace phalanx::router {
namespace {

constexpr int kMostSeconds = 30;             // clients give up on longer waits
constexpr int kSpread = 3;
constexpr double kRateSeconds = 5;           // what is older counts less and less

absl::Status Full(const AdmissionState& state, int64_t limit, const char* what) {
  absl::Status status =
      absl::ResourceExhaustedError(absl::StrCat("The server is full: it holds ", limit, " ", what, " already. Please try again later."));
  return core::WithRetryAfter(core::WithErrorCode(std::move(status), "queue_full"), RetryAfterSeconds(state));
}

}  // namespace

double FinishRate::PerSecond(services::Time now) const {
  if (last_ == services::Time{}) return 0;
  return rate_ * std::exp(-services::Seconds(now - last_) / kRateSeconds);
}

void FinishRate::Add(services::Time now) {
  rate_ = PerSecond(now) + 1 / kRateSeconds;
  last_ = now;
}

int RetryAfterSeconds(const AdmissionState& state) {
  // A queue of q ends at rate r within q / r; half of it makes room for as many as were refused meanwhile.
  const double wait = state.finished_per_second > 0 ? std::ceil(0.5 * static_cast<double>(state.requests) / state.finished_per_second) : 1;
  return static_cast<int>(std::clamp<double>(wait, 1, kMostSeconds - kSpread + 1)) + static_cast<int>(state.turn % kSpread);
}

absl::Status NotServing(const char* why, const AdmissionState& state) {
  absl::Status status = core::WithErrorCode(absl::UnavailableError(why), "unavailable");
  return core::WithRetryAfter(std::move(status), 1 + static_cast<int>(state.turn % kSpread));
}

absl::Status Enter(const AdmissionState& state, const AdmissionLimits& limits, int64_t new_choices) {
  if (state.draining) return NotServing("The server is shutting down.", state);
  if (state.ready_workers == 0) return NotServing("No worker is ready to serve the model.", state);
  const int64_t most = limits.max_requests > 0 ? std::min(limits.max_requests, limits.hard_requests) : limits.hard_requests;
  if (state.requests >= most) return Full(state, most, "requests");
  if (state.choices + new_choices > limits.hard_choices) return Full(state, state.choices, "sequences");
  return absl::OkStatus();
}

}  // namespace phalanx::router
