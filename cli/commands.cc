#include "cli/commands.h"

#include <algorithm>

#include <fmt/format.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace phalanx::cli {
namespace {

using services::supervisor::ChildSpec;

// "--name=value" throughout: a value may look like a flag, and a list takes no words that follow.
void Add(std::vector<std::string>& args, std::string_view name, const std::string& value) {
  args.push_back(fmt::format("--{}={}", name, value));
}

void AddPassed(std::vector<std::string>& args, const ServeOptions& options, Owner owner) {
  for (const PassedFlag& passed : options.passed) {
    if ((passed.flag->owners & owner) == 0) continue;
    for (const std::string& value : passed.values) Add(args, passed.flag->name, value);
  }
}

void AddCommon(std::vector<std::string>& args, const ServeFlags& own) {
  Add(args, "shutdown-timeout", fmt::format("{}", own.shutdown_timeout_s));
  Add(args, "log-level", own.log_level);
  Add(args, "log-format", own.log_format);
}

std::string WorkerSocket(const ServePlaces& places, int index) { return absl::StrCat("unix:", places.socket_folder, "/worker", index); }
std::string RouterSocket(const ServePlaces& places) { return absl::StrCat("unix:", places.socket_folder, "/router"); }

// "[::1]:80" for an address with colons.
std::string HostPort(const std::string& host, int port) {
  return absl::StrContains(host, ':') && host[0] != '[' ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

std::vector<std::string> WorkerArgs(const ServeOptions& options, const ServePlaces& places, int index, int threads) {
  std::vector<std::string> args;
  Add(args, "model", places.model_path);
  Add(args, "listen", WorkerSocket(places, index));
  Add(args, "served-model-name", options.own.served_model_name[0]);
  Add(args, "gpu-memory-utilization", fmt::format("{}", std::max(options.own.gpu_memory_utilization / options.own.num_workers, 0.01)));
  if (threads > 0) Add(args, "threads", absl::StrCat(threads));
  AddPassed(args, options, kWorker);
  AddCommon(args, options.own);
  return args;
}

std::vector<std::string> RouterArgs(const ServeOptions& options, const ServePlaces& places) {
  std::vector<std::string> args;
  Add(args, "model", places.model_path);
  if (!places.tokenizer_path.empty()) Add(args, "tokenizer", places.tokenizer_path);
  for (const std::string& name : options.own.served_model_name) Add(args, "served-model-name", name);
  for (int i = 0; i < options.own.num_workers; ++i) Add(args, "workers", WorkerSocket(places, i));
  Add(args, "listen", RouterSocket(places));
  if (options.own.grpc_port != 0) Add(args, "grpc-listen", HostPort(options.own.grpc_host, options.own.grpc_port));
  AddPassed(args, options, kRouter);
  AddCommon(args, options.own);
  return args;
}

std::vector<std::string> GatewayArgs(const ServeOptions& options, const ServePlaces& places) {
  std::vector<std::string> args;
  Add(args, "router", RouterSocket(places));
  Add(args, "host", options.own.host);
  Add(args, "port", absl::StrCat(options.own.port));
  if (!options.own.ssl_certfile.empty()) {
    Add(args, "ssl-certfile", options.own.ssl_certfile);
    Add(args, "ssl-keyfile", options.own.ssl_keyfile);
  }
  AddPassed(args, options, kGateway);
  AddCommon(args, options.own);
  return args;
}

}  // namespace

std::vector<int> ShareThreads(int total, int workers) {
  std::vector<int> out(static_cast<size_t>(workers), std::max(total / workers, 1));
  for (int i = 0; total > workers && i < total % workers; ++i) ++out[static_cast<size_t>(i)];
  return out;
}

std::vector<std::string> WithPort(std::vector<std::string> args, const std::string& port) {
  for (std::string& word : args) {
    if (word == "--port=0") word = absl::StrCat("--port=", port);
  }
  return args;
}

ServePlan MakePlan(const ServeOptions& options, const ServePlaces& places) {
  const ServeFlags& own = options.own;
  const int workers = own.num_workers;
  // One worker that was told nothing finds the cores itself.
  std::vector<int> threads(static_cast<size_t>(workers), 0);
  if (own.threads > 0 || workers > 1) threads = ShareThreads(own.threads > 0 ? own.threads : places.cores, workers);

  const std::vector<std::string> no_keys = {"PHALANX_API_KEY", "VLLM_API_KEY"};
  ServePlan plan;
  for (int i = 0; i < workers; ++i) {
    const std::string name = workers == 1 ? "worker" : absl::StrCat("worker ", i);
    plan.children.push_back({.process = {.name = name, .program = places.worker,
                                         .args = WorkerArgs(options, places, i, threads[static_cast<size_t>(i)]), .unset_env = no_keys},
                             .policy = {.unit = i, .stage = 2}});
  }
  if (options.follower_host) return plan;
  const std::vector<std::string> no_secrets = {"PHALANX_API_KEY", "VLLM_API_KEY", "PHALANX_TP_SECRET"};
  plan.router = plan.children.size();
  plan.children.push_back({.process = {.name = "router", .program = places.router, .args = RouterArgs(options, places),
                                       .unset_env = no_secrets},
                           .policy = {.unit = workers, .stage = 1}});
  plan.gateway = plan.children.size();
  ChildSpec gateway{.process = {.name = "gateway", .program = places.gateway, .args = GatewayArgs(options, places),
                                .unset_env = no_secrets},
                    .policy = {.unit = workers + 1, .stage = 0}};
  if (!own.api_key.empty()) gateway.process.set_env = {{"PHALANX_API_KEY", absl::StrJoin(own.api_key, ",")}};
  plan.children.push_back(std::move(gateway));
  return plan;
}

}  // namespace phalanx::cli
