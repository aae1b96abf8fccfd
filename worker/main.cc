// phalanx-worker: loads a model onto a back end and serves tokens over the worker protocol.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/log.h"
#include "services/ready.h"
#include "services/signals.h"
#include "worker/back_end.h"
#include "worker/follower.h"
#include "worker/leader.h"
#include "worker/options.h"
#include "worker/ranks.h"
#include "worker/ranks_terms.h"

namespace phalanx::worker {
namespace {

constexpr char kVersion[] = PHALANX_VERSION;

// Seconds since the last time it was asked.
class Lap {
 public:
  double Seconds() {
    const auto before = std::exchange(last_, std::chrono::steady_clock::now());
    return std::chrono::duration<double>(last_ - before).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Adds the flags that help, where who found out could not know them.
absl::Status WithAdvice(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status) || absl::StrContains(status.message(), "--")) return status;
  return absl::ResourceExhaustedError(absl::StrCat(std::string(status.message()), "; lower --max-num-seqs or --max-num-batched-tokens"));
}

// Opens the device; meanwhile the files of a model that may go to a GPU come into the page cache.
absl::StatusOr<BackEnd> Open(const WorkerOptions& options) {
  const std::vector<std::string> plugins = PluginPaths();
  if (options.device != "cpu" && !plugins.empty() && options.load_format != "dummy") {
    std::thread(model::ReadAhead, options.model).detach();  // it owns nothing, and an early end need not wait for it
  }
  return OpenBackEnd(options.device, ResolveDevice(options), plugins);
}

absl::Status CheckRanks(const WorkerOptions& options, const BackEnd& back_end) {
  if (options.tensor_parallel_size == 1 || !back_end.gpu) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("--tensor-parallel-size ", options.tensor_parallel_size,
                                               " is served on the CPU only so far: add --device cpu, or leave it at 1 for the GPU"));
}

// vLLM's words: people grep for them.
void LogCache(const core::ExecutorInfo& info) {
  const int64_t tokens = int64_t{info.num_blocks} * info.block_size;
  services::LogInfo("GPU KV cache size: {} tokens", tokens);
  services::LogInfo("Maximum concurrency for {} tokens per request: {:.2f}x", info.max_model_len,
                    static_cast<double>(tokens) / info.max_model_len);
}

// The life of every rank but rank 0 once it has loaded: until rank 0 leaves. A signal asks for patience only: rank 0 lets running sequences
// finish first. A second one, or --shutdown-timeout without an end, ends this rank and so the group.
absl::Status FollowUntilEnd(const WorkerOptions& options, RankGroup& ranks, core::Executor& executor) {
  services::StopSignal& signal = services::StopSignal::Install();
  std::optional<std::chrono::steady_clock::time_point> told;
  const std::chrono::duration<double> patience(options.shutdown_timeout_s);
  services::PrintReady(absl::StrCat("rank ", ranks.control().rank()));
  return Follow(ranks.control(), executor, [&] {
    const auto now = std::chrono::steady_clock::now();
    if (!told && signal.count() > 0) told = now;
    return !told || (signal.count() < 2 && now - *told < patience);
  });
}

// `ranks` is null for a worker alone.
absl::Status LoadAndServe(const WorkerOptions& options, RankGroup* ranks) {
  Lap lap, whole;
  services::PrintProgress(0, "reading the configuration");
  std::future<absl::StatusOr<BackEnd>> opening = std::async(std::launch::async, Open, std::cref(options));
  PHX_ASSIGN_OR_RETURN(const model::ModelConfig config, model::ReadModelConfig(options.model));
  services::PrintProgress(0, "opening the device");
  PHX_ASSIGN_OR_RETURN(const BackEnd back_end, opening.get());
  PHX_RETURN_IF_ERROR(CheckRanks(options, back_end));
  PHX_ASSIGN_OR_RETURN(exec::ExecutorOptions executor_options,
                       ResolveExecutor(options, config, {back_end.gpu, back_end.info.memory_total}));
  ServeOptions serve = ResolveServe(options, config, executor_options);
  serve.device = back_end.info.name;
  if (!back_end.note.empty()) services::LogInfo("{}", back_end.note);
  serve.version = kVersion;
  double ranks_s = 0;
  if (ranks != nullptr) {
    absl::StrAppend(&serve.device, ", ", options.tensor_parallel_size, " ranks");
    PHX_ASSIGN_OR_RETURN(const tp::Terms terms, MakeTerms(kVersion, config, executor_options, back_end));
    PHX_RETURN_IF_ERROR(ranks->Meet(terms, *back_end.table, back_end.device.get()));
    executor_options.group = ranks->group();
    executor_options.steps_ahead = 0;  // followers run one step at a time
    ranks_s = lap.Seconds();
  }
  services::LogInfo("loading {} ({}), {} on {}", options.model, serve.architecture, serve.dtype, serve.device);
  const double device_s = lap.Seconds();
  double weights_s = 0;
  absl::Status weights;
  executor_options.progress = [&, last = -1](double fraction) mutable {
    const int percent = static_cast<int>(fraction * 100);
    if (percent == last) return;
    last = percent;
    services::PrintProgress(fraction, "loading weights");
    if (fraction < 1) return;
    weights_s = lap.Seconds();
    if (ranks != nullptr) weights = ranks->AwaitWeights();
  };
  auto made = exec::MakeExecutor(*back_end.table, back_end.device.get(), executor_options);
  PHX_RETURN_IF_ERROR(weights);
  if (!made.ok()) return WithAdvice(made.status());
  std::unique_ptr<core::Executor> executor = *std::move(made);
  services::LogInfo("loaded in {:.2f} s: device {:.2f}, weights {:.2f}, caches and first steps {:.2f}", whole.Seconds(), device_s,
                    weights_s, lap.Seconds());
  if (ranks != nullptr) {
    PHX_RETURN_IF_ERROR(ranks->AwaitLoaded(executor->info()));
    services::LogDebug("ranks: met in {:.2f} s, waited {:.2f} s for the slowest to load", ranks_s, lap.Seconds());
    if (ranks->control().rank() != 0) return FollowUntilEnd(options, *ranks, *executor);
    executor = std::make_unique<LeaderExecutor>(&ranks->control(), std::move(executor));
  }
  LogCache(executor->info());
  return Serve(serve, std::move(executor));
}

absl::Status Load(WorkerOptions options, const RankPlace& place, const std::vector<std::string>& words) {
  if (place.alone()) return LoadAndServe(options, nullptr);
  // The ranks of a host share what a worker alone would have.
  options.threads = ThreadsOfRank(place, options.threads);
  options.gpu_memory_utilization /= place.host.count;
  PHX_ASSIGN_OR_RETURN(const std::unique_ptr<RankGroup> ranks, RankGroup::Start(place, words));
  return ranks->End(LoadAndServe(options, ranks.get()));
}

absl::Status Run(int argc, char** argv) {
  WorkerOptions options;
  services::OptionSet set("phalanx-worker", "--model PATH [flags]", "Serves tokens of one model to routers.");
  BindOptions(set, options);
  set.AllowConfigFile();
  PHX_RETURN_IF_ERROR(set.Parse(argc, argv));
  if (set.help_requested()) {
    std::fputs(set.Help().c_str(), stdout);
    return absl::OkStatus();
  }
  if (options.model.empty()) return absl::InvalidArgumentError("--model is required: a model folder or a .gguf file");
  PHX_ASSIGN_OR_RETURN(const RankPlace place, PlaceRank(options, getenv));
  options.log.process = place.ProcessName();
  PHX_RETURN_IF_ERROR(services::InitLog(options.log));
  return Load(options, place, std::vector<std::string>(argv, argv + argc));
}

}  // namespace
}  // namespace phalanx::worker

int main(int argc, char** argv) {
  const absl::Status status = phalanx::worker::Run(argc, argv);
  if (status.ok()) return 0;
  phalanx::services::LogError("{}", std::string(status.message()));
  phalanx::services::PrintFailure(status);
  return 1;
}
