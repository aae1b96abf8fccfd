// phalanx-worker: loads a model onto a back end and serves tokens over the worker protocol.
#include <chrono>
#include <cstdio>
#include <string>
#include <utility>

#include "services/log.h"
#include "services/ready.h"
#include "worker/back_end.h"
#include "worker/options.h"

namespace phalanx::worker {
namespace {

constexpr char kVersion[] = PHALANX_VERSION;

absl::Status Load(const WorkerOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  services::PrintProgress(0, "reading the configuration");
  PHX_ASSIGN_OR_RETURN(const model::ModelConfig config, model::ReadModelConfig(options.model));
  PHX_ASSIGN_OR_RETURN(const BackEnd back_end, OpenBackEnd(options.device, ResolveDevice(options), PluginPaths()));
  PHX_ASSIGN_OR_RETURN(exec::ExecutorOptions executor_options,
                       ResolveExecutor(options, config, {back_end.gpu, back_end.info.memory_total}));
  ServeOptions serve = ResolveServe(options, config, executor_options);
  serve.device = back_end.info.name;
  if (!back_end.note.empty()) services::LogInfo("{}", back_end.note);
  serve.version = kVersion;
  services::LogInfo("loading {} ({}), {} on {}", options.model, serve.architecture, serve.dtype, serve.device);
  executor_options.progress = [last = -1](double fraction) mutable {
    const int percent = static_cast<int>(fraction * 100);
    if (percent == last) return;
    last = percent;
    services::PrintProgress(fraction, "loading weights");
  };
  PHX_ASSIGN_OR_RETURN(auto executor, exec::MakeExecutor(*back_end.table, back_end.device.get(), executor_options));
  const core::ExecutorInfo& info = executor->info();
  services::LogInfo("loaded in {:.2f} s", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
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
