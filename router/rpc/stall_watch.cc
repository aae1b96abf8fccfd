#include "router/rpc/stall_watch.h"

#include <vector>

namespace phalanx::router::rpc {

StallWatch::StallWatch(std::chrono::milliseconds every) : every_(every), thread_([this] { Loop(); }) {}

StallWatch::~StallWatch() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  thread_.join();
}

void StallWatch::Add(const std::shared_ptr<Stream>& stream) {
  std::lock_guard lock(mutex_);
  streams_[stream.get()] = stream;
}

void StallWatch::Remove(const Stream* stream) {
  std::lock_guard lock(mutex_);
  streams_.erase(stream);
}

size_t StallWatch::size() const {
  std::lock_guard lock(mutex_);
  return streams_.size();
}

void StallWatch::Loop() {
  std::vector<std::shared_ptr<Stream>> open;
  std::unique_lock lock(mutex_);
  while (!stop_.wait_for(lock, every_, [this] { return stopping_; })) {
    for (const auto& [key, stream] : streams_) {
      if (auto held = stream.lock()) open.push_back(std::move(held));
    }
    lock.unlock();
    const services::Time now = std::chrono::steady_clock::now();
    for (const auto& stream : open) stream->CheckStall(now);
    open.clear();  // may destroy a stream, which takes no lock of ours
    lock.lock();
  }
}

}  // namespace phalanx::router::rpc
