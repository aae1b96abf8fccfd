// worker/rpc/session.h: one router's Attach stream: its sequences, and a bounded outbox that never holds up the engine.
// Refuses to know: other routers, how tokens are made. Thread: gRPC threads (reads, write completions) and the service's sender
// thread (Send); everything shared is behind `mutex_`, which is never held while gRPC is called.
// Neighbours: rpc/worker_service makes sessions and routes events to them, rpc/admit checks what they receive.
//
// Life: made by Attach, kept alive by the service's table until OnDone. Finish is called once, and only when no write is in flight.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "phalanx/worker/v1/worker.grpc.pb.h"
#include "worker/core/mailbox.h"
#include "worker/rpc/admit.h"

namespace phalanx::worker::rpc {

struct SessionLimits {
  size_t max_outbox_messages = 8192;            // steps a router may lag behind
  size_t max_outbox_bytes = size_t{32} << 20;
};

// A SequenceId is the session's number and a counter, so an event finds its session without a shared table.
constexpr int kSessionShift = 40;
inline uint64_t SessionOf(core::SequenceId id) { return id >> kSessionShift; }

class Session : public grpc::ServerBidiReactor<v1::RouterMessage, v1::WorkerMessage> {
 public:
  struct Wiring {
    uint64_t number = 0;                        // of this session, from 1
    core::Mailbox* mailbox = nullptr;
    const AdmitLimits* limits = nullptr;
    SessionLimits outbox;
    std::function<bool()> draining;
    std::function<void(uint64_t)> on_done;      // drops the service's reference
  };
  explicit Session(Wiring wiring);

  void Start() { StartRead(&incoming_); }
  // Adds the event to `message`, in the router's names. False if the sequence is unknown by now.
  bool Translate(const core::SequenceEvent& event, v1::WorkerMessage& message);
  // Queues a message. A router that does not keep up is disconnected.
  void Send(v1::WorkerMessage message);
  // Ends the stream. With kFlush what is queued goes out first.
  enum class Rest { kFlush, kDrop };
  void Close(grpc::Status status, Rest rest);
  // Cancels every live sequence and returns how many there were; their events still go out.
  size_t CancelAll();
  size_t live() const;
  bool idle() const;  // nothing queued or being written

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  struct Live {
    uint64_t request_id = 0;
    uint64_t epoch = 0;
    uint32_t output_tokens = 0;
    bool want_logprobs = false;
  };
  absl::Status Handle(const v1::RouterMessage& message);
  absl::Status HandleSubmit(const v1::Submit& submit, v1::WorkerMessage& refusals);
  void Abandon();
  void Pump();

  const Wiring wiring_;
  v1::RouterMessage incoming_;                  // owned by the read in flight

  mutable std::mutex mutex_;
  absl::flat_hash_map<uint64_t, core::SequenceId> by_request_;
  absl::flat_hash_map<core::SequenceId, Live> live_;
  uint64_t next_sequence_ = 1;
  std::deque<v1::WorkerMessage> outbox_;
  size_t outbox_bytes_ = 0;
  v1::WorkerMessage outgoing_;                  // owned by the write in flight
  bool writing_ = false;
  bool closing_ = false;
  bool finished_ = false;
  grpc::Status status_;
};

}  // namespace phalanx::worker::rpc
