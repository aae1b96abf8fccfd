// router/admission.h: who may come in: the first look at a request, by count, before any work is spent on it.
// Refuses to know: prompts, tokens, threads. Thread: pure functions and plain data. Neighbours: relay.h keeps the counts and asks.
#pragma once

#include <cstdint>

#include "services/clock.h"
#include "services/status.h"

namespace phalanx::router {

struct AdmissionLimits {
  int64_t max_requests = 0;                  // --max-num-queued-reqs: waiting and running together; 0 = only the hard caps
  int64_t hard_requests = 16384;
  int64_t hard_choices = 65536;              // prompts x n over all requests
};

struct AdmissionState {
  int64_t requests = 0;                      // in the router now, the new one not counted
  int64_t choices = 0;
  int ready_workers = 0;
  bool draining = false;
  double finished_per_second = 0;            // as of late; 0 = not known
  uint64_t turn = 0;                         // any number that changes from call to call: spreads the retries
};

// OK, or: kUnavailable (draining, no ready worker), kResourceExhausted with code queue_full; both with Retry-After.
absl::Status Enter(const AdmissionState& state, const AdmissionLimits& limits, int64_t new_choices);

// When a place will probably be free: what is queued over the rate it ends at, in [1, 30], spread over three seconds.
int RetryAfterSeconds(const AdmissionState& state);

// How many requests end a second, over about the last five. Thread: one owner.
class FinishRate {
 public:
  void Add(services::Time now);
  double PerSecond(services::Time now) const;

 private:
  double rate_ = 0;                          // as of last_
  services::Time last_{};
};

// The 503 of a router that cannot serve now.
absl::Status NotServing(const char* why, const AdmissionState& state);

}  // namespace phalanx::router
