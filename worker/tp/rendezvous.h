// worker/tp/rendezvous.h: how the ranks of one group find and trust each other, once, at start.
// Refuses to know: what the ranks will do together, models, flags. Thread: one, at start; every wait ends at `timeout_ms`.
// Neighbours: hello.h has the proofs, control.h takes the connections of a Meeting.
//
// Rank 0 listens, the others come to it, each with two connections (plans, pulse). A stranger, a liar, a late or doubled rank is
// refused with a sentence or times out, and the right ranks meet all the same. If a rank that had come goes away again before all are
// there, its place is free again.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "services/status.h"
#include "worker/tp/hello.h"
#include "worker/tp/socket.h"

namespace phalanx::worker::tp {

constexpr int kRanksMax = 64;
constexpr size_t kSecretBytesMin = 16;

struct RendezvousOptions {
  int rank = 0;                              // of this process, [0, size)
  int size = 1;                              // ranks in the group, [1, kRanksMax]
  std::string master_address = "127.0.0.1";  // where rank 0 is: a name or a number
  int master_port = 0;                       // 0: any free one, for rank 0 only (Rendezvous::port)
  // The interface ("eth0") or numeric address that this rank's sockets are bound to, and no other. Empty: rank 0 binds
  // `master_address`, the others take what leads to it. 0.0.0.0 must be asked for, here or as `master_address`.
  std::string interface;
  std::string secret;                        // ReadSecret; empty: only loopback addresses are accepted
  int timeout_ms = 60000;                    // until all must have come
  int handshake_ms = 3000;                   // what one connection may take to prove itself
};

// kInvalidArgument naming the field.
absl::Status CheckOptions(const RendezvousOptions& options);

// The secret in `file`, without trailing white space; with no file, the value of `variable`; "" if neither is given. Errors: kNotFound (no
// such file), kInvalidArgument (shorter than kSecretBytesMin, or empty though a file was named). The secret is in no message.
absl::StatusOr<std::string> ReadSecret(const std::string& file, const char* variable = "PHALANX_TP_SECRET");

// Which hosts take part. `nnodes` hosts have equally many ranks; host `node_rank` has ranks [first, first + count).
struct Nodes {
  int nnodes = 1;
  int node_rank = 0;
  std::string master_address;
};
struct RankRange {
  int first = 0;
  int count = 0;
};
// kInvalidArgument if `size` does not divide or `node_rank` is none of them.
absl::StatusOr<RankRange> RanksOfNode(const Nodes& nodes, int size);

// What LeaderWorkerSet tells a pod: LWS_GROUP_SIZE hosts, LWS_WORKER_INDEX (0 = leader), LWS_LEADER_ADDRESS. `get` is getenv. False and no
// change if none of the three is set; kInvalidArgument naming the variable if some are missing or no numbers in range.
// Source: lws.sigs.k8s.io, reference of environment variables, v1.
absl::StatusOr<bool> NodesFromLeaderWorkerSet(const std::function<const char*(const char*)>& get, Nodes* nodes);

// Two connections to one other rank.
struct Link {
  int rank = 0;
  Socket plan;
  Socket pulse;
};

// A group that has met.
struct Meeting {
  int rank = 0;
  int size = 1;
  std::string local_host = "127.0.0.1";  // numeric address of this rank's end, for sockets of its own
  std::vector<Link> links;               // of rank 0: to ranks 1, 2, ... in order. Of the others: to rank 0
};

// Rank 0's part.
class Rendezvous {
 public:
  // Errors: kInvalidArgument (options; an address that is not loopback without a secret), kNotFound (no such address), kUnavailable
  // (taken).
  static absl::StatusOr<Rendezvous> Listen(const RendezvousOptions& options);
  int port() const;
  // Waits for all ranks, then stops listening. kDeadlineExceeded names the ranks that did not come; those that came are told.
  absl::StatusOr<Meeting> Gather(const Terms& terms);

 private:
  Rendezvous(RendezvousOptions options, Socket listener) : options_(std::move(options)), listener_(std::move(listener)) {}
  RendezvousOptions options_;
  Socket listener_;
};

// Another rank's part: comes to rank 0, again and again until it is there. Errors: what rank 0 refused it with (kPermissionDenied: wrong
// secret; kInvalidArgument: world size or rank; kAlreadyExists: that rank is there; kFailedPrecondition: other terms or protocol);
// kUnauthenticated (that rank 0 does not hold the secret); kUnavailable (rank 0 went away while others were awaited); kDeadlineExceeded.
absl::StatusOr<Meeting> Join(const RendezvousOptions& options, const Terms& terms);

// Either part. For one rank alone there is nobody to meet.
absl::StatusOr<Meeting> Meet(const RendezvousOptions& options, const Terms& terms);

}  // namespace phalanx::worker::tp
