#include "worker/tp/fault.h"

#include <sys/eventfd.h>

#include "services/check.h"

namespace phalanx::worker::tp {
namespace {

// A rank that ended is known on every other rank within a few milliseconds; a hung one has long been found by its silence.
constexpr milliseconds kVerdictWait(100);

}  // namespace

Fault::Fault() : event_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) { PHX_CHECK(event_.open()); }

absl::Status Fault::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

void Fault::Break(const absl::Status& why) {
  PHX_CHECK(!why.ok());
  {
    std::lock_guard lock(mutex_);
    if (!status_.ok()) return;
    status_ = why;
    broken_.store(true, std::memory_order_release);
    PHX_CHECK(eventfd_write(event_.fd(), 1) == 0);
  }
  changed_.notify_all();
}

absl::Status Fault::BreakUnlessKnown(const absl::Status& why) {
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kVerdictWait, [this] { return !status_.ok(); });
  }
  Break(why);
  return status();
}

}  // namespace phalanx::worker::tp
