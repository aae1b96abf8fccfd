// worker/tp/hello.h: how two ranks prove to each other that they hold the same secret and run the same thing. Pure: bytes in, bytes out.
// Refuses to know: sockets, time. Thread: any.
// Neighbours: rendezvous_leader.cc and rendezvous_follower.cc send what is made here.
//
//   follower -> leader   kHello      who I am, what I expect, my nonce
//   leader -> follower   kChallenge  my nonce
//   follower -> leader   kProof      HMAC(secret, "follower" hello nonce terms), terms
//   leader -> follower   kWelcome    HMAC(secret, "leader" hello nonce terms)   or kRefused, a status
//   leader -> follower   kStart      when every rank is there                   or kRefused, a status
//
// The follower proves first: whoever can merely reach the leader's port gets nothing made with the secret, and learns nothing of the
// leader's terms. Each proof covers both nonces, so none can be used again, and names its side, so none can be sent back.
// The secret never travels. Later bytes are neither sealed nor encrypted: the network between ranks must be a private one.
// Source: HMAC-SHA256, RFC 2104 and FIPS 180-4 (OpenSSL).
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "services/status.h"

namespace phalanx::worker::tp {

constexpr size_t kNonceBytes = 32;
constexpr size_t kSessionBytes = 16;
constexpr size_t kProofBytes = 32;
constexpr size_t kTermsMax = 64;             // entries
constexpr size_t kTermNameBytesMax = 64;
constexpr size_t kTermValueBytesMax = 512;
constexpr size_t kHandshakeBytesMax = 48 << 10;  // the longest frame of a handshake

// What every rank must have equal, as names and values that may be shown to people: version, model digest, flags that shape a step.
using Terms = std::vector<std::pair<std::string, std::string>>;

// Each follower has two connections: plans and replies, and the pulse beside them.
enum class Channel : uint8_t { kPlan = 0, kPulse = 1 };

struct Hello {
  int rank = 0;
  int size = 0;                                // world size
  Channel channel = Channel::kPlan;
  std::array<char, kSessionBytes> session{};   // the same on both connections of one process
  std::array<char, kNonceBytes> nonce{};
};

std::string HelloBytes(const Hello& hello);
// kInvalidArgument unless `bytes` are exactly a hello.
absl::StatusOr<Hello> ParseHello(std::string_view bytes);

// kInvalidArgument naming the entry that is too long, empty or there twice.
absl::Status CheckTerms(const Terms& terms);
std::string TermsBytes(const Terms& terms);
absl::StatusOr<Terms> ParseTerms(std::string_view bytes);
// OK if equal, else kFailedPrecondition with the first name that differs and both values: "max_model_len is 4096 here and 2048 at rank 1".
absl::Status CompareTerms(const Terms& here, const Terms& there, int rank);

enum class Side { kFollower, kLeader };
// `hello`, `nonce` (the leader's) and `terms` (the follower's) as they travelled.
std::string Proof(std::string_view secret, Side side, std::string_view hello, std::string_view nonce, std::string_view terms);
// In constant time.
bool SameProof(std::string_view a, std::string_view b);

// From the system's generator; dies if that has none to give.
void FillRandom(char* to, size_t size);

}  // namespace phalanx::worker::tp
