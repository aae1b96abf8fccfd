// phalanx-router: introduces the rooms to each other: text, relay, worker links, doors; then waits for the signal to end.
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "router/generation_config.h"
#include "router/metrics.h"
#include "router/options.h"
#include "router/prompt.h"
#include "router/relay.h"
#include "router/rpc/inference_service.h"
#include "router/rpc/openai_service.h"
#include "router/rpc/worker_client.h"
#include "services/health.h"
#include "services/log.h"
#include "services/ready.h"
#include "services/server.h"
#include "services/signals.h"
#include "text/text.h"

namespace phalanx::router {
namespace {

constexpr std::chrono::milliseconds kTick{10};
constexpr std::chrono::milliseconds kCloseGrace{1000};
constexpr std::chrono::milliseconds kLocalBackoffMax{200};  // looking for a socket on this host costs nothing
constexpr int kStreamsMax = 32768;           // of one connection: a gateway brings all its requests on one

using Seconds = std::chrono::duration<double>;

absl::StatusOr<std::shared_ptr<const PromptMaker>> LoadText(const RouterOptions& options) {
  services::PrintProgress(0.1, "loading the tokenizer");
  PHX_ASSIGN_OR_RETURN(std::shared_ptr<const text::Tokenizer> tokenizer, text::Tokenizer::Load(options.tokenizer));
  services::PrintProgress(0.8, "loading the chat template");
  absl::StatusOr<std::shared_ptr<const text::ChatTemplate>> chat =
      text::ChatTemplate::Load(options.tokenizer, *tokenizer, {.override_path = options.chat_template});
  if (absl::IsNotFound(chat.status()) && options.chat_template.empty()) {
    services::LogWarning("the model has no chat template: chat requests will be refused");
    chat = std::shared_ptr<const text::ChatTemplate>();
  }
  PHX_RETURN_IF_ERROR(chat.status());
  return std::make_shared<const PromptMaker>(std::move(tokenizer), *std::move(chat));
}

RelayOptions RelayOptionsOf(const RouterOptions& options, core::GenerationDefaults defaults, services::Health* health) {
  RelayOptions out;
  out.served_names = options.served_names;
  out.defaults = std::move(defaults);
  out.max_logprobs = options.max_logprobs;
  out.admission.max_requests = options.max_queued_requests;
  out.dispatch.resume_wait = std::chrono::duration_cast<std::chrono::milliseconds>(Seconds(options.resume_timeout_s));
  if (options.seed) out.seed = static_cast<uint64_t>(*options.seed);
  out.prompt_threads = options.tokenizer_threads;
  out.on_ready = [health](bool ready) { health->Set(ready ? services::HealthState::kReady : services::HealthState::kStarting); };
  return out;
}

rpc::OpenAiOptions DoorOptions(const RouterOptions& options) {
  rpc::OpenAiOptions door;
  door.write.reasoning_field = options.reasoning_field == "both"        ? openai::ReasoningField::kBoth
                               : options.reasoning_field == "reasoning" ? openai::ReasoningField::kReasoning
                                                                        : openai::ReasoningField::kReasoningContent;
  door.write.prompt_tokens_details = options.prompt_tokens_details;
  door.write.force_include_usage = options.force_include_usage;
  door.model = {options.model, services::UnixSeconds()};
  door.version = PHALANX_VERSION;
  return door;
}

std::vector<std::unique_ptr<rpc::WorkerClient>> MakeLinks(const RouterOptions& options) {
  std::vector<std::unique_ptr<rpc::WorkerClient>> links;
  for (const std::string& address : options.workers) {
    rpc::WorkerClientOptions link;
    link.worker = static_cast<int>(links.size());
    link.address = address;
    if (address.rfind("unix:", 0) == 0) link.backoff_max = kLocalBackoffMax;
    links.push_back(std::make_unique<rpc::WorkerClient>(std::move(link)));
  }
  return links;
}

// Lets running requests finish, until the time is over or a second signal comes.
void Drain(const RouterOptions& options, const services::StopSignal& signal, Relay& relay) {
  relay.BeginDrain();
  services::LogInfo("shutting down: {} requests run on for at most {} s", relay.live(), options.shutdown_timeout_s);
  const auto until = std::chrono::steady_clock::now() + Seconds(options.shutdown_timeout_s);
  while (relay.live() > 0 && std::chrono::steady_clock::now() < until && signal.count() < 2) std::this_thread::sleep_for(kTick);
  if (relay.live() > 0) services::LogWarning("{} requests are ended", relay.live());
}

absl::Status Serve(const RouterOptions& options, services::StopSignal& signal) {
  PHX_ASSIGN_OR_RETURN(std::shared_ptr<const PromptMaker> prompts, LoadText(options));
  PHX_ASSIGN_OR_RETURN(core::GenerationDefaults defaults, ReadGenerationDefaults(options.generation_config, options.model));

  // Destroyed from the last to the first: the server before its services, those and the links before the relay.
  const services::SteadyClock clock;
  services::Health health;
  RouterMetrics metrics(options.served_names.front(), static_cast<int>(options.workers.size()));
  Relay relay(RelayOptionsOf(options, std::move(defaults), &health), std::move(prompts), &metrics, &clock);
  const auto links = MakeLinks(options);
  rpc::OpenAiService openai(DoorOptions(options), &relay);
  rpc::InferenceService inference({}, &relay);

  services::ServerOptions server_options;
  server_options.listen = options.listen;
  if (!options.grpc_listen.empty()) server_options.also_listen = {options.grpc_listen};
  server_options.streams_max = kStreamsMax;
  server_options.health = &health;
  std::vector<core::WorkerLink*> fleet;
  for (const auto& link : links) fleet.push_back(link.get());
  relay.Run(std::move(fleet));
  PHX_ASSIGN_OR_RETURN(auto server, services::Server::Start(server_options, {&openai, &inference}));
  for (const auto& link : links) link->Start(&relay);
  for (const std::string& address : server->addresses()) services::LogInfo("listening on {}", address);
  services::PrintReady(server->address());

  signal.Wait();
  Drain(options, signal, relay);
  relay.Stop();
  server->Stop(kCloseGrace);
  health.Set(services::HealthState::kStopped);
  return absl::OkStatus();
}

absl::Status Run(int argc, char** argv) {
  RouterOptions options;
  services::OptionSet set("phalanx-router", "--model PATH --workers ADDRESS... [flags]",
                          "Turns clients' requests into tokens for workers and their tokens into replies.");
  set.AllowConfigFile();
  BindOptions(set, options);
  PHX_RETURN_IF_ERROR(set.Parse(argc, argv));
  if (set.help_requested()) {
    std::fputs(set.Help().c_str(), stdout);
    return absl::OkStatus();
  }
  PHX_RETURN_IF_ERROR(Validate(options));
  options.log.process = "router";
  PHX_RETURN_IF_ERROR(services::InitLog(options.log));
  return Serve(options, services::StopSignal::Install());
}

}  // namespace
}  // namespace phalanx::router

int main(int argc, char** argv) {
  const absl::Status status = phalanx::router::Run(argc, argv);
  if (status.ok()) return 0;
  phalanx::services::LogError("{}", std::string(status.message()));
  phalanx::services::PrintFailure(status);
  return 1;
}
