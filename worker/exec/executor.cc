#include "worker/exec/executor.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/check.h"
#include "worker/exec/graphs.h"
#include "worker/exec/inputs.h"
#include "worker/exec/memory.h"
#include "worker/exec/rows.h"
#include "worker/exec/sampler.h"
#include "worker/model/device.h"

namespace phalanx::worker::exec {
namespace {

// Logits of so many bytes are computed at a time. With graphs a whole decode step has to fit.
constexpr uint64_t kLogitBytes = uint64_t{64} << 20;
constexpr uint64_t kGraphLogitBytes = uint64_t{640} << 20;

bool UsesGraphs(const kernels::Table& table, const ExecutorOptions& options) { return options.graphs && table.graph_begin != nullptr; }

int32_t LogitRows(int32_t vocab, bool graphs, const ExecutorOptions& options) {
  const auto fit = static_cast<int64_t>((graphs ? kGraphLogitBytes : kLogitBytes) / (uint64_t(vocab) * sizeof(float)));
  return static_cast<int32_t>(std::clamp<int64_t>(fit, 16, std::max<int64_t>(16, options.max_num_seqs)));
}

class KernelExecutor : public core::Executor {
 public:
  static absl::StatusOr<std::unique_ptr<KernelExecutor>> Create(const kernels::Table& table, kernels::Device* device,
                                                                const ExecutorOptions& options);
  const core::ExecutorInfo& info() const override { return info_; }
  absl::StatusOr<core::StepResult> Run(const core::StepPlan& plan) override;
  absl::Status WarmUp();

 private:
  KernelExecutor(const kernels::Table& table, kernels::Device* device) : memory_(table, device) {}
  // The whole step up to the wanted rows' logits.
  absl::Status Pass(const StepInputs& inputs, int32_t wanted);
  absl::Status RunWanted();
  core::StepResult Collect(const core::StepPlan& plan);

  core::ExecutorInfo info_;
  model::DeviceMemory memory_;
  std::unique_ptr<model::Model> model_;
  std::vector<kernels::KvLayer> vault_;
  std::optional<RowTable> rows_;
  std::optional<InputBuilder> inputs_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<DecodeGraphs> graphs_;     // null: none
  kernels::Tensor logits_{};                 // [logit rows, vocab] f32
  std::vector<core::TokenInfo> tokens_;      // results of the wanted rows of this step
};

absl::StatusOr<std::unique_ptr<KernelExecutor>> KernelExecutor::Create(const kernels::Table& table, kernels::Device* device,
                                                                       const ExecutorOptions& options) {
  PHX_CHECK(options.max_model_len > 0 && options.max_num_seqs > 0 && options.max_num_batched_tokens > 0 && options.block_size > 0);
  std::unique_ptr<KernelExecutor> executor(new KernelExecutor(table, device));
  PHX_ASSIGN_OR_RETURN(const model::ModelConfig config, model::ReadModelConfig(options.model_path));
  const bool graphs = UsesGraphs(table, options);
  const int32_t logit_rows = LogitRows(config.vocab_size, graphs, options);
  const model::LoadOptions load{options.model_path, options.dtype, options.max_model_len, options.max_num_batched_tokens, logit_rows,
                                options.progress};
  PHX_ASSIGN_OR_RETURN(executor->model_, model::LoadModel(table, device, load));

  model::DeviceMemory* memory = &executor->memory_;
  const SamplerShape shape{config.vocab_size, options.max_num_seqs, options.max_num_batched_tokens + options.max_num_seqs, logit_rows};
  PHX_ASSIGN_OR_RETURN(executor->sampler_, Sampler::Create(table, device, shape));
  const int32_t max_blocks = (options.max_model_len + options.block_size - 1) / options.block_size;
  PHX_ASSIGN_OR_RETURN(executor->inputs_, InputBuilder::Create(table, device, options.max_num_batched_tokens, options.max_num_seqs,
                                                               max_blocks, options.block_size, memory));
  PHX_ASSIGN_OR_RETURN(void* logits, memory->Take(uint64_t(logit_rows) * config.vocab_size * sizeof(float), "logits"));
  executor->logits_ = kernels::Dense(logits, kernels::kF32, 2, logit_rows, config.vocab_size);

  kernels::DeviceInfo device_info{};
  PHX_RETURN_IF_ERROR(model::ToStatus(table, device, table.info(device, &device_info), "info"));
  KvBudget budget;
  budget.block_bytes = BlockBytes(config, options.kv_dtype, options.block_size);
  budget.kv_cache_bytes = options.kv_cache_bytes;
  budget.utilization = options.gpu_memory_utilization;
  budget.memory_total = device_info.memory_total;
  budget.memory_free = device_info.memory_free;
  budget.host_memory = std::string_view(table.name) != "cuda";
  budget.block_size = options.block_size;
  budget.max_model_len = options.max_model_len;
  budget.max_num_seqs = options.max_num_seqs;
  PHX_ASSIGN_OR_RETURN(const int32_t num_blocks, CountBlocks(budget));
  PHX_ASSIGN_OR_RETURN(executor->vault_, TakeVault(config, options.kv_dtype, options.block_size, num_blocks, memory));
  executor->rows_.emplace(options.max_num_seqs, num_blocks, options.block_size);
  executor->info_ = {num_blocks,           options.block_size,    options.max_num_seqs, options.max_num_batched_tokens,
                     options.max_model_len, config.vocab_size};
  if (graphs) {
    const int32_t rows = std::min({logit_rows, options.max_num_seqs, options.max_num_batched_tokens});
    executor->graphs_ = std::make_unique<DecodeGraphs>(table, device, rows, options.max_model_len);
  }
  PHX_RETURN_IF_ERROR(executor->WarmUp());
  return executor;
}

// One tiny prompt and one decode, so that the first request meets warm code and touched memory.
absl::Status KernelExecutor::WarmUp() {
  const int32_t count = std::min({info_.block_size, info_.max_step_tokens, info_.max_model_len});
  core::StepPlan plan;
  plan.added.push_back({});
  plan.added[0].prompt_length = count;
  plan.new_blocks.push_back({0, {0}});
  plan.slices.push_back({0, 0, count, 0, true, false});
  plan.tokens.assign(count, 0);
  plan.num_tokens = count;
  PHX_RETURN_IF_ERROR(Run(plan).status());
  core::StepPlan last;
  last.slices.push_back({0, count - 1, 1, 0, true, false});
  last.tokens.assign(1, 0);
  last.num_tokens = 1;
  PHX_RETURN_IF_ERROR(Run(last).status());
  core::StepPlan end;
  end.removed = {0};
  return Run(end).status();
}

absl::StatusOr<core::StepResult> KernelExecutor::Run(const core::StepPlan& plan) {
  rows_->Apply(plan);
  for (const core::AddedSequence& added : plan.added) PHX_RETURN_IF_ERROR(sampler_->Add(added));
  tokens_.clear();
  if (plan.slices.empty()) return core::StepResult{plan.step, {}};

  const std::optional<Padding> shape = graphs_ == nullptr ? std::nullopt : graphs_->ShapeOf(plan);
  PHX_ASSIGN_OR_RETURN(const StepInputs inputs, inputs_->Build(plan, *rows_, shape.value_or(Padding{})));
  const auto wanted = static_cast<int32_t>(inputs_->wanted().size());
  if (wanted > 0) PHX_RETURN_IF_ERROR(sampler_->Prepare(plan, *rows_, inputs_->wanted(), inputs_->num_sampled()));
  if (shape) {
    PHX_RETURN_IF_ERROR(graphs_->Run(*shape, [&] { return Pass(inputs, shape->rows); }));
    kernels::Tensor logits = logits_;
    logits.shape[0] = wanted;
    PHX_RETURN_IF_ERROR(sampler_->RunChunk(0, wanted, logits, &tokens_));
    return Collect(plan);
  }
  PHX_RETURN_IF_ERROR(model_->Forward({inputs.token_ids, inputs.layout, vault_.data(), inputs.logit_rows, wanted}, nullptr));
  if (wanted > 0) PHX_RETURN_IF_ERROR(RunWanted());
  return Collect(plan);
}

absl::Status KernelExecutor::Pass(const StepInputs& inputs, int32_t wanted) {
  PHX_RETURN_IF_ERROR(model_->Forward({inputs.token_ids, inputs.layout, vault_.data(), inputs.logit_rows, wanted}, nullptr));
  kernels::Tensor logits = logits_;
  logits.shape[0] = wanted;
  return model_->Logits(0, wanted, logits, nullptr);
}

// Head and sampling over the wanted rows, as many at a time as the logits buffer holds.
absl::Status KernelExecutor::RunWanted() {
  const auto wanted = static_cast<int32_t>(inputs_->wanted().size());
  const auto chunk = static_cast<int32_t>(logits_.shape[0]);
  for (int32_t begin = 0; begin < wanted; begin += chunk) {
    const int32_t count = std::min(chunk, wanted - begin);
    kernels::Tensor logits = logits_;
    logits.shape[0] = count;
    PHX_RETURN_IF_ERROR(model_->Logits(begin, count, logits, nullptr));
    PHX_RETURN_IF_ERROR(sampler_->RunChunk(begin, count, logits, &tokens_));
  }
  return absl::OkStatus();
}

core::StepResult KernelExecutor::Collect(const core::StepPlan& plan) {
  core::StepResult result{plan.step, {}};
  const std::vector<WantedRow>& wanted = inputs_->wanted();
  size_t sampled = 0;                                           // next sampled row
  auto prompt = static_cast<size_t>(inputs_->num_sampled());    // next prompt row
  for (size_t s = 0; s < plan.slices.size(); ++s) {
    const core::Slice& slice = plan.slices[s];
    if (!slice.sample && !slice.prompt_logprobs) continue;
    core::SliceResult& out = result.slices.emplace_back();
    out.row = slice.row;
    if (slice.sample) {
      out.sampled = true;
      out.token = std::move(tokens_[sampled++]);
      rows_->SetLastToken(slice.row, out.token.id);
    }
    for (; prompt < wanted.size() && wanted[prompt].slice == static_cast<int32_t>(s); ++prompt) {
      out.prompt.push_back(std::move(tokens_[prompt]));
    }
  }
  return result;
}

}  // namespace

absl::StatusOr<std::unique_ptr<core::Executor>> MakeExecutor(const kernels::Table& table, kernels::Device* device,
                                                             const ExecutorOptions& options) {
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<core::Executor> executor, KernelExecutor::Create(table, device, options));
  return executor;
}

}  // namespace phalanx::worker::exec
