// worker/exec/executor.h: makes the executor that runs plans on a kernel table: KV vault, inputs, forward pass, sampling.
// Refuses to know: why a sequence was chosen. Thread: the engine thread.
// Neighbours: worker/main.cc makes it, worker/engine.cc calls it through core::Executor.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/kernels.h"
#include "services/status.h"
#include "worker/core/executor.h"
#include "worker/model/model.h"

namespace phalanx::worker::exec {

struct ExecutorOptions {
  std::string model_path;                 // folder or .gguf
  kernels::DType dtype = kernels::kBF16;  // kBF16 or kF32
  kernels::DType kv_dtype = kernels::kBF16;
  int32_t max_model_len = 0;              // > 0, decided by the caller from flags and config
  int32_t max_num_seqs = 256;
  int32_t max_num_batched_tokens = 2048;
  int32_t block_size = 16;
  uint64_t kv_cache_bytes = 0;            // 0 = from gpu_memory_utilization of free memory
  double gpu_memory_utilization = 0.92;
  bool graphs = true;                     // record decode steps where the table has graphs; false: --enforce-eager
  int32_t steps_ahead = -1;               // core::ExecutorInfo's; -1 = 1 where the table's operations return before they have finished
  std::function<void(double)> progress;   // loading, 0..1, in this thread; with ranks, 1 is the place to wait for slower ones
  model::LoadFormat load_format = model::LoadFormat::kAuto;
  // The ranks that share the model, each with an executor of the same options; null = this one alone. It outlives the executor.
  tp::Group* group = nullptr;
};

// With ranks, each is given the same plans in the same order and draws the same tokens by itself: logits have the same bits on all of them,
// and a draw depends on nothing else (kernels.h), so no token is sent. A plan must reach every rank or none: the others wait in a sum until
// its time is over.
//
// Loads the model, takes all memory, warms what the first requests will use. Errors: the model's; kResourceExhausted if the KV cache would
// not hold one sequence of max_model_len, here (says how much is needed and which flag helps) or on another rank.
absl::StatusOr<std::unique_ptr<core::Executor>> MakeExecutor(const kernels::Table& table, kernels::Device* device,
                                                             const ExecutorOptions& options);

}  // namespace phalanx::worker::exec
