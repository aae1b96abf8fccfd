#include "cli/serve.h"

#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>

#include <fmt/format.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/model_path.h"
#include "cli/options.h"
#include "cli/probe.h"
#include "cli/programs.h"
#include "cli/progress.h"
#include "services/clock.h"
#include "services/log.h"
#include "services/signals.h"
#include "services/supervisor/group.h"

namespace phalanx::cli {
namespace {

using services::LogInfo;
using services::LogWarning;
using services::Time;
using services::supervisor::Event;
using services::supervisor::Group;
using std::chrono::milliseconds;

constexpr milliseconds kTurn{1000};
constexpr milliseconds kProbeEvery{100};
constexpr std::chrono::seconds kAnswerLimit{60};  // all children are ready: so long until the gateway answers
constexpr milliseconds kStopSlack{1000};          // a stage; three of them keep the end within 5 s of --shutdown-timeout
constexpr size_t kSocketPathMax = 100;            // of sockaddr_un's 108 bytes

int CoresOfThisProcess() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(CPU_COUNT(&set), 1) : 1;
}

// A folder for the sockets that only this user may enter; removed in the end.
class SocketFolder {
 public:
  static absl::StatusOr<std::unique_ptr<SocketFolder>> Make() {
    const char* base = std::getenv("TMPDIR");
    std::string path = absl::StrCat(base != nullptr && *base != '\0' ? base : "/tmp", "/phalanx-XXXXXX");
    if (path.size() + std::strlen("/worker00") > kSocketPathMax) path = "/tmp/phalanx-XXXXXX";
    if (mkdtemp(path.data()) == nullptr) {
      return absl::UnavailableError(absl::StrCat("cannot make a folder for sockets, '", path, "': ", std::strerror(errno)));
    }
    return std::unique_ptr<SocketFolder>(new SocketFolder(std::move(path)));
  }
  ~SocketFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  explicit SocketFolder(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// The launch and the life of the group, one event after the other.
class Launcher {
 public:
  Launcher(const ServeOptions& options, ServePlan plan)
      : options_(options),
        gateway_(plan.gateway),
        progress_(plan.children.size()),
        group_(std::move(plan.children),
               {.backoff = {}, .grace = milliseconds(static_cast<int64_t>(options.own.shutdown_timeout_s * 1000)), .slack = kStopSlack},
               clock_) {}

  absl::Status Run(services::StopSignal& stop) {
    group_.Start();
    while (!group_.finished()) {
      const bool waiting = group_.stopping() || (group_.launched() && !announced_);
      for (const Event& event : group_.Turn(waiting ? kProbeEvery : kTurn, group_.stopping() ? -1 : stop.fd())) Handle(event);
      if (stop.count() > 0) HandleStop(stop.count());
      if (group_.launched() && !announced_ && !group_.stopping()) Announce();
    }
    progress_.Clear();
    if (!group_.failure().empty()) return absl::UnavailableError(group_.failure());
    if (!failure_.empty()) return absl::DeadlineExceededError(failure_);
    LogInfo("stopped");
    return absl::OkStatus();
  }

 private:
  void Handle(const Event& event) {
    const std::string& name = group_.spec(event.child).name;
    switch (event.kind) {
      case Event::Kind::kProgress:
        if (!announced_) progress_.Set(event.child, event.fraction, absl::StrCat(name, ": ", event.text));
        break;
      case Event::Kind::kReady:
        Ready(event, name);
        break;
      case Event::Kind::kOutput:
        LogInfo("{}: {}", name, event.text);
        break;
      case Event::Kind::kExited:
        if (event.restart_in) {
          LogWarning("{}: {}; starting it again in {} ms", name, event.text, event.restart_in->count());
        } else {
          services::LogDebug("{} {}", name, event.text);
        }
        break;
    }
  }

  void Ready(const Event& event, const std::string& name) {
    if (announced_) LogInfo("{} is ready again", name);
    if (!announced_) progress_.Set(event.child, 1, absl::StrCat(name, ": ready"));
    if (event.child != gateway_) return;
    // "http://host:port" or "host:port".
    const size_t scheme = event.text.find("://");
    address_ = scheme == std::string::npos ? event.text : event.text.substr(scheme + 3);
    group_.SetArgs(*gateway_, WithPort(group_.spec(*gateway_).args, address_.substr(address_.rfind(':') + 1)));
  }

  void Announce() {
    if (gateway_) return AnnounceGateway();
    announced_ = true;
    progress_.Clear();
    fmt::print("Phalanx is ready: this host's ranks follow rank 0 (model \"{}\")\n", options_.own.served_model_name[0]);
    std::fflush(stdout);
  }

  // Once the gateway answers: the router has met a worker, and a request would be served.
  void AnnounceGateway() {
    const Time now = clock_.Now();
    if (!probing_since_) probing_since_ = now;
    const bool tls = !options_.own.ssl_certfile.empty();
    if (!IsHealthy(address_, tls ? Scheme::kHttps : Scheme::kHttp)) {
      if (now - *probing_since_ < kAnswerLimit) return;
      failure_ = fmt::format("all processes are ready, but GET /health of {} has not answered 200 for {} s; the log lines above say why",
                             address_, kAnswerLimit.count());
      return group_.StopNow();
    }
    announced_ = true;
    progress_.Clear();
    const ServeFlags& own = options_.own;
    if (own.grpc_port != 0) LogInfo("native gRPC clients (phalanx.v1): {}:{}", own.grpc_host, own.grpc_port);
    fmt::print("Phalanx is ready: {}://{} (model \"{}\")\n", tls ? "https" : "http", Reachable(address_), own.served_model_name[0]);
    std::fflush(stdout);
  }

  void HandleStop(int signals) {
    if (signals > 1 && !killed_) {
      killed_ = true;
      LogWarning("second signal: ending now");
      group_.StopNow();
    } else if (!group_.stopping()) {
      progress_.Clear();
      LogInfo("stopping; running requests may finish within {} s", options_.own.shutdown_timeout_s);
      group_.Stop();
    }
  }

  const ServeOptions& options_;
  const std::optional<size_t> gateway_;  // none on a host whose ranks follow another
  services::SteadyClock clock_;
  ProgressLine progress_;
  Group group_;
  std::string address_;  // of the gateway
  std::optional<Time> probing_since_;
  bool announced_ = false;
  bool killed_ = false;
  std::string failure_;
};

absl::Status CheckLoadFormat(const ServeFlags& own, const ModelPath& model) {
  if (own.load_format == "gguf" && model.kind != ModelKind::kGguf) {
    return absl::InvalidArgumentError(absl::StrCat("--load-format gguf: '", own.model, "' is not a .gguf file"));
  }
  if (own.load_format == "safetensors" && model.kind == ModelKind::kGguf) {
    return absl::InvalidArgumentError(absl::StrCat("--load-format safetensors: '", own.model, "' is a .gguf file"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ServePlaces> FindPlaces(const ServeFlags& own) {
  ServePlaces places;
  const ModelPlaces cache{CacheFolder(own.download_dir), own.revision};
  PHX_ASSIGN_OR_RETURN(const ModelPath model, ResolveModel(own.model, cache, Wanted::kModel));
  PHX_RETURN_IF_ERROR(CheckLoadFormat(own, model));
  places.model_path = model.path;
  if (!own.tokenizer.empty()) {
    absl::StatusOr<ModelPath> tokenizer = ResolveModel(own.tokenizer, {cache.cache, ""}, Wanted::kTokenizer);
    if (!tokenizer.ok()) return absl::NotFoundError(absl::StrCat("--tokenizer: ", std::string(tokenizer.status().message())));
    places.tokenizer_path = tokenizer->path;
  }
  PHX_ASSIGN_OR_RETURN(places.worker, FindProgram("phalanx-worker"));
  PHX_ASSIGN_OR_RETURN(places.router, FindProgram("phalanx-router"));
  PHX_ASSIGN_OR_RETURN(places.gateway, FindProgram("phalanx-gateway"));
  places.cores = CoresOfThisProcess();
  return places;
}

absl::Status RunServe(const ServeOptions& options) {
  PHX_RETURN_IF_ERROR(services::InitLog({.level = options.own.log_level, .format = options.own.log_format, .process = "serve"}));
  PHX_ASSIGN_OR_RETURN(ServePlaces places, FindPlaces(options.own));
  services::StopSignal& stop = services::StopSignal::Install();
  PHX_ASSIGN_OR_RETURN(const std::unique_ptr<SocketFolder> folder, SocketFolder::Make());
  places.socket_folder = folder->path();
  LogInfo("phalanx {}: model {}{}, {} worker{}", PHALANX_VERSION, options.own.model,
          places.model_path == options.own.model ? "" : absl::StrCat(" (", places.model_path, ")"), options.own.num_workers,
          options.own.num_workers == 1 ? "" : "s");
  for (const std::string& note : options.notes) LogInfo("{}", note);
  return Launcher(options, MakePlan(options, places)).Run(stop);
}

}  // namespace

int Serve(const std::vector<std::string>& words) {
  const auto fail = [](const absl::Status& status, int code) {
    std::fputs(absl::StrCat("phalanx serve: ", std::string(status.message()), "\n").c_str(), stderr);
    return code;
  };
  const absl::StatusOr<ServeOptions> options = ParseServe(words);
  if (!options.ok()) return fail(options.status(), 2);
  if (!options->help.empty()) {
    std::fputs(options->help.c_str(), stdout);
    return 0;
  }
  const absl::Status status = RunServe(*options);
  return status.ok() ? 0 : fail(status, 1);
}

}  // namespace phalanx::cli
