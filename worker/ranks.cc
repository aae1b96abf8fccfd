#include "worker/ranks.h"

#include <sched.h>

#include <algorithm>
#include <filesystem>
#include <type_traits>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "services/check.h"
#include "services/log.h"
#include "services/ready.h"

namespace phalanx::worker {
namespace {

constexpr char kSecretVariable[] = "PHALANX_TP_SECRET";
constexpr char kPortVariable[] = "PHALANX_TP_PORT";  // from a first rank to those it starts
constexpr int kMasterPort = 29501;                   // vLLM's
// Within a sum. A rank that is gone or stopped is found by its pulse, in 2 s at most: this is for one whose engine stands still though the
// process lives, and must be above what a busy machine makes of ranks that compute the same.
constexpr int kCollectiveMs = 10000;
constexpr tp::milliseconds kCleanEnd{2000};
constexpr tp::milliseconds kNewsWait{100};

std::string RandomSecret() {
  std::string bytes(32, '\0');
  tp::FillRandom(bytes.data(), bytes.size());
  return absl::BytesToHexString(bytes);
}

// With a name that ps shows; the link itself if it cannot be read.
std::string ThisProgram() {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "/proc/self/exe" : path.string();
}

absl::StatusOr<tp::Nodes> ReadNodes(const WorkerOptions& options, const std::function<const char*(const char*)>& get) {
  tp::Nodes nodes{options.nnodes, options.node_rank, options.master_addr};
  if (options.nnodes == 1 && options.node_rank == 0) PHX_RETURN_IF_ERROR(tp::NodesFromLeaderWorkerSet(get, &nodes).status());
  if (nodes.node_rank >= nodes.nnodes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--node-rank ", nodes.node_rank, " is not one of --nnodes ", nodes.nnodes, " (they count from 0)"));
  }
  return nodes;
}

// Of a rank that another one has started.
absl::Status TakePort(const std::function<const char*(const char*)>& get, tp::RendezvousOptions* meet) {
  const char* port = get(kPortVariable);
  if (port == nullptr || !absl::SimpleAtoi(port, &meet->master_port) || meet->master_port < 1 || meet->master_port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("--tp-rank is for processes that a worker starts itself, with ", kPortVariable, " set"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string RankPlace::ProcessName() const { return rank() == 0 ? "worker" : absl::StrCat("worker rank ", rank()); }

absl::StatusOr<RankPlace> PlaceRank(const WorkerOptions& options, const std::function<const char*(const char*)>& get) {
  PHX_ASSIGN_OR_RETURN(const tp::Nodes nodes, ReadNodes(options, get));
  if (options.tensor_parallel_size % nodes.nnodes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--tensor-parallel-size ", options.tensor_parallel_size, " cannot be shared out to ",
                                                   nodes.nnodes, " hosts (--nnodes, or LeaderWorkerSet's LWS_GROUP_SIZE)"));
  }
  RankPlace place;
  place.meet.size = options.tensor_parallel_size;
  PHX_ASSIGN_OR_RETURN(place.host, tp::RanksOfNode(nodes, options.tensor_parallel_size));
  place.meet.rank = options.tp_rank >= 0 ? options.tp_rank : place.host.first;
  if (place.alone()) return place;
  place.meet.master_address = nodes.master_address;
  place.meet.interface = options.tp_interface;
  place.meet.timeout_ms = static_cast<int>(options.distributed_timeout_s * 1000);
  PHX_ASSIGN_OR_RETURN(place.meet.secret, tp::ReadSecret(options.tp_rank >= 0 ? "" : options.tp_secret_file, kSecretVariable));
  if (options.tp_rank >= 0) {
    PHX_RETURN_IF_ERROR(TakePort(get, &place.meet));
  } else if (nodes.nnodes > 1) {
    place.meet.master_port = options.master_port == 0 ? kMasterPort : options.master_port;
  } else {
    place.meet.master_port = options.master_port;
    if (place.meet.secret.empty()) place.meet.secret = RandomSecret();
  }
  PHX_RETURN_IF_ERROR(tp::CheckOptions(place.meet));
  return place;
}

int ThreadsOfRank(const RankPlace& place, int total) {
  if (place.host.count <= 1) return total;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (total == 0) total = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  const int index = place.rank() - place.host.first;
  return std::max(1, total / place.host.count + (index < total % place.host.count ? 1 : 0));
}

absl::Status BreakGroup(tp::Control& control, const absl::Status& why) {
  // kCancelled is how a rank says that it leaves in good order.
  const absl::StatusCode code = absl::IsCancelled(why) ? absl::StatusCode::kInternal : why.code();
  control.fault()->Break(absl::Status(code, absl::StrCat("rank ", control.rank(), ": ", std::string(why.message()))));
  return control.status();
}

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Start(const RankPlace& place, const std::vector<std::string>& words) {
  PHX_CHECK(!place.alone());
  std::unique_ptr<RankGroup> out(new RankGroup(place));
  if (place.rank() == 0) {
    PHX_ASSIGN_OR_RETURN(out->rendezvous_, tp::Rendezvous::Listen(place.meet));
    out->place_.meet.master_port = out->rendezvous_->port();
  }
  if (place.first_of_host() && place.host.count > 1) PHX_RETURN_IF_ERROR(out->StartOthers(words));
  return out;
}

RankGroup::~RankGroup() = default;

absl::Status RankGroup::StartOthers(const std::vector<std::string>& words) {
  std::vector<services::supervisor::ProcessSpec> specs;
  for (int rank = place_.host.first + 1; rank < place_.host.first + place_.host.count; ++rank) {
    services::supervisor::ProcessSpec spec;
    spec.name = absl::StrCat("rank ", rank);
    spec.program = ThisProgram();
    spec.args.assign(words.begin() + 1, words.end());
    spec.args.push_back(absl::StrCat("--tp-rank=", rank));
    spec.set_env = {{kPortVariable, absl::StrCat(place_.meet.master_port)}, {kSecretVariable, place_.meet.secret}};
    specs.push_back(std::move(spec));
  }
  const auto lost = [](const std::string& news) {
    std::this_thread::sleep_for(kNewsWait);  // the monitor knows more, if the ranks have met
    EndProcess(absl::UnavailableError(news));
  };
  PHX_ASSIGN_OR_RETURN(others_, RankProcesses::Start(std::move(specs), lost));
  return absl::OkStatus();
}

absl::Status RankGroup::Meet(const tp::Terms& terms, const kernels::Table& table, kernels::Device* device) {
  services::PrintProgress(0, "waiting for the other ranks");
  absl::StatusOr<tp::Meeting> meeting = rendezvous_ ? rendezvous_->Gather(terms) : tp::Join(place_.meet, terms);
  PHX_RETURN_IF_ERROR(meeting.status());
  tp::ControlOptions options;
  options.monitor.on_broken = [this](const absl::Status& verdict) { Broken(verdict); };
  control_ = std::make_unique<tp::Control>(*std::move(meeting), options);
  PHX_ASSIGN_OR_RETURN(group_, tp::MakeGroup(table, device, control_.get(), {kCollectiveMs, false}, nullptr));
  services::LogInfo("all {} ranks have met", place_.size());
  return absl::OkStatus();
}

absl::Status RankGroup::AwaitWeights() { return AwaitAll("weights", nullptr); }

absl::Status RankGroup::AwaitLoaded(const core::ExecutorInfo& own) {
  static_assert(std::has_unique_object_representations_v<core::ExecutorInfo>);
  std::vector<std::string> values(1, std::string(reinterpret_cast<const char*>(&own), sizeof(own)));
  PHX_RETURN_IF_ERROR(AwaitAll("loaded", &values));
  for (size_t rank = 1; rank < values.size(); ++rank) {
    if (values[rank] != values[0]) return absl::InternalError(absl::StrCat("rank ", rank, " has loaded for other limits than rank 0"));
  }
  return absl::OkStatus();
}

// Over the store: every rank says `what`, rank 0 says when all have. (*values)[0] is this rank's value; rank 0 adds the others'.
absl::Status RankGroup::AwaitAll(const std::string& what, std::vector<std::string>* values) {
  tp::Store& store = control_->store();
  const tp::Time deadline = tp::Now() + tp::milliseconds(place_.meet.timeout_ms);
  const std::string all = absl::StrCat(what, "/all");
  if (place_.rank() != 0) {
    PHX_RETURN_IF_ERROR(store.Set(absl::StrCat(what, "/", place_.rank()), values == nullptr ? "" : (*values)[0]));
    return store.Get(all, deadline).status();
  }
  for (int rank = 1; rank < place_.size(); ++rank) {
    absl::StatusOr<std::string> value = store.Get(absl::StrCat(what, "/", rank), deadline);
    if (absl::IsDeadlineExceeded(value.status()) && control_->status().ok()) {
      return absl::DeadlineExceededError(absl::StrCat("rank ", rank, " has not loaded within --distributed-timeout-seconds"));
    }
    PHX_RETURN_IF_ERROR(value.status());
    if (values != nullptr) values->push_back(*std::move(value));
  }
  return store.Set(all, "");
}

// On the monitor's thread.
void RankGroup::Broken(const absl::Status& verdict) const {
  if (absl::IsCancelled(verdict) && place_.rank() != 0) return;  // rank 0 has left: Follow ends by itself
  std::string text(verdict.message());
  for (int rank = place_.host.first + 1; others_ != nullptr && rank < place_.host.first + place_.host.count; ++rank) {
    if (!absl::StartsWith(text, absl::StrCat("rank ", rank, " is gone"))) continue;
    const std::string news = others_->NewsOf(rank - place_.host.first - 1, kNewsWait);
    if (!news.empty()) absl::StrAppend(&text, "; ", news);
  }
  EndProcess(absl::Status(verdict.code(), text));
}

absl::Status RankGroup::End(const absl::Status& status) {
  if (status.ok()) {
    if (others_ != nullptr) others_->ExpectEnd();
    group_.reset();
    control_.reset();
    if (others_ != nullptr) others_->WaitForEnd(kCleanEnd);
    return status;
  }
  if (control_ == nullptr) return status;
  const absl::Status verdict = BreakGroup(*control_, status);
  control_.reset();  // tells the others, and Broken ends this process
  return verdict;
}

}  // namespace phalanx::worker
