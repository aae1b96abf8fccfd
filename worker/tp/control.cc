#include "worker/tp/control.h"

#include <sys/uio.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/check.h"

namespace phalanx::worker::tp {

Control::Control(Meeting meeting, const ControlOptions& options)
    : rank_(meeting.rank), size_(meeting.size), local_host_(std::move(meeting.local_host)), message_bytes_max_(options.message_bytes_max) {
  std::vector<PulseLink> pulses;
  for (Link& link : meeting.links) {
    peers_.push_back({link.rank, std::move(link.plan), FrameReader(message_bytes_max_)});
    pulses.push_back({link.rank, std::move(link.pulse)});
  }
  monitor_ = std::make_unique<Monitor>(rank_, std::move(pulses), options.monitor, *fault_);
}

// The monitor goes first: it breaks the group, so that nobody takes the closing of the plan connections for an accident.
Control::~Control() { monitor_.reset(); }

absl::Status Control::Broadcast(uint64_t step, std::string_view bytes, Time deadline) {
  PHX_CHECK(rank_ == 0);
  PHX_RETURN_IF_ERROR(Send(FrameKind::kPlan, step, bytes, deadline));
  monitor_->SetStep(step);
  return absl::OkStatus();
}

absl::Status Control::Reply(uint64_t step, std::string_view bytes, Time deadline) {
  PHX_CHECK(rank_ != 0);
  return Send(FrameKind::kReply, step, bytes, deadline);
}

absl::StatusOr<Message> Control::Receive(Time deadline) {
  PHX_CHECK(rank_ != 0);
  Message message;
  while (true) {
    if (fault_->broken()) return fault_->status();
    PHX_ASSIGN_OR_RETURN(const bool whole, NextFrame(peers_[0], FrameKind::kPlan, &message));
    if (whole) break;
    PHX_RETURN_IF_ERROR(WaitFor({&peers_[0]}, POLLIN, deadline));
  }
  monitor_->SetStep(message.step);
  return message;
}

absl::StatusOr<std::vector<Message>> Control::Collect(uint64_t step, Time deadline) {
  PHX_CHECK(rank_ == 0);
  std::vector<Message> out(peers_.size());
  std::vector<Peer*> waiting;
  for (Peer& peer : peers_) waiting.push_back(&peer);
  while (true) {
    if (fault_->broken()) return fault_->status();
    for (auto peer = waiting.begin(); peer != waiting.end();) {
      Message& message = out[static_cast<size_t>(*peer - peers_.data())];
      PHX_ASSIGN_OR_RETURN(const bool whole, NextFrame(**peer, FrameKind::kReply, &message));
      if (whole && message.step != step) {
        fault_->Break(absl::InternalError(absl::StrCat("rank ", (*peer)->rank, " answered step ", message.step, " instead of ", step)));
        return fault_->status();
      }
      peer = whole ? waiting.erase(peer) : peer + 1;
    }
    if (waiting.empty()) return out;
    const absl::Status waited = WaitFor(waiting, POLLIN, deadline);
    if (waited.code() == absl::StatusCode::kDeadlineExceeded && !fault_->broken()) return Late(waiting, "did not answer", step);
    PHX_RETURN_IF_ERROR(waited);
  }
}

absl::Status Control::Send(FrameKind kind, uint64_t step, std::string_view bytes, Time deadline) {
  if (bytes.size() > message_bytes_max_) {
    return absl::InvalidArgumentError(absl::StrCat("a message of ", bytes.size(), " bytes, the cap is ", message_bytes_max_));
  }
  if (fault_->broken()) return fault_->status();
  const auto head = FrameHead(kind, step, bytes.size());
  const std::string_view head_bytes(head.data(), head.size());
  std::vector<Peer*> waiting;
  absl::Status error;
  for (Peer& peer : peers_) {
    peer.sent = 0;
    if (!SendMore(peer, head_bytes, bytes, &error)) waiting.push_back(&peer);
  }
  while (!waiting.empty() && error.ok()) {
    const absl::Status waited = WaitFor(waiting, POLLOUT, deadline);
    if (waited.code() == absl::StatusCode::kDeadlineExceeded && !fault_->broken()) return Late(waiting, "does not read", step);
    PHX_RETURN_IF_ERROR(waited);
    std::erase_if(waiting, [&](Peer* peer) { return SendMore(*peer, head_bytes, bytes, &error); });
  }
  return error.ok() ? error : fault_->BreakUnlessKnown(error);
}

// As much of the message as the socket takes now; true when all of it has left or the connection has ended (then `*error` is set).
bool Control::SendMore(Peer& peer, std::string_view head, std::string_view bytes, absl::Status* error) {
  const size_t total = head.size() + bytes.size();
  while (peer.sent < total) {
    const size_t head_sent = std::min(peer.sent, head.size());
    const size_t bytes_sent = peer.sent - head_sent;
    const iovec pieces[] = {{const_cast<char*>(head.data()) + head_sent, head.size() - head_sent},
                            {const_cast<char*>(bytes.data()) + bytes_sent, bytes.size() - bytes_sent}};
    size_t count = 0;
    const Transfer transfer = WriteSome(peer.socket.fd(), pieces, &count);
    if (transfer == Transfer::kWouldBlock) return false;
    if (transfer == Transfer::kClosed) {
      *error = absl::UnavailableError(absl::StrCat("rank ", peer.rank, " closed the plan connection"));
      return true;
    }
    peer.sent += count;
  }
  return true;
}

// True if a frame is there or could be read without waiting.
absl::StatusOr<bool> Control::NextFrame(Peer& peer, FrameKind kind, Message* message) {
  Frame frame;
  while (true) {
    const absl::StatusOr<bool> whole = peer.reader.Next(&frame);
    if (!whole.ok() || (*whole && frame.kind != kind)) {
      const std::string what = whole.ok() ? "a frame that has no place here" : std::string(whole.status().message());
      fault_->Break(absl::InternalError(absl::StrCat("rank ", peer.rank, " sent ", what)));
      return fault_->status();
    }
    if (*whole) {
      *message = {frame.step, frame.bytes};
      return true;
    }
    const std::span<char> space = peer.reader.Space();
    size_t count = 0;
    const Transfer transfer = ReadSome(peer.socket.fd(), space.data(), space.size(), &count);
    if (transfer == Transfer::kWouldBlock) return false;
    if (transfer == Transfer::kClosed) {
      return fault_->BreakUnlessKnown(absl::UnavailableError(absl::StrCat("rank ", peer.rank, " closed the plan connection")));
    }
    peer.reader.Commit(count);
  }
}

// Until a peer's socket has `events`; the verdict if the group breaks meanwhile, kDeadlineExceeded when `deadline` passes.
absl::Status Control::WaitFor(const std::vector<Peer*>& peers, short events, Time deadline) {
  std::vector<pollfd> entries = {{fault_->fd(), POLLIN, 0}};
  for (const Peer* peer : peers) entries.push_back({peer->socket.fd(), events, 0});
  const int ready = PollUntil(entries, deadline);
  if (fault_->broken()) return fault_->status();
  return ready > 0 ? absl::OkStatus() : absl::DeadlineExceededError("nothing came in time");
}

absl::Status Control::Late(const std::vector<Peer*>& peers, const char* what, uint64_t step) {
  const std::string ranks =
      absl::StrJoin(peers, ", ", [](std::string* out, const Peer* peer) { absl::StrAppend(out, peer->rank); });
  fault_->Break(absl::DeadlineExceededError(absl::StrCat("rank ", ranks, " ", what, " step ", step, " in time")));
  return fault_->status();
}

}  // namespace phalanx::worker::tp
