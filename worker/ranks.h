// worker/ranks.h: one rank's place among the ranks of its group, and the way from there to a group that has met and has loaded its model.
// Refuses to know: plans, how a model is loaded. Thread: main, with the one exception said at BreakGroup.
// Neighbours: options.h has the flags, ranks_processes.h the other ranks of this host, worker/tp what ranks say to each other; main.cc
// leads through it, leader.h and follower.h then run steps.
//
// A rank is a process, so that a crash is contained and the kernel frees what it held. The first rank of a host starts the others of that
// host: with its own words, --tp-rank, and address and secret in the environment. A group lives and ends as one: a rank that is lost, hung
// or fails ends every process of the group, each with the reason in its log and exit status 1. Whoever started them starts them again.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "services/status.h"
#include "worker/core/executor.h"
#include "worker/options.h"
#include "worker/ranks_processes.h"
#include "worker/tp/control.h"
#include "worker/tp/group.h"
#include "worker/tp/rendezvous.h"

namespace phalanx::worker {

struct RankPlace {
  tp::RankRange host;          // ranks of this host
  tp::RendezvousOptions meet;  // this rank, the size, where rank 0 is, the secret

  int rank() const { return meet.rank; }
  int size() const { return meet.size; }
  bool alone() const { return meet.size == 1; }
  bool first_of_host() const { return meet.rank == host.first; }
  // "worker", "worker rank 1": the name in log lines.
  std::string ProcessName() const;
};

// From the flags, LeaderWorkerSet's variables if no flag speaks of hosts, and what a first rank hands to the ranks it starts. `get` is
// getenv. A group of one host that was given no secret gets one of its own. Errors: kInvalidArgument naming flag or variable.
absl::StatusOr<RankPlace> PlaceRank(const WorkerOptions& options, const std::function<const char*(const char*)>& get);

// This rank's part of the cores that `total` (0 = all this process may run on) are: at least one.
int ThreadsOfRank(const RankPlace& place, int total);

// Breaks the group with "rank R: " before the reason, unless it is broken. Returns the verdict. Any thread.
absl::Status BreakGroup(tp::Control& control, const absl::Status& why);

class RankGroup {
 public:
  // Of the first rank of a host: starts the others. `words`: the command line of this process. `place` is of more than one rank.
  static absl::StatusOr<std::unique_ptr<RankGroup>> Start(const RankPlace& place, const std::vector<std::string>& words);
  ~RankGroup();

  // Waits for all ranks and connects them. From here on a broken group ends this process. Errors: the rendezvous', naming what differs.
  absl::Status Meet(const tp::Terms& terms, const kernels::Table& table, kernels::Device* device);
  tp::Group* group() { return group_.get(); }
  tp::Control& control() { return *control_; }

  // Ranks may load for very different times: called between the weights and the first sum, it returns when all have their weights.
  absl::Status AwaitWeights();
  // When all ranks have loaded. Errors on rank 0: kInternal naming a rank whose limits, numbers of blocks included, are others.
  absl::Status AwaitLoaded(const core::ExecutorInfo& own);

  // The end of this rank, with how its work went. OK: leaves the group, and waits a moment for the processes it started. Else breaks the
  // group with the reason, which ends the process, or returns the reason if the ranks had not met.
  absl::Status End(const absl::Status& status);

 private:
  explicit RankGroup(const RankPlace& place) : place_(place) {}
  absl::Status StartOthers(const std::vector<std::string>& words);
  absl::Status AwaitAll(const std::string& what, std::vector<std::string>* values);
  void Broken(const absl::Status& verdict) const;

  RankPlace place_;
  std::optional<tp::Rendezvous> rendezvous_;  // of rank 0, until they have met
  std::unique_ptr<RankProcesses> others_;     // null if this rank has started none
  std::unique_ptr<tp::Control> control_;
  std::unique_ptr<tp::Group> group_;
};

}  // namespace phalanx::worker
