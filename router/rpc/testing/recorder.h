// router/rpc/testing/recorder.h: a WorkerListener that writes down what it hears, and waits for it.
// Refuses to know: gRPC. Thread: any. Neighbours: worker_client's tests.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "router/core/worker.h"

namespace phalanx::router::rpc::testing {

class Recorder : public core::WorkerListener {
 public:
  struct Sequence {
    std::vector<int32_t> ids;
    core::WorkerEvent last;
    int events = 0, starts = 0;
    bool over = false;
  };

  void OnUp(int worker, uint64_t epoch, core::WorkerInfo info) override {
    if (on_up) on_up(epoch);
    std::lock_guard lock(mutex_);
    if (up_) disorder_ = "up after up";
    up_ = true;
    worker_ = worker;
    epoch_ = epoch;
    info_ = std::move(info);
    ++ups_;
    changed_.notify_all();
  }
  void OnBatch(int worker, uint64_t epoch, std::vector<core::WorkerEvent> events, const core::WorkerLoad& load) override {
    std::lock_guard lock(mutex_);
    if (!up_ || epoch != epoch_) disorder_ = "a batch outside of its life";
    ++batches_;
    load_ = load;
    for (core::WorkerEvent& event : events) {
      Sequence& sequence = sequences_[event.id];
      if (sequence.over) disorder_ = "an event after the end";
      sequence.ids.insert(sequence.ids.end(), event.ids.begin(), event.ids.end());
      sequence.starts += event.started;
      sequence.over = event.end != core::WorkerEvent::End::kNone;
      ++sequence.events;
      sequence.last = std::move(event);
    }
    changed_.notify_all();
  }
  void OnDown(int worker, uint64_t epoch, absl::Status why) override {
    std::lock_guard lock(mutex_);
    if (!up_ || epoch != epoch_) disorder_ = "down outside of its life";
    up_ = false;
    why_ = std::move(why);
    ++downs_;
    changed_.notify_all();
  }

  // Waits until `done` holds; it is called under the lock and may read the members below.
  bool Await(const std::function<bool()>& done, std::chrono::milliseconds limit = std::chrono::seconds(20)) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, limit, done);
  }
  // The epoch of the `number`-th life, from 1; 0 if it does not come.
  uint64_t AwaitUp(int number = 1) {
    return Await([&] { return ups_ >= number && up_; }) ? epoch_ : 0;
  }
  bool AwaitDown(int number = 1) {
    return Await([&] { return downs_ >= number; });
  }
  Sequence AwaitEnd(uint64_t id) {
    Await([&] { return sequences_[id].over; });
    std::lock_guard lock(mutex_);
    return sequences_[id];
  }
  template <typename T>
  T Read(const T Recorder::* member) const {
    std::lock_guard lock(mutex_);
    return this->*member;
  }

  std::function<void(uint64_t epoch)> on_up;  // on the link's thread, inside OnUp

  bool up_ = false;
  int worker_ = -1, ups_ = 0, downs_ = 0, batches_ = 0;
  uint64_t epoch_ = 0;
  core::WorkerInfo info_;
  core::WorkerLoad load_;
  absl::Status why_;
  std::map<uint64_t, Sequence> sequences_;
  std::string disorder_;                      // the last broken promise of the link; empty = none

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace phalanx::router::rpc::testing
