// phalanx-worker: loads a model onto a back end and serves tokens over the worker protocol.
#include <chrono>
#include <cstdio>
#include <future>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/log.h"
#include "services/ready.h"
#include "worker/back_end.h"
#include "worker/options.h"

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

absl::Status Load(const WorkerOptions& options) {
  Lap lap, whole;
  services::PrintProgress(0, "reading the configuration");
  std::future<absl::StatusOr<BackEnd>> opening = std::async(std::launch::async, Open, std::cref(options));
  PHX_ASSIGN_OR_RETURN(const model::ModelConfig config, model::ReadModelConfig(options.model));
  services::PrintProgress(0, "opening the device");
  PHX_ASSIGN_OR_RETURN(const BackEnd back_end, opening.get());
  PHX_ASSIGN_OR_RETURN(exec::ExecutorOptions executor_options,
                       ResolveExecutor(options, config, {back_end.gpu, back_end.info.memory_total}));
  ServeOptions serve = ResolveServe(options, config, executor_options);
  serve.device = back_end.info.name;
  if (!back_end.note.empty()) services::LogInfo("{}", back_end.note);
  serve.version = kVersion;
  services::LogInfo("loading {} ({}), {} on {}", options.model, serve.architecture, serve.dtype, serve.device);
  const double device_s = lap.Seconds();
  double weights_s = 0;
  executor_options.progress = [&, last = -1](double fraction) mutable {
    if (fraction >= 1) weights_s = lap.Seconds();
    const int percent = static_cast<int>(fraction * 100);
    if (percent == last) return;
    last = percent;
    services::PrintProgress(fraction, "loading weights");
  };
  auto made = exec::MakeExecutor(*back_end.table, back_end.device.get(), executor_options);
  if (!made.ok()) return WithAdvice(made.status());
  std::unique_ptr<core::Executor> executor = *std::move(made);
  const core::ExecutorInfo& info = executor->info();
  services::LogInfo("loaded in {:.2f} s: device {:.2f}, weights {:.2f}, caches and first steps {:.2f}", whole.Seconds(), device_s,
                    weights_s, lap.Seconds());
  // vLLM's words: people grep for them.
  const int64_t tokens = int64_t{info.num_blocks} * info.block_size;
  services::LogInfo("GPU KV cache size: {} tokens", tokens);
  services::LogInfo("Maximum concurrency for {} tokens per request: {:.2f}x", info.max_model_len,
                    static_cast<double>(tokens) / info.max_model_len);
  return Serve(serve, std::move(executor));
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
  options.log.process = "worker";
  PHX_RETURN_IF_ERROR(services::InitLog(options.log));
  return Load(options);
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
