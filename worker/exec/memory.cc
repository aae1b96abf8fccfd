#include "worker/exec/memory.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "worker/tp/group.h"

namespace phalanx::worker::exec {
namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

uint64_t BytesByUtilization(const KvBudget& budget) {
  if (budget.host_memory) return static_cast<uint64_t>(static_cast<double>(budget.memory_free) * budget.utilization);
  const auto allowed = static_cast<uint64_t>(static_cast<double>(budget.memory_total) * budget.utilization);
  const uint64_t used = budget.memory_total - std::min(budget.memory_free, budget.memory_total);
  return allowed > used ? std::min(allowed - used, budget.memory_free) : 0;
}

// One sequence does not fit: what is needed, where the memory is, which flags help.
absl::Status TooLittle(const KvBudget& budget, uint64_t needed, uint64_t available) {
  std::string where;
  if (budget.kv_cache_bytes == 0 && !budget.host_memory) {
    where = absl::StrFormat(" (%.2f of the device's %.3f GiB, less %.3f GiB that weights, workspaces and other programs take)",
                            budget.utilization, budget.memory_total / kGib,
                            (budget.memory_total - std::min(budget.memory_free, budget.memory_total)) / kGib);
  }
  const int64_t longest = static_cast<int64_t>(available / budget.block_bytes) * budget.block_size;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "one sequence of max_model_len %d needs %.3f GiB of KV cache, but only %.3f GiB are available%s; lower --max-model-len%s, or raise "
      "%s",
      budget.max_model_len, needed / kGib, available / kGib, where, longest > 0 ? absl::StrFormat(" to %d", longest) : "",
      budget.kv_cache_bytes != 0 ? "--kv-cache-memory-bytes" : "--gpu-memory-utilization"));
}

}  // namespace

absl::StatusOr<int32_t> CountBlocks(const KvBudget& budget) {
  const uint64_t one_sequence = (uint64_t(budget.max_model_len) + budget.block_size - 1) / budget.block_size;
  const uint64_t useful = one_sequence * budget.max_num_seqs;
  uint64_t bytes = budget.kv_cache_bytes;
  if (bytes == 0) {
    bytes = BytesByUtilization(budget);
    if (budget.host_memory) bytes = std::min(bytes, std::max(kHostKvBytesMax, one_sequence * budget.block_bytes));
  }
  const uint64_t blocks = std::min({bytes / budget.block_bytes, useful, uint64_t{INT32_MAX}});
  if (blocks < one_sequence) return TooLittle(budget, one_sequence * budget.block_bytes, bytes);
  return static_cast<int32_t>(blocks);
}

absl::StatusOr<int32_t> AgreeOnBlocks(const absl::StatusOr<int32_t>& own, tp::Group* group) {
  if (group == nullptr || group->size() == 1) return own;
  // A rank without room says so: the others would wait for it in vain.
  int32_t mine = own.ok() ? *own : 0;
  std::vector<int32_t> all(group->size());
  const absl::Status gathered = group->AllGather(kernels::Dense(&mine, kernels::kI32, 1, 1),
                                                 kernels::Dense(all.data(), kernels::kI32, 1, group->size()), nullptr);
  PHX_RETURN_IF_ERROR(own.status());
  PHX_RETURN_IF_ERROR(gathered);
  const auto least = std::min_element(all.begin(), all.end());
  if (*least > 0) return *least;
  return absl::ResourceExhaustedError(absl::StrFormat("rank %d has no room for the KV cache; its log says more", least - all.begin()));
}

uint64_t BlockBytes(const model::ModelConfig& config, kernels::DType kv_dtype, int32_t block_size) {
  return uint64_t{2} * config.num_layers * config.num_kv_heads * config.head_dim * block_size * kernels::DTypeBytes(kv_dtype);
}

absl::StatusOr<std::vector<kernels::KvLayer>> TakeVault(const model::ModelConfig& config, kernels::DType kv_dtype, int32_t block_size,
                                                        int32_t num_blocks, model::DeviceMemory* memory) {
  const uint64_t bytes = BlockBytes(config, kv_dtype, block_size) / 2 / config.num_layers * num_blocks;
  const auto take = [&]() -> absl::StatusOr<void*> {
    absl::StatusOr<void*> out = memory->Take(bytes, "a layer's part of the KV cache");
    if (!absl::IsResourceExhausted(out.status())) return out;
    return absl::ResourceExhaustedError(absl::StrFormat("%s; the KV cache takes %.3f GiB in all: lower --kv-cache-memory-bytes or "
                                                        "--gpu-memory-utilization",
                                                        std::string(out.status().message()), 2 * config.num_layers * bytes / kGib));
  };
  std::vector<kernels::KvLayer> layers;
  for (int32_t i = 0; i < config.num_layers; ++i) {
    PHX_ASSIGN_OR_RETURN(void* k, take());
    PHX_ASSIGN_OR_RETURN(void* v, take());
    layers.push_back({k, v, kv_dtype, num_blocks, config.num_kv_heads, block_size, config.head_dim});
  }
  return layers;
}

}  // namespace phalanx::worker::exec
