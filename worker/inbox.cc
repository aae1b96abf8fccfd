#include "worker/inbox.h"

#include <cstdint>
#include <utility>

namespace phalanx::worker {

absl::Status Inbox::PushRequest(core::Request request) {
  {
    std::lock_guard lock(mutex_);
    if (items_.requests.size() >= max_requests_) return absl::ResourceExhaustedError("the worker's inbox is full");
    items_.requests.push_back(std::move(request));
  }
  ready_.notify_one();
  return absl::OkStatus();
}

void Inbox::PushCancel(core::SequenceId id) {
  {
    std::lock_guard lock(mutex_);
    items_.cancels.insert(id);
  }
  ready_.notify_one();
}

void Inbox::PushCredit(core::SequenceId id, uint32_t tokens) {
  {
    std::lock_guard lock(mutex_);
    uint32_t& credit = items_.credit[id];
    credit = tokens > UINT32_MAX - credit ? UINT32_MAX : credit + tokens;
  }
  ready_.notify_one();
}

void Inbox::PushStop() {
  {
    std::lock_guard lock(mutex_);
    items_.stop = true;
  }
  ready_.notify_one();
}

void Inbox::Wake() {
  {
    std::lock_guard lock(mutex_);
    woken_ = true;
  }
  ready_.notify_one();
}

InboxItems Inbox::Take() {
  std::lock_guard lock(mutex_);
  if (items_.empty()) return {};
  return std::exchange(items_, {});
}

void Inbox::WaitFor(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  ready_.wait_for(lock, timeout, [this] { return woken_ || !items_.empty(); });
  woken_ = false;  // here and not in Take, so that a Wake between two waits is never lost
}

}  // namespace phalanx::worker
