// worker/options.h: the flags of phalanx-worker, and what "auto" and "from the model" become once the model's config is known.
// Refuses to know: how any of it is done. Thread: main, before other threads start.
// Neighbours: worker/main.cc parses and resolves; cli/flags.cc writes these flags; serve.h and exec/executor.h take the results.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/kernels.h"
#include "services/log.h"
#include "services/options.h"
#include "services/status.h"
#include "worker/exec/executor.h"
#include "worker/model/model.h"
#include "worker/serve.h"

namespace phalanx::worker {

struct WorkerOptions {
  std::string model;                             // folder in Hugging Face layout, or a .gguf file
  std::string listen = "127.0.0.1:0";            // unix:PATH or HOST:PORT
  std::string served_model_name;                 // "" = `model` as typed
  std::string load_format = "auto";
  std::string dtype = "auto";
  std::string device = "auto";
  std::optional<int64_t> max_model_len;          // absent: the model's own
  std::optional<int64_t> max_num_seqs;           // absent: vLLM's, by the size of the GPU; on a CPU 256
  std::optional<int64_t> max_num_batched_tokens;  // absent: vLLM's, by the size of the GPU; on a CPU kCpuStepTokens
  int block_size = 16;
  double gpu_memory_utilization = 0.92;
  std::optional<int64_t> kv_cache_memory_bytes;
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;
  bool enforce_eager = false;                    // no graphs; the CPU back end has none, so both values mean the same there
  int max_logprobs = 20;                         // -1 = all the kernel table gives
  int max_num_queued_reqs = 4096;
  double shutdown_timeout_s = 30;
  int threads = 0;                               // 0 = all cores this process may run on
  std::string cpu_isa = "auto";
  int tensor_parallel_size = 1;                  // ranks of the group
  int nnodes = 1;                                // hosts that they are shared out to
  int node_rank = 0;                             // of this host; above 0: no door, this process only follows
  std::string master_addr = "127.0.0.1";         // host 0
  int master_port = 0;                           // 0: any free one on one host, vLLM's 29501 on several
  double distributed_timeout_s = 600;            // until all ranks have come, and again until all have loaded
  std::string tp_interface;                      // "" = what master_addr is on
  std::string tp_secret_file;                    // "" = PHALANX_TP_SECRET
  int tp_rank = -1;                              // of a process that the first rank of this host has started
  services::LogOptions log;
};

// A step of so many tokens keeps the gap between two tokens of a running sequence near what a CPU reaches anyway, and prefill is
// already as fast as with more.
constexpr int32_t kCpuStepTokens = 512;

// What of a device decides defaults.
struct DeviceKind {
  bool gpu = false;
  uint64_t memory_total = 0;                     // bytes
};

void BindOptions(services::OptionSet& set, WorkerOptions& options);

// The executor's and the door's options for this model. Errors: kInvalidArgument or kUnimplemented naming the flag.
absl::StatusOr<exec::ExecutorOptions> ResolveExecutor(const WorkerOptions& options, const model::ModelConfig& config, const DeviceKind& device);
ServeOptions ResolveServe(const WorkerOptions& options, const model::ModelConfig& config, const exec::ExecutorOptions& executor);

// Threads and the highest instruction set, for the CPU table.
kernels::DeviceOptions ResolveDevice(const WorkerOptions& options);

}  // namespace phalanx::worker
