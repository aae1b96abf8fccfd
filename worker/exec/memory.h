// worker/exec/memory.h: the KV vault: how many blocks fit, and their bytes on the device.
// Refuses to know: who owns a block. Thread: the engine thread.
// Neighbours: executor.cc sizes and takes it at start; the model's forward pass reads and writes it through KvLayer.
#pragma once

#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "services/status.h"
#include "worker/exec/executor.h"
#include "worker/model/device.h"
#include "worker/model/model.h"

namespace phalanx::worker::exec {

// What decides the number of KV blocks, as plain numbers.
struct KvBudget {
  uint64_t block_bytes = 0;         // one block in all layers, keys and values
  uint64_t kv_cache_bytes = 0;      // the flag; 0 = by utilization
  double utilization = 0.92;        // share of memory that the worker may take in all
  uint64_t memory_total = 0;        // bytes on the device
  uint64_t memory_free = 0;         // bytes free now, weights and workspaces already taken
  bool host_memory = false;         // the device is the CPU: other programs live there, so the share is of what is free
  int32_t block_size = 16;          // tokens
  int32_t max_model_len = 0;
  int32_t max_num_seqs = 0;
};

// On the CPU a vault sized by utilization stays below this unless one sequence of max_model_len needs more.
constexpr uint64_t kHostKvBytesMax = uint64_t{4} << 30;

// The number of blocks: at least one sequence of max_model_len, at most max_num_seqs of them.
// Errors: kResourceExhausted, with both sizes and the flags that help.
absl::StatusOr<int32_t> CountBlocks(const KvBudget& budget);

// The smallest number of the ranks, which all must call it: one plan names blocks for all of them. Null group: this rank's number.
// Errors: this rank's; kResourceExhausted naming another rank that has none; those of the group.
absl::StatusOr<int32_t> AgreeOnBlocks(const absl::StatusOr<int32_t>& own, tp::Group* group);

// `config` is that of one rank: num_kv_heads are those it holds.
uint64_t BlockBytes(const model::ModelConfig& config, kernels::DType kv_dtype, int32_t block_size);

// Takes the vault's memory: one array for keys and one for values a layer.
absl::StatusOr<std::vector<kernels::KvLayer>> TakeVault(const model::ModelConfig& config, kernels::DType kv_dtype, int32_t block_size,
                                                        int32_t num_blocks, model::DeviceMemory* memory);

}  // namespace phalanx::worker::exec
