// router/mailbox.h: how other threads hand the relay its work: posted one by one, taken all at once.
// Refuses to know: what it carries. Thread: Post and Close from any, Take from the owner. Neighbours: relay.h.
//
// It has no capacity of its own, because what may be in it is bounded where it comes from: a fixed number of notes for each request that
// admission let in, and from workers no more tokens than credit was given for. A post can therefore neither fail for room nor block.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "services/clock.h"

namespace phalanx::router {

template <typename T>
class Mailbox {
 public:
  // False if closed; `note` is then untouched.
  bool Post(T&& note) {
    bool wake = false;
    {
      std::lock_guard lock(mutex_);
      if (closed_) return false;
      notes_.push_back(std::move(note));
      wake = std::exchange(sleeping_, false);
    }
    if (wake) ready_.notify_one();
    return true;
  }

  // Waits for notes, for Close or for `until`, and swaps what is there into `out` (emptied before). False when closed and empty.
  bool Take(std::vector<T>* out, std::optional<services::Time> until) {
    out->clear();
    std::unique_lock lock(mutex_);
    while (notes_.empty() && !closed_) {
      sleeping_ = true;
      if (!until) {
        ready_.wait(lock);
      } else if (ready_.wait_until(lock, *until) == std::cv_status::timeout) {
        break;
      }
    }
    sleeping_ = false;
    out->swap(notes_);
    return !(closed_ && out->empty());
  }

  void Close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<T> notes_;
  bool sleeping_ = false;                    // the owner waits and has not been woken yet
  bool closed_ = false;
};

}  // namespace phalanx::router
