// Ranks as threads meet over loopback, while liars, strangers and lost ranks do their worst.
#include "worker/tp/rendezvous.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/uio.h>

#include <future>
#include <thread>

#include "worker/tp/frame.h"

namespace phalanx::worker::tp {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kSecret[] = "a secret of some length";

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Rank 0 gathering on a thread of its own, and the options that the others need.
class Leader {
 public:
  explicit Leader(int size, int timeout_ms = 5000, Terms terms = {{"model", "abc"}}) {
    options_.size = size;
    options_.timeout_ms = timeout_ms;
    options_.handshake_ms = 400;
    options_.secret = kSecret;
    rendezvous_.emplace(*Rendezvous::Listen(options_));
    options_.master_port = rendezvous_->port();
    meeting_ = std::async(std::launch::async, [this, terms] { return rendezvous_->Gather(terms); });
  }
  RendezvousOptions Options(int rank) const {
    RendezvousOptions out = options_;
    out.rank = rank;
    return out;
  }
  absl::StatusOr<Meeting> Result() { return meeting_.get(); }
  Socket Stranger() const { return *Connect(*Resolve("127.0.0.1", options_.master_port), {}, Now() + std::chrono::seconds(2)); }

 private:
  RendezvousOptions options_;
  std::optional<Rendezvous> rendezvous_;
  std::future<absl::StatusOr<Meeting>> meeting_;
};

std::future<absl::StatusOr<Meeting>> JoinLater(const RendezvousOptions& options, const Terms& terms = {{"model", "abc"}}) {
  return std::async(std::launch::async, [options, terms] { return Join(options, terms); });
}

void Write(const Socket& socket, std::string_view bytes) {
  const iovec piece = {const_cast<char*>(bytes.data()), bytes.size()};
  size_t count = 0;
  WriteSome(socket.fd(), {&piece, 1}, &count);
}

// Waits until the other side has closed, at most 2 s.
bool Closed(const Socket& socket) {
  const Time deadline = Now() + std::chrono::seconds(2);
  char bytes[1024];
  size_t count = 0;
  while (Now() < deadline) {
    pollfd entry = {socket.fd(), POLLIN, 0};
    PollUntil({&entry, 1}, deadline);
    if (ReadSome(socket.fd(), bytes, sizeof(bytes), &count) == Transfer::kClosed) return true;
  }
  return false;
}

void ExpectMet(const absl::StatusOr<Meeting>& meeting, int rank, int size) {
  ASSERT_TRUE(meeting.ok()) << meeting.status();
  EXPECT_EQ(meeting->rank, rank);
  EXPECT_EQ(meeting->size, size);
  EXPECT_EQ(meeting->local_host, "127.0.0.1");
  ASSERT_EQ(static_cast<int>(meeting->links.size()), rank == 0 ? size - 1 : 1);
  for (int i = 0; rank == 0 && i < size - 1; ++i) EXPECT_EQ(meeting->links[static_cast<size_t>(i)].rank, i + 1);
}

TEST(Rendezvous, OneRankMeetsNobody) { ExpectMet(Meet({}, {}), 0, 1); }

TEST(Rendezvous, FourMeet) {
  Leader leader(4);
  std::vector<std::future<absl::StatusOr<Meeting>>> others;
  for (const int rank : {3, 1, 2}) others.push_back(JoinLater(leader.Options(rank)));
  ExpectMet(leader.Result(), 0, 4);
  ExpectMet(others[0].get(), 3, 4);
  ExpectMet(others[1].get(), 1, 4);
  ExpectMet(others[2].get(), 2, 4);
}

TEST(Rendezvous, FollowerMayComeFirst) {
  Socket probe = *Listen(*Resolve("127.0.0.1", 0));
  RendezvousOptions options;
  options.size = 2;
  options.timeout_ms = 5000;
  options.master_port = LocalEndpoint(probe).Port();
  probe.Close();
  RendezvousOptions follower = options;
  follower.rank = 1;
  auto other = JoinLater(follower);
  std::this_thread::sleep_for(milliseconds(100));
  ExpectMet(Meet(options, {{"model", "abc"}}), 0, 2);
  ExpectMet(other.get(), 1, 2);
}

// The next frame of this connection; at most 2 s.
std::string NextFrame(const Socket& socket, FrameReader& reader) {
  const Time deadline = Now() + std::chrono::seconds(2);
  Frame frame;
  while (!*reader.Next(&frame) && Now() < deadline) {
    pollfd entry = {socket.fd(), POLLIN, 0};
    PollUntil({&entry, 1}, deadline);
    const std::span<char> space = reader.Space();
    size_t count = 0;
    ReadSome(socket.fd(), space.data(), space.size(), &count);
    reader.Commit(count);
  }
  return std::string(frame.bytes);
}

// A scripted rank 0 sends the first plan right behind the start, and the first heartbeat right behind the welcome.
TEST(Rendezvous, WhatFollowsTheHandshakeStaysInTheSocket) {
  const Socket listener = *Listen(*Resolve("127.0.0.1", 0));
  RendezvousOptions options;
  options.size = 2;
  options.rank = 1;
  options.secret = kSecret;
  options.timeout_ms = 3000;
  options.master_port = LocalEndpoint(listener).Port();
  auto other = JoinLater(options);
  std::vector<Socket> sockets;
  const std::string nonce(kNonceBytes, 'n');
  for (const std::string& start : {FrameBytes({FrameKind::kStart, 0, {}}), std::string()}) {
    pollfd entry = {listener.fd(), POLLIN, 0};
    ASSERT_EQ(PollUntil({&entry, 1}, Now() + std::chrono::seconds(2)), 1);
    sockets.push_back(Accept(listener));
    FrameReader reader(kHandshakeBytesMax);
    const std::string hello = NextFrame(sockets.back(), reader);
    Write(sockets.back(), FrameBytes({FrameKind::kChallenge, 0, nonce}));
    const std::string terms = NextFrame(sockets.back(), reader).substr(kProofBytes);
    const std::string proof = Proof(kSecret, Side::kLeader, hello, nonce, terms);
    Write(sockets.back(), FrameBytes({FrameKind::kWelcome, 0, proof}) + start + "next");
  }
  const absl::StatusOr<Meeting> meeting = other.get();
  ASSERT_TRUE(meeting.ok()) << meeting.status();
  for (const Socket* socket : {&meeting->links[0].plan, &meeting->links[0].pulse}) {
    char bytes[16];
    size_t count = 0;
    ASSERT_EQ(ReadSome(socket->fd(), bytes, sizeof(bytes), &count), Transfer::kDone);
    EXPECT_EQ(std::string_view(bytes, count), "next");
  }
}

TEST(Rendezvous, WrongOnesAreRefusedAndTheRightOnesMeet) {
  Leader leader(3);
  const auto refusal = [&](auto change, const Terms& terms = {{"model", "abc"}}) {
    RendezvousOptions options = leader.Options(1);
    change(options);
    return Join(options, terms).status();
  };
  absl::Status status = refusal([](auto& o) { o.secret = "another secret, as long"; });
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(Message(status), AllOf(HasSubstr("rank 1 does not have the secret"), testing::Not(HasSubstr("another secret"))));
  EXPECT_EQ(refusal([](auto& o) { o.secret = ""; }).code(), absl::StatusCode::kPermissionDenied);
  status = refusal([](auto& o) { o.size = 4; });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("world size is 3 at rank 0 and 4 at rank 1"));
  status = refusal([](auto& o) { o.size = 9, o.rank = 7; });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  status = refusal([](auto&) {}, {{"model", "xyz"}});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("model is abc here and xyz at rank 1"));

  auto one = JoinLater(leader.Options(1));
  std::this_thread::sleep_for(milliseconds(50));
  status = refusal([](auto&) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Message(status), HasSubstr("rank 1 is here already"));
  auto two = JoinLater(leader.Options(2));
  ExpectMet(leader.Result(), 0, 3);
  ExpectMet(one.get(), 1, 3);
  ExpectMet(two.get(), 2, 3);
}

TEST(Rendezvous, GarbageAndSlowlorisDoNotHinder) {
  Leader leader(2);
  std::vector<Socket> garbage;
  std::vector<Socket> slow;
  for (int i = 0; i < 10; ++i) {
    garbage.push_back(leader.Stranger());
    Write(garbage.back(), i % 2 == 0 ? "GET / HTTP/1.1\r\nHost: x\r\n\r\n" : std::string(4096, '\xff'));
  }
  for (int i = 0; i < 100; ++i) slow.push_back(leader.Stranger());  // more than may be unproven at a time: the oldest go
  Write(slow[99], "PX\x01");
  Write(slow[98], FrameBytes({FrameKind::kHello, 0, HelloBytes({1, 2})}));
  std::string hello_twice = FrameBytes({FrameKind::kHello, 0, HelloBytes({1, 2})});
  Write(slow[97], hello_twice + hello_twice);
  for (const Socket& socket : garbage) EXPECT_TRUE(Closed(socket));
  EXPECT_TRUE(Closed(slow[0]));
  EXPECT_TRUE(Closed(slow[97]));
  EXPECT_TRUE(Closed(slow[98]));  // after handshake_ms
  EXPECT_TRUE(Closed(slow[99]));
  auto other = JoinLater(leader.Options(1));
  ExpectMet(leader.Result(), 0, 2);
  ExpectMet(other.get(), 1, 2);
}

TEST(Rendezvous, AProofIsGoodOnce) {
  // What an eavesdropper heard of one handshake opens no other: the leader's nonce is another one.
  Leader leader(2);
  const std::string hello = HelloBytes({1, 2});
  Socket socket = leader.Stranger();
  const std::string old_nonce(kNonceBytes, 'n');
  const std::string terms = TermsBytes({{"model", "abc"}});
  Write(socket, FrameBytes({FrameKind::kHello, 0, hello}) +
                    FrameBytes({FrameKind::kProof, 0, Proof(kSecret, Side::kFollower, hello, old_nonce, terms) + terms}));
  EXPECT_TRUE(Closed(socket));
  auto other = JoinLater(leader.Options(1));
  ExpectMet(leader.Result(), 0, 2);
  ExpectMet(other.get(), 1, 2);
}

TEST(Rendezvous, ALeaderWithoutTheSecretIsFoundOut) {
  const Socket listener = *Listen(*Resolve("127.0.0.1", 0));
  RendezvousOptions options;
  options.size = 2;
  options.rank = 1;
  options.secret = kSecret;
  options.timeout_ms = 3000;
  options.master_port = LocalEndpoint(listener).Port();
  auto other = JoinLater(options);
  pollfd entry = {listener.fd(), POLLIN, 0};
  ASSERT_EQ(PollUntil({&entry, 1}, Now() + std::chrono::seconds(2)), 1);
  const Socket socket = Accept(listener);
  Write(socket, FrameBytes({FrameKind::kChallenge, 0, std::string(kNonceBytes, 'n')}) +
                    FrameBytes({FrameKind::kWelcome, 0, std::string(kProofBytes, 'p')}));
  const absl::Status status = other.get().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(Message(status), HasSubstr("does not have the secret"));
}

TEST(Rendezvous, ARankThatDoesNotComeIsNamedEverywhere) {
  Leader leader(4, 300);
  auto one = JoinLater(leader.Options(1));
  const absl::Status status = leader.Result().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(status), HasSubstr("ranks 2, 3 of 4 did not come within 0.3 s"));
  const absl::Status there = one.get().status();
  EXPECT_EQ(there.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(there), HasSubstr("ranks 2, 3 of 4"));
}

TEST(Rendezvous, ALateRankFindsNobody) {
  Leader leader(2);
  auto one = JoinLater(leader.Options(1));
  ExpectMet(leader.Result(), 0, 2);
  ExpectMet(one.get(), 1, 2);
  RendezvousOptions late = leader.Options(1);
  late.timeout_ms = 200;
  const absl::Status status = Join(late, {{"model", "abc"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(status), HasSubstr("Connection refused"));
}

TEST(Rendezvous, ARankThatWentAwayMayComeAgain) {
  Leader leader(3);
  RendezvousOptions gone = leader.Options(1);
  gone.timeout_ms = 100;
  gone.handshake_ms = 100;
  EXPECT_FALSE(Join(gone, {{"model", "abc"}}).ok());  // gave up, as a killed one would
  auto one = JoinLater(leader.Options(1));
  auto two = JoinLater(leader.Options(2));
  ExpectMet(leader.Result(), 0, 3);
  ExpectMet(one.get(), 1, 3);
  ExpectMet(two.get(), 2, 3);
}

TEST(Rendezvous, WithoutASecretOnlyLoopback) {
  RendezvousOptions options;
  options.size = 2;
  options.master_address = "0.0.0.0";
  absl::Status status = Rendezvous::Listen(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("need a shared secret"));
  options.rank = 1;
  options.master_port = 9;
  options.master_address = "192.0.2.1";
  EXPECT_EQ(Join(options, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Rendezvous, BindsTheInterfaceThatWasAskedFor) {
  RendezvousOptions options;
  options.size = 2;
  options.secret = kSecret;
  options.timeout_ms = 3000;
  options.interface = "127.0.0.5";
  absl::StatusOr<Rendezvous> rendezvous = Rendezvous::Listen(options);
  ASSERT_TRUE(rendezvous.ok());
  const int port = rendezvous->port();
  EXPECT_FALSE(Connect(*Resolve("127.0.0.1", port), {}, Now() + std::chrono::seconds(1)).ok());
  RendezvousOptions follower = options;
  follower.rank = 1;
  follower.master_address = "127.0.0.5";
  follower.master_port = port;
  follower.interface = "127.0.0.6";
  auto other = JoinLater(follower, {});
  ASSERT_TRUE(rendezvous->Gather({}).ok());
  const absl::StatusOr<Meeting> meeting = other.get();
  ASSERT_TRUE(meeting.ok());
  EXPECT_EQ(meeting->local_host, "127.0.0.6");
}

TEST(Rendezvous, ATakenPortIsNamed) {
  const Socket listener = *Listen(*Resolve("127.0.0.1", 0));
  RendezvousOptions options;
  options.size = 2;
  options.master_port = LocalEndpoint(listener).Port();
  const absl::Status status = Rendezvous::Listen(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr(std::to_string(options.master_port)));
}

}  // namespace
}  // namespace phalanx::worker::tp
