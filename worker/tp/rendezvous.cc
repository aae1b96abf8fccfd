#include "worker/tp/rendezvous.h"

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace phalanx::worker::tp {

absl::Status CheckOptions(const RendezvousOptions& options) {
  if (options.size < 1 || options.size > kRanksMax) {
    return absl::InvalidArgumentError(absl::StrCat("world size ", options.size, " is not in [1, ", kRanksMax, "]"));
  }
  if (options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", options.rank, " is not in [0, ", options.size, ")"));
  }
  if (options.master_port < (options.rank == 0 ? 0 : 1) || options.master_port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("master port ", options.master_port, " is no port that rank ", options.rank, " can use"));
  }
  if (!options.secret.empty() && options.secret.size() < kSecretBytesMin) {
    return absl::InvalidArgumentError(absl::StrCat("the secret is shorter than ", kSecretBytesMin, " bytes"));
  }
  if (options.timeout_ms <= 0 || options.handshake_ms <= 0) return absl::InvalidArgumentError("time limits must be above 0 ms");
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadSecret(const std::string& file, const char* variable) {
  std::string secret;
  if (!file.empty()) {
    std::ifstream in(file, std::ios::binary);
    if (!in) return absl::NotFoundError(absl::StrCat("cannot read the secret file '", file, "'"));
    std::ostringstream bytes;
    bytes << in.rdbuf();
    secret = std::string(absl::StripTrailingAsciiWhitespace(bytes.str()));
  } else if (const char* value = std::getenv(variable); value != nullptr) {
    secret = value;
  }
  if ((!file.empty() || !secret.empty()) && secret.size() < kSecretBytesMin) {
    return absl::InvalidArgumentError(absl::StrCat("the secret in ", file.empty() ? variable : file, " is shorter than ", kSecretBytesMin,
                                                   " bytes"));
  }
  return secret;
}

absl::StatusOr<RankRange> RanksOfNode(const Nodes& nodes, int size) {
  if (nodes.nnodes < 1 || size < 1 || size % nodes.nnodes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("world size ", size, " does not divide by ", nodes.nnodes, " nodes"));
  }
  if (nodes.node_rank < 0 || nodes.node_rank >= nodes.nnodes) {
    return absl::InvalidArgumentError(absl::StrCat("node rank ", nodes.node_rank, " is not in [0, ", nodes.nnodes, ")"));
  }
  const int count = size / nodes.nnodes;
  return RankRange{nodes.node_rank * count, count};
}

absl::StatusOr<bool> NodesFromLeaderWorkerSet(const std::function<const char*(const char*)>& get, Nodes* nodes) {
  const char* const address = get("LWS_LEADER_ADDRESS");
  const char* const size = get("LWS_GROUP_SIZE");
  const char* const index = get("LWS_WORKER_INDEX");
  if (address == nullptr && size == nullptr && index == nullptr) return false;
  Nodes out;
  if (address == nullptr || *address == '\0') {
    return absl::InvalidArgumentError("LWS_LEADER_ADDRESS is not set, though other LWS_ variables are");
  }
  out.master_address = address;
  if (size == nullptr || !absl::SimpleAtoi(size, &out.nnodes) || out.nnodes < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("LWS_GROUP_SIZE should be a number of 1 or more, not '", size == nullptr ? "" : size, "'"));
  }
  if (index == nullptr || !absl::SimpleAtoi(index, &out.node_rank) || out.node_rank < 0 || out.node_rank >= out.nnodes) {
    return absl::InvalidArgumentError(
        absl::StrCat("LWS_WORKER_INDEX should be in [0, ", out.nnodes, "), not '", index == nullptr ? "" : index, "'"));
  }
  *nodes = out;
  return true;
}

absl::StatusOr<Meeting> Meet(const RendezvousOptions& options, const Terms& terms) {
  PHX_RETURN_IF_ERROR(CheckOptions(options));
  if (options.size == 1) return Meeting{};
  if (options.rank != 0) return Join(options, terms);
  PHX_ASSIGN_OR_RETURN(Rendezvous rendezvous, Rendezvous::Listen(options));
  return rendezvous.Gather(terms);
}

}  // namespace phalanx::worker::tp
