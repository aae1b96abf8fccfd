// router/rpc/worker_client.h: one worker's long stream, kept up for ever: GetInfo, Attach, batches up, submissions down, reconnect.
// Refuses to know: what a request is, which worker is best. Thread: WorkerLink's methods from any thread; the listener is called by this
// object's own thread, in order. What they share is behind `mutex_`, which is never held while gRPC or the listener is called.
// Neighbours: translate.h makes the messages, the relay listens and submits, services/channel.h notices a peer that was stopped.
//
// An epoch is one life of the stream. What is said to an old epoch is dropped, and events of another are left out.
// One write is in flight at a time; what comes meanwhile is collected and leaves together. A worker that does not take what waits
// (outbox_bytes_max) loses the stream: its sequences end there, and the listener hears OnDown like for any other loss.
// Silence: a worker speaks after every step and once a second when idle. One that is idle, as far as this router knows, and silent for
// `idle_silence_max` is taken as down; one that may be in a long step (a large prefill on a slow machine) gets `busy_silence_max`.
// Destroying the link ends the stream without OnDown.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>

#include "phalanx/worker/v1/worker.pb.h"
#include "router/core/worker.h"
#include "services/channel.h"

namespace phalanx::router::rpc {

struct WorkerClientOptions {
  int worker = 0;                                     // what the listener calls it
  std::string address;                                // "unix:PATH" or "HOST:PORT"
  services::ChannelOptions channel;
  std::chrono::milliseconds connect_limit{2000};      // of GetInfo, and of starting the stream
  std::chrono::milliseconds backoff_min{100};         // first wait after a loss; doubles, with jitter of up to half of it
  std::chrono::milliseconds backoff_max{2000};
  std::chrono::milliseconds idle_silence_max{5000};
  std::chrono::milliseconds busy_silence_max{120000};
  size_t outbox_bytes_max = size_t{64} << 20;         // waiting behind the write in flight
  size_t message_bytes_max = size_t{8} << 20;         // of one message; a single larger submission goes alone
};

class WorkerClient final : public core::WorkerLink {
 public:
  explicit WorkerClient(WorkerClientOptions options);
  ~WorkerClient() override;

  // Begins to connect. Once; `listener` outlives this object. Apart from the constructor, because the listener needs its links first.
  void Start(core::WorkerListener* listener);

  const std::string& address() const override { return options_.address; }
  void Submit(uint64_t epoch, core::Submission submission) override;
  void Cancel(uint64_t epoch, uint64_t id) override;
  void Credit(uint64_t epoch, uint64_t id, uint32_t tokens) override;
  absl::StatusOr<std::string> Metrics(std::chrono::milliseconds limit) override;

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Connection;

  void Loop();
  // One life: connects, serves until the end, and says why it ended. `was_up` says whether the listener heard of it.
  absl::Status Live(bool* was_up);
  absl::StatusOr<core::WorkerInfo> Connect(Connection& connection);
  uint64_t Publish();
  absl::Status Serve(Connection& connection, uint64_t epoch, int32_t vocab_size);
  absl::Status HandleMessage(Connection& connection, uint64_t epoch, int32_t vocab_size);
  absl::Status Disconnect(Connection& connection, absl::Status why);
  bool SleepFor(std::chrono::milliseconds time);      // false = stop
  bool stopping() const;
  std::chrono::milliseconds silence_max() const;

  template <typename Fill>
  void Say(uint64_t epoch, size_t bytes, Fill fill);
  bool TakeNext();                                    // under the lock: the next message into the connection; true = it must be written
  void WriteDone(Connection& connection);

  const WorkerClientOptions options_;
  core::WorkerListener* listener_ = nullptr;
  std::minstd_rand random_;                           // of the own thread
  core::WorkerLoad load_;                             // the last one heard; of the own thread
  Time heard_;                                        // when the worker last spoke; of the own thread

  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::shared_ptr<Connection> connection_;            // of the life now tried or led
  bool up_ = false;                                   // `connection_` takes submissions
  uint64_t epoch_ = 0;
  bool asked_ = false;                                // something was submitted since the worker last spoke
  bool busy_ = false;                                 // by its last report, the worker had work
  bool overrun_ = false;                              // the outbox was full: this life is over
  struct Waiting {
    worker::v1::RouterMessage message;
    size_t bytes = 0;
  };
  std::deque<Waiting> outbox_;
  size_t outbox_bytes_ = 0;
  bool writing_ = false;
  std::thread thread_;
};

}  // namespace phalanx::router::rpc
