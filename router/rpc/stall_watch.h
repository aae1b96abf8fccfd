// router/rpc/stall_watch.h: one thread that looks at every open stream now and then, to end those whose reader has stopped reading.
// Refuses to know: what a stream is or when it counts as stalled. Thread: every method from any thread.
// Neighbours: the doors own one each, reply_stream.h registers with it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "services/clock.h"

namespace phalanx::router::rpc {

class StallWatch {
 public:
  class Stream {
   public:
    virtual ~Stream() = default;
    virtual void CheckStall(services::Time now) = 0;
  };

  explicit StallWatch(std::chrono::milliseconds every);
  ~StallWatch();

  void Add(const std::shared_ptr<Stream>& stream);
  void Remove(const Stream* stream);
  size_t size() const;

 private:
  void Loop();

  const std::chrono::milliseconds every_;
  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  absl::flat_hash_map<const Stream*, std::weak_ptr<Stream>> streams_;
  std::thread thread_;
};

}  // namespace phalanx::router::rpc
