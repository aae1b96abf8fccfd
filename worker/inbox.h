// worker/inbox.h: what doors have asked since the engine last looked: new requests, cancels, credit.
// Refuses to know: what any of it means. Thread: pushes from any thread, Take from the engine thread.
// Neighbours: worker/engine owns one and takes everything once a step.
//
// It is bounded: requests by a limit, cancels and credit because a door sends them only for sequences it submitted, and equal ones
// are joined.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "services/status.h"
#include "worker/core/request.h"

namespace phalanx::worker {

struct InboxItems {
  std::vector<core::Request> requests;
  std::unordered_map<core::SequenceId, uint32_t> credit;  // tokens
  std::unordered_set<core::SequenceId> cancels;
  bool stop = false;
  bool empty() const { return requests.empty() && credit.empty() && cancels.empty() && !stop; }
};

class Inbox {
 public:
  explicit Inbox(size_t max_requests) : max_requests_(max_requests) {}

  // Errors: kResourceExhausted when `max_requests` wait to be taken.
  absl::Status PushRequest(core::Request request);
  void PushCancel(core::SequenceId id);
  void PushCredit(core::SequenceId id, uint32_t tokens);  // saturates
  void PushStop();
  // Wakes the engine without anything to take.
  void Wake();

  // All that came since the last call, in an order that keeps a request before its credit and cancel. Does not wait.
  InboxItems Take();
  // Waits until there is something to take, Wake was called, or the time is over.
  void WaitFor(std::chrono::nanoseconds timeout);

 private:
  const size_t max_requests_;
  std::mutex mutex_;
  std::condition_variable ready_;
  InboxItems items_;
  bool woken_ = false;
};

}  // namespace phalanx::worker
