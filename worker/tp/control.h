// worker/tp/control.h: bytes between the ranks of a group that has met: a plan from rank 0 to all, small replies back, and whether the
// group is still whole.
// Refuses to know: what the bytes mean, tensors. Thread: Broadcast, Collect, Receive and Reply from one thread, the engine's; the rest from
// any. No other thread touches the plan connections: a plan is one system call a follower on one side and one or two on the other.
// Neighbours: rendezvous.h makes the Meeting, monitor.h keeps the pulse, worker/engine sends plans, group.h shares the verdict.
//
// A group that has lost a rank, or in which anything passed its deadline, is broken for good: every call on every rank returns the same
// reason, with the rank named, and the owner ends the process. Only Receive may find nothing within its limit and be called again.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "worker/tp/monitor.h"
#include "worker/tp/rendezvous.h"

namespace phalanx::worker::tp {

struct ControlOptions {
  MonitorOptions monitor;
  size_t message_bytes_max = 64 << 20;  // a longer plan or reply is refused by its sender, and breaks the group at its reader
};

struct Message {
  uint64_t step = 0;
  std::string_view bytes;  // until the next Receive or Collect
};

class Control {
 public:
  Control(Meeting meeting, const ControlOptions& options);
  ~Control();  // the others see the group end: kCancelled, "rank 2 left the group"

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& local_host() const { return local_host_; }

  // Rank 0: hands the plan of `step` (rising) to every follower's socket. It does not wait for them to read; `deadline` is for a socket
  // that is full. Errors: kInvalidArgument (too long), the verdict.
  absl::Status Broadcast(uint64_t step, std::string_view bytes, Time deadline);
  // Rank 0: one reply of this step from each follower, in order of ranks from 1. Errors: the verdict.
  absl::StatusOr<std::vector<Message>> Collect(uint64_t step, Time deadline);

  // Followers: the next plan. Errors: kDeadlineExceeded when none came in time (the group is still whole), the verdict.
  absl::StatusOr<Message> Receive(Time deadline);
  // Followers: a small answer for `step`. Errors: as Broadcast.
  absl::Status Reply(uint64_t step, std::string_view bytes, Time deadline);

  // OK while the group is whole. One atomic load then.
  absl::Status status() const { return fault_->broken() ? fault_->status() : absl::OkStatus(); }
  const std::shared_ptr<Fault>& fault() const { return fault_; }
  Store& store() { return *monitor_; }
  // The last step that a peer is known to have taken (rank 0), for log lines.
  uint64_t step_of(int rank) const { return monitor_->step_of(rank); }

 private:
  struct Peer {
    int rank = 0;
    Socket socket;
    FrameReader reader;
    size_t sent = 0;  // of the message being sent
  };

  absl::Status Send(FrameKind kind, uint64_t step, std::string_view bytes, Time deadline);
  bool SendMore(Peer& peer, std::string_view head, std::string_view bytes, absl::Status* error);
  absl::StatusOr<bool> NextFrame(Peer& peer, FrameKind kind, Message* message);
  absl::Status WaitFor(const std::vector<Peer*>& peers, short events, Time deadline);
  absl::Status Late(const std::vector<Peer*>& peers, const char* what, uint64_t step);

  const int rank_;
  const int size_;
  const std::string local_host_;
  const size_t message_bytes_max_;
  std::shared_ptr<Fault> fault_ = std::make_shared<Fault>();
  std::vector<Peer> peers_;
  std::unique_ptr<Monitor> monitor_;
};

}  // namespace phalanx::worker::tp
