#include "worker/serve.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/health.h"
#include "services/log.h"
#include "services/ready.h"
#include "services/server.h"
#include "services/signals.h"
#include "worker/engine.h"
#include "worker/metrics.h"
#include "worker/rpc/worker_service.h"

namespace phalanx::worker {
namespace {

constexpr std::chrono::milliseconds kTick{100};
constexpr std::chrono::milliseconds kFlush{1000};
constexpr std::chrono::milliseconds kCloseGrace{500};

double NowSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The device's last word, told by the engine thread to main.
class FatalError {
 public:
  void Set(const std::string& reason) {
    std::lock_guard lock(mutex_);
    if (status_.ok()) status_ = absl::InternalError(absl::StrCat("device error: ", reason));
  }
  absl::Status status() const {
    std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  mutable std::mutex mutex_;
  absl::Status status_;
};

rpc::ServiceOptions DoorOptions(const ServeOptions& options, const core::ExecutorInfo& info) {
  rpc::ServiceOptions door;
  door.limits = {info.vocab_size, info.max_model_len, options.max_logprobs, options.eos_ids};
  v1::GetInfoResponse& out = door.info;
  out.set_model(options.model_name);
  out.set_architecture(options.architecture);
  out.set_dtype(options.dtype);
  out.set_device(options.device);
  out.set_version(options.version);
  out.set_vocab_size(static_cast<uint32_t>(info.vocab_size));
  out.set_max_model_len(static_cast<uint32_t>(info.max_model_len));
  out.set_block_size(static_cast<uint32_t>(info.block_size));
  out.set_num_blocks(static_cast<uint32_t>(info.num_blocks));
  out.set_max_num_seqs(static_cast<uint32_t>(info.max_rows));
  out.set_max_num_batched_tokens(static_cast<uint32_t>(info.max_step_tokens));
  out.set_max_logprobs(static_cast<uint32_t>(options.max_logprobs));
  for (int32_t id : options.eos_ids) out.add_eos_ids(static_cast<uint32_t>(id));
  return door;
}

EngineOptions LoopOptions(const ServeOptions& options) {
  EngineOptions engine;
  engine.scheduler.prefix_caching = options.prefix_caching;
  engine.scheduler.chunked_prefill = options.chunked_prefill;
  engine.scheduler.max_waiting = options.max_queued;
  engine.check_invariants = options.check_invariants;
  return engine;
}

// Waits for a signal or a device error, and watches whether the engine still moves.
absl::Status Watch(const ServeOptions& options, services::StopSignal& signal, const FatalError& fatal, rpc::WorkerService& door,
                   services::Health& health) {
  bool stalled = false;
  while (!signal.WaitFor(kTick)) {
    PHX_RETURN_IF_ERROR(fatal.status());
    const bool silent = door.seconds_since_report() > options.stall_timeout_s;
    if (silent != stalled) {
      stalled = silent;
      if (silent) services::LogError("no engine step for {:.0f} s: reporting not serving", door.seconds_since_report());
      health.Set(silent ? services::HealthState::kDraining : services::HealthState::kReady);
    }
    if (door.draining() && health.ready()) health.Set(services::HealthState::kDraining);
  }
  return absl::OkStatus();
}

// Lets running sequences finish, until the time is over, a second signal comes or the device fails.
absl::Status Finish(const ServeOptions& options, services::StopSignal& signal, const FatalError& fatal, rpc::WorkerService& door,
                    const Engine& engine) {
  door.BeginDrain();
  services::LogInfo("shutting down: {} sequences run on for at most {} s", engine.live(), options.shutdown_timeout_s);
  const double until = NowSeconds() + options.shutdown_timeout_s;
  while (engine.live() > 0 && NowSeconds() < until && signal.count() < 2) {
    PHX_RETURN_IF_ERROR(fatal.status());
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (engine.live() > 0) services::LogWarning("{} sequences are aborted", engine.live());
  return absl::OkStatus();
}

}  // namespace

absl::Status Serve(const ServeOptions& options, std::unique_ptr<core::Executor> executor) {
  const core::ExecutorInfo info = executor->info();
  services::StopSignal& signal = services::StopSignal::Install();
  services::Health health;
  FatalError fatal;
  WorkerMetrics metrics(options.model_name,
                        {info.block_size, info.num_blocks, options.prefix_caching, options.gpu_memory_utilization});
  ThroughputLog throughput;
  rpc::WorkerService* door = nullptr;  // set before the engine starts

  EngineCallbacks callbacks;
  callbacks.on_report = [&door](core::StepReport&& report) { door->Deliver(std::move(report)); };
  callbacks.on_step = [&](const EngineStep& step) {
    metrics.Record(step);
    const std::string line = throughput.Line(step, NowSeconds());
    if (!line.empty()) services::LogInfo("{}", line);
  };
  callbacks.on_fatal = [&fatal](const std::string& reason) { fatal.Set(reason); };
  Engine engine(LoopOptions(options), std::move(executor), std::move(callbacks));

  rpc::ServiceOptions door_options = DoorOptions(options, info);
  door_options.metrics_text = [&metrics] { return metrics.Text(); };
  rpc::WorkerService service(std::move(door_options), &engine);
  door = &service;
  services::ServerOptions server_options;
  server_options.listen = options.listen;
  server_options.health = &health;
  PHX_ASSIGN_OR_RETURN(auto server, services::Server::Start(server_options, {&service}));
  engine.Start();
  health.Set(services::HealthState::kReady);
  services::LogInfo("serving {} on {} ({} KV blocks of {} tokens, context {}, {} sequences, {} tokens a step)", options.model_name,
                    server->address(), info.num_blocks, info.block_size, info.max_model_len, info.max_rows, info.max_step_tokens);
  services::PrintReady(server->address());

  absl::Status status = Watch(options, signal, fatal, service, health);
  health.Set(status.ok() ? services::HealthState::kDraining : services::HealthState::kFailed);
  if (status.ok()) status = Finish(options, signal, fatal, service, engine);
  engine.Stop();
  service.Stop(status.ok() ? kFlush : std::chrono::milliseconds(0));
  server->Stop(kCloseGrace);
  health.Set(services::HealthState::kStopped);
  return status;
}

}  // namespace phalanx::worker
