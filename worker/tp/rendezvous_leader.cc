// Rank 0's part of the rendezvous: one poll loop over the listener, connections that have still to prove themselves, and ranks that came.
#include <algorithm>
#include <list>
#include <map>

#include <sys/uio.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/log.h"
#include "worker/tp/frame.h"
#include "worker/tp/rendezvous.h"

namespace phalanx::worker::tp {
namespace {

constexpr size_t kStrangersMax = 64;  // connections without proof at a time; one more drops the oldest
constexpr int kLogLinesMax = 16;      // about refused connections; a flood must not fill a disk

// A connection that has not proved anything yet.
struct Stranger {
  Socket socket;
  Time deadline;
  FrameReader reader{kHandshakeBytesMax};
  std::string peer;         // address, for log lines
  std::string hello_bytes;  // empty until the hello has come
  Hello hello;
  std::string nonce;        // ours
};

// Connections of a rank that proved itself.
struct Comer {
  std::array<char, kSessionBytes> session{};
  Socket plan;
  Socket pulse;
  bool complete() const { return plan.open() && pulse.open(); }
};

// Small frames to a socket that has nothing else in flight always fit its buffer; a peer for which that fails is as good as gone.
bool Send(const Socket& socket, FrameKind kind, std::string_view bytes) {
  const std::string frame = FrameBytes({kind, 0, bytes});
  const iovec piece = {const_cast<char*>(frame.data()), frame.size()};
  size_t count = 0;
  return WriteSome(socket.fd(), {&piece, 1}, &count) == Transfer::kDone && count == frame.size();
}

class Gathering {
 public:
  Gathering(const RendezvousOptions& options, const Terms& terms, const Socket& listener)
      : options_(options), terms_(terms), listener_(listener) {}

  absl::StatusOr<Meeting> Run() {
    const Time deadline = Now() + milliseconds(options_.timeout_ms);
    while (!Complete()) {
      if (Now() >= deadline) return GiveUp();
      Turn(deadline);
    }
    return Start();
  }

 private:
  bool Complete() const {
    return static_cast<int>(comers_.size()) == options_.size - 1 &&
           std::all_of(comers_.begin(), comers_.end(), [](const auto& entry) { return entry.second.complete(); });
  }

  // Waits for events and serves each once.
  void Turn(Time deadline) {
    std::vector<pollfd> entries = {{listener_.fd(), POLLIN, 0}};
    for (const Stranger& stranger : strangers_) {
      entries.push_back({stranger.socket.fd(), POLLIN, 0});
      deadline = std::min(deadline, stranger.deadline);
    }
    std::vector<int> ranks;
    for (const auto& [rank, comer] : comers_) {
      for (const Socket* socket : {&comer.plan, &comer.pulse}) {
        if (!socket->open()) continue;
        entries.push_back({socket->fd(), POLLIN, 0});
        ranks.push_back(rank);
      }
    }
    PollUntil(entries, deadline);
    // A rank that came has nothing to say until the start: an event is its end, or a breach.
    for (size_t i = 0; i < ranks.size(); ++i) {
      if (entries[entries.size() - ranks.size() + i].revents != 0) Forget(ranks[i]);
    }
    size_t i = 1;
    for (auto stranger = strangers_.begin(); stranger != strangers_.end(); ++i) {
      const bool keep = entries[i].revents != 0 ? Hear(*stranger) : Now() < stranger->deadline || Drop(*stranger, "it took too long");
      stranger = keep ? std::next(stranger) : strangers_.erase(stranger);
    }
    if (entries[0].revents != 0) AcceptAll();
  }

  void AcceptAll() {
    for (size_t i = 0; i < kStrangersMax; ++i) {
      Socket socket = Accept(listener_);
      if (!socket.open()) return;
      if (strangers_.size() == kStrangersMax) {
        Drop(strangers_.front(), "there are too many that have proved nothing");
        strangers_.pop_front();
      }
      Stranger& stranger = strangers_.emplace_back();
      const Endpoint peer = RemoteEndpoint(socket);
      stranger.peer = peer.Text();
      stranger.socket = std::move(socket);
      stranger.deadline = Now() + milliseconds(options_.handshake_ms);
      if (options_.secret.empty() && !peer.IsLoopback()) {
        Refuse(stranger, absl::PermissionDeniedError("without a secret only loopback addresses are accepted"));
        strangers_.pop_back();
      }
    }
  }

  // Takes what has come on a connection. False: it is done with, or became a rank.
  bool Hear(Stranger& stranger) {
    const std::span<char> space = stranger.reader.Space();
    size_t count = 0;
    const Transfer transfer = ReadSome(stranger.socket.fd(), space.data(), space.size(), &count);
    if (transfer == Transfer::kWouldBlock) return true;
    if (transfer == Transfer::kClosed) return Drop(stranger, "it closed before it proved itself");
    stranger.reader.Commit(count);
    Frame frame;
    while (true) {
      const absl::StatusOr<bool> whole = stranger.reader.Next(&frame);
      if (!whole.ok()) {
        // Another version of ourselves deserves to know; anything else is noise.
        if (whole.status().code() == absl::StatusCode::kFailedPrecondition) return Refuse(stranger, whole.status());
        return Drop(stranger, std::string(whole.status().message()));
      }
      if (!*whole) return true;
      if (stranger.hello_bytes.empty()) {
        if (!TakeHello(stranger, frame)) return false;
      } else {
        TakeProof(stranger, frame);
        return false;
      }
    }
  }

  bool TakeHello(Stranger& stranger, const Frame& frame) {
    const absl::StatusOr<Hello> hello = ParseHello(frame.bytes);
    if (frame.kind != FrameKind::kHello || !hello.ok()) return Drop(stranger, "its first frame is no hello");
    stranger.hello = *hello;
    stranger.hello_bytes = std::string(frame.bytes);
    stranger.nonce.resize(kNonceBytes);
    FillRandom(stranger.nonce.data(), stranger.nonce.size());
    return Send(stranger.socket, FrameKind::kChallenge, stranger.nonce) || Drop(stranger, "it does not read");
  }

  void TakeProof(Stranger& stranger, const Frame& frame) {
    if (frame.kind != FrameKind::kProof || frame.bytes.size() < kProofBytes) {
      Drop(stranger, "its second frame is no proof");
      return;
    }
    const std::string_view terms = frame.bytes.substr(kProofBytes);
    const std::string wanted = Proof(options_.secret, Side::kFollower, stranger.hello_bytes, stranger.nonce, terms);
    if (!SameProof(frame.bytes.substr(0, kProofBytes), wanted)) {
      Refuse(stranger, absl::PermissionDeniedError(absl::StrCat("rank ", stranger.hello.rank, " does not have the secret of rank 0")));
      return;
    }
    if (const absl::Status fit = Fits(stranger.hello, terms); !fit.ok()) {
      Refuse(stranger, fit);
      return;
    }
    const std::string answer = Proof(options_.secret, Side::kLeader, stranger.hello_bytes, stranger.nonce, terms);
    if (!Send(stranger.socket, FrameKind::kWelcome, answer)) {
      Drop(stranger, "it does not read");
      return;
    }
    Comer& comer = comers_[stranger.hello.rank];
    comer.session = stranger.hello.session;
    (stranger.hello.channel == Channel::kPlan ? comer.plan : comer.pulse) = std::move(stranger.socket);
  }

  // Whether a rank that holds the secret belongs here.
  absl::Status Fits(const Hello& hello, std::string_view terms) const {
    if (hello.size != options_.size) {
      return absl::InvalidArgumentError(
          absl::StrCat("world size is ", options_.size, " at rank 0 and ", hello.size, " at rank ", hello.rank));
    }
    if (hello.rank < 1 || hello.rank >= options_.size) {
      return absl::InvalidArgumentError(absl::StrCat("rank ", hello.rank, " has no place among ", options_.size, " ranks beside rank 0"));
    }
    const auto there = comers_.find(hello.rank);
    if (there != comers_.end()) {
      const Socket& taken = hello.channel == Channel::kPlan ? there->second.plan : there->second.pulse;
      if (there->second.session != hello.session || taken.open()) {
        return absl::AlreadyExistsError(absl::StrCat("rank ", hello.rank, " is here already"));
      }
    }
    PHX_ASSIGN_OR_RETURN(const Terms theirs, ParseTerms(terms));
    return CompareTerms(terms_, theirs, hello.rank);
  }

  bool Refuse(const Stranger& stranger, const absl::Status& reason) {
    Send(stranger.socket, FrameKind::kRefused, StatusBytes(reason));
    return Drop(stranger, std::string(reason.message()));
  }

  // Always false, for the callers' sake.
  bool Drop(const Stranger& stranger, std::string_view reason) {
    if (++dropped_ <= kLogLinesMax) services::LogWarning("rendezvous: refused {}: {}", stranger.peer, reason);
    if (dropped_ == kLogLinesMax) services::LogWarning("rendezvous: further refusals are not logged");
    return false;
  }

  void Forget(int rank) {
    if (comers_.erase(rank) != 0) services::LogWarning("rendezvous: rank {} came and went away again", rank);
  }

  absl::Status GiveUp() {
    std::vector<int> missing;
    for (int rank = 1; rank < options_.size; ++rank) {
      const auto comer = comers_.find(rank);
      if (comer == comers_.end() || !comer->second.complete()) missing.push_back(rank);
    }
    const absl::Status reason = absl::DeadlineExceededError(
        absl::StrCat(missing.size() == 1 ? "rank " : "ranks ", absl::StrJoin(missing, ", "), " of ", options_.size, " did not come within ",
                     options_.timeout_ms / 1000.0, " s"));
    for (const auto& [rank, comer] : comers_) {
      if (comer.plan.open()) Send(comer.plan, FrameKind::kRefused, StatusBytes(reason));
    }
    return reason;
  }

  Meeting Start() {
    Meeting out;
    out.size = options_.size;
    out.local_host = LocalEndpoint(comers_.begin()->second.plan).Host();
    for (auto& [rank, comer] : comers_) {
      // One that is gone by now is noticed by control within a heartbeat, with its name.
      Send(comer.plan, FrameKind::kStart, {});
      out.links.push_back({rank, std::move(comer.plan), std::move(comer.pulse)});
    }
    return out;
  }

  const RendezvousOptions& options_;
  const Terms& terms_;
  const Socket& listener_;
  std::list<Stranger> strangers_;  // oldest first
  std::map<int, Comer> comers_;    // by rank
  int dropped_ = 0;
};

}  // namespace

absl::StatusOr<Rendezvous> Rendezvous::Listen(const RendezvousOptions& options) {
  PHX_RETURN_IF_ERROR(CheckOptions(options));
  absl::StatusOr<Endpoint> endpoint = options.interface.empty() ? Resolve(options.master_address, options.master_port)
                                                                : InterfaceEndpoint(options.interface, options.master_port);
  if (!endpoint.ok()) return endpoint.status();
  if (options.secret.empty() && !endpoint->IsLoopback()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ranks on ", endpoint->Host(), " need a shared secret; without one only loopback is served"));
  }
  PHX_ASSIGN_OR_RETURN(Socket listener, tp::Listen(*endpoint));
  return Rendezvous(options, std::move(listener));
}

int Rendezvous::port() const { return LocalEndpoint(listener_).Port(); }

absl::StatusOr<Meeting> Rendezvous::Gather(const Terms& terms) {
  PHX_RETURN_IF_ERROR(CheckTerms(terms));
  if (options_.size == 1) return Meeting{};
  absl::StatusOr<Meeting> out = Gathering(options_, terms, listener_).Run();
  listener_.Close();
  return out;
}

}  // namespace phalanx::worker::tp
