// The other ranks' part of the rendezvous: two connections to rank 0, tried until it is there, then the wait for the start.
#include <sys/uio.h>

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "worker/tp/frame.h"
#include "worker/tp/rendezvous.h"

namespace phalanx::worker::tp {
namespace {

constexpr milliseconds kPauseMin(20);  // between attempts, doubling
constexpr milliseconds kPauseMax(500);

// One connection in its handshake. A status of kUnavailable means: try again; anything else is final.
class Handshake {
 public:
  Handshake(const Socket& socket, Time deadline, std::string place) : socket_(socket), deadline_(deadline), place_(std::move(place)) {}

  absl::Status Run(const RendezvousOptions& options, const Hello& hello, const Terms& terms) {
    const std::string hello_bytes = HelloBytes(hello);
    const std::string terms_bytes = TermsBytes(terms);
    PHX_RETURN_IF_ERROR(Send(FrameKind::kHello, hello_bytes));
    PHX_ASSIGN_OR_RETURN(const std::string nonce, Receive(FrameKind::kChallenge));
    if (nonce.size() != kNonceBytes) return absl::UnauthenticatedError(absl::StrCat("what listens on ", place_, " is no rank 0"));
    const std::string proof = Proof(options.secret, Side::kFollower, hello_bytes, nonce, terms_bytes);
    PHX_RETURN_IF_ERROR(Send(FrameKind::kProof, absl::StrCat(proof, terms_bytes)));
    PHX_ASSIGN_OR_RETURN(const std::string answer, Receive(FrameKind::kWelcome));
    if (!SameProof(answer, Proof(options.secret, Side::kLeader, hello_bytes, nonce, terms_bytes))) {
      return absl::UnauthenticatedError(absl::StrCat("rank 0 on ", place_, " does not have the secret of rank ", options.rank));
    }
    return absl::OkStatus();
  }

  // The bytes of the next frame, which must be of this kind. A refusal becomes its status.
  absl::StatusOr<std::string> Receive(FrameKind kind) {
    Frame frame;
    while (true) {
      const absl::StatusOr<bool> whole = reader_.Next(&frame);
      if (!whole.ok()) return absl::Status(whole.status().code(), absl::StrCat("what listens on ", place_, ": ", whole.status().message()));
      if (*whole) break;
      const std::span<char> space = reader_.Space();
      size_t count = 0;
      // Not a byte more than this frame: what follows belongs to whoever has the connection next.
      const Transfer transfer = ReadSome(socket_.fd(), space.data(), std::min(space.size(), reader_.missing()), &count);
      if (transfer == Transfer::kClosed) return absl::UnavailableError(absl::StrCat("rank 0 on ", place_, " closed the connection"));
      reader_.Commit(count);
      pollfd entry = {socket_.fd(), POLLIN, 0};
      if (transfer == Transfer::kWouldBlock && PollUntil({&entry, 1}, deadline_) == 0) {
        return absl::UnavailableError(absl::StrCat("rank 0 on ", place_, " does not answer"));
      }
    }
    if (frame.kind == FrameKind::kRefused) return Final(StatusFromBytes(frame.bytes));
    if (frame.kind != kind) return absl::UnauthenticatedError(absl::StrCat("what listens on ", place_, " is no rank 0"));
    return std::string(frame.bytes);
  }

 private:
  // kUnavailable is our own word for "try again"; a refusal with that code must not be taken for it.
  static absl::Status Final(const absl::Status& refused) {
    const auto code = refused.code() == absl::StatusCode::kUnavailable ? absl::StatusCode::kUnknown : refused.code();
    return absl::Status(code, absl::StrCat("refused by rank 0: ", refused.message()));
  }

  absl::Status Send(FrameKind kind, std::string_view bytes) {
    const std::string frame = FrameBytes({kind, 0, bytes});
    size_t done = 0;
    while (done < frame.size()) {
      const iovec piece = {const_cast<char*>(frame.data()) + done, frame.size() - done};
      size_t count = 0;
      const Transfer transfer = WriteSome(socket_.fd(), {&piece, 1}, &count);
      // What it had to say before it closed is still to be read.
      if (transfer == Transfer::kClosed) return absl::OkStatus();
      pollfd entry = {socket_.fd(), POLLOUT, 0};
      if (transfer == Transfer::kWouldBlock && PollUntil({&entry, 1}, deadline_) == 0) {
        return absl::UnavailableError(absl::StrCat("rank 0 on ", place_, " does not read"));
      }
      done += count;
    }
    return absl::OkStatus();
  }

  const Socket& socket_;
  const Time deadline_;
  const std::string place_;
  FrameReader reader_{kHandshakeBytesMax};
};

absl::StatusOr<Socket> ConnectOnce(const RendezvousOptions& options, const Hello& hello, const Terms& terms, Time deadline) {
  const Time limit = std::min(deadline, Now() + milliseconds(options.handshake_ms));
  absl::StatusOr<Endpoint> to = Resolve(options.master_address, options.master_port);
  // The name of a pod may come to exist only later.
  if (!to.ok()) return absl::UnavailableError(to.status().message());
  if (options.secret.empty() && !to->IsLoopback()) {
    return absl::InvalidArgumentError(absl::StrCat("rank 0 on ", to->Host(), " needs a shared secret; without one only loopback is used"));
  }
  Endpoint from;
  if (!options.interface.empty()) {
    PHX_ASSIGN_OR_RETURN(from, InterfaceEndpoint(options.interface, 0));
  }
  PHX_ASSIGN_OR_RETURN(Socket socket, Connect(*to, from, limit));
  PHX_RETURN_IF_ERROR(Handshake(socket, limit, to->Text()).Run(options, hello, terms));
  return socket;
}

absl::StatusOr<Socket> ConnectUntil(const RendezvousOptions& options, const Hello& hello, const Terms& terms, Time deadline) {
  milliseconds pause = kPauseMin;
  while (true) {
    absl::StatusOr<Socket> socket = ConnectOnce(options, hello, terms, deadline);
    if (socket.status().code() != absl::StatusCode::kUnavailable) return socket;
    if (Now() + pause >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("rank ", options.rank, " found no rank 0 within ", options.timeout_ms / 1000.0,
                                                      " s: ", socket.status().message()));
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, kPauseMax);
  }
}

}  // namespace

absl::StatusOr<Meeting> Join(const RendezvousOptions& options, const Terms& terms) {
  PHX_RETURN_IF_ERROR(CheckOptions(options));
  PHX_RETURN_IF_ERROR(CheckTerms(terms));
  if (options.rank == 0) return absl::InvalidArgumentError("rank 0 gathers, it does not join");
  const Time deadline = Now() + milliseconds(options.timeout_ms);
  Hello hello;
  hello.rank = options.rank;
  hello.size = options.size;
  FillRandom(hello.session.data(), hello.session.size());
  Link link;
  for (const Channel channel : {Channel::kPlan, Channel::kPulse}) {
    hello.channel = channel;
    FillRandom(hello.nonce.data(), hello.nonce.size());
    Socket& socket = channel == Channel::kPlan ? link.plan : link.pulse;
    PHX_ASSIGN_OR_RETURN(socket, ConnectUntil(options, hello, terms, deadline));
  }
  // Rank 0 has the same time limit but may have begun later, and tells its own verdict: it gets a little more.
  const Time start = deadline + milliseconds(options.handshake_ms);
  const std::string place = RemoteEndpoint(link.plan).Text();
  const absl::StatusOr<std::string> started = Handshake(link.plan, start, place).Receive(FrameKind::kStart);
  if (!started.ok()) {
    const bool silent = started.status().code() == absl::StatusCode::kUnavailable && Now() >= start;
    return absl::Status(silent ? absl::StatusCode::kDeadlineExceeded : started.status().code(),
                        absl::StrCat(started.status().message(), " (rank ", options.rank, " waited for the others)"));
  }
  Meeting out;
  out.rank = options.rank;
  out.size = options.size;
  out.local_host = LocalEndpoint(link.plan).Host();
  out.links.push_back(std::move(link));
  return out;
}

}  // namespace phalanx::worker::tp
