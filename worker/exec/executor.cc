#include "worker/exec/executor.h"

#include <algorithm>
#include <array>
#include <deque>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/check.h"
#include "services/log.h"
#include "worker/exec/graphs.h"
#include "worker/exec/inputs.h"
#include "worker/exec/memory.h"
#include "worker/exec/rows.h"
#include "worker/exec/sampler.h"
#include "worker/exec/staging.h"
#include "worker/model/device.h"

namespace phalanx::worker::exec {
namespace {

// Logits of so many bytes are computed at a time. With graphs a whole decode step has to fit.
constexpr uint64_t kLogitBytes = uint64_t{64} << 20;
constexpr uint64_t kGraphLogitBytes = uint64_t{640} << 20;
// Decode steps up to so many rows are warmed before the worker is ready; larger ones when it is idle, or when they come.
constexpr int32_t kWarmRows = 8;
// Variants of a recorded step: with its draws, or up to the logits.
constexpr int32_t kWithDraws = 1;
constexpr int32_t kLogitsOnly = 0;

bool UsesGraphs(const kernels::Table& table, const ExecutorOptions& options) { return options.graphs && table.graph_begin != nullptr; }

// A table with graphs is one whose operations return before they have finished; on others overlap would only cost.
int32_t StepsAhead(const kernels::Table& table, const ExecutorOptions& options) {
  const int32_t most = table.take_ids != nullptr ? 1 : 0;
  return options.steps_ahead >= 0 ? std::min(options.steps_ahead, most) : (table.graph_begin != nullptr ? most : 0);
}

int32_t LogitRows(int32_t vocab, bool graphs, const ExecutorOptions& options) {
  const auto fit = static_cast<int64_t>((graphs ? kGraphLogitBytes : kLogitBytes) / (uint64_t(vocab) * sizeof(float)));
  return static_cast<int32_t>(std::clamp<int64_t>(fit, 16, std::max<int64_t>(16, options.max_num_seqs)));
}

// The device's events of the steps in one turn.
struct TurnEvents {
  kernels::Event done = nullptr;
  kernels::Event begin = nullptr;     // null where the table measures no time
  kernels::Event drawing = nullptr;   // likewise
};

// A launched step, as far as its results need it.
struct Flight {
  struct Slice {
    int32_t row = 0;
    uint64_t owner = 0;
    bool sampled = false;
    int32_t prompt_rows = 0;
  };
  uint64_t step = 0;
  uint64_t launch = 0;
  int32_t turn = -1;                  // -1: nothing ran
  bool timed = false;
  bool timed_draws = false;
  std::vector<Slice> slices;          // those with results
};

class KernelExecutor : public core::Executor {
 public:
  static absl::StatusOr<std::unique_ptr<KernelExecutor>> Create(const kernels::Table& table, kernels::Device* device,
                                                                const ExecutorOptions& options);
  ~KernelExecutor() override;
  const core::ExecutorInfo& info() const override { return info_; }
  absl::Status Launch(const core::StepPlan& plan) override;
  absl::StatusOr<core::StepResult> Collect() override;
  absl::StatusOr<bool> Prepare() override;
  void RangePush(const char* name) override {
    if (table_.range_push != nullptr) table_.range_push(name);
  }
  void RangePop() override {
    if (table_.range_pop != nullptr) table_.range_pop();
  }

 private:
  KernelExecutor(const kernels::Table& table, kernels::Device* device) : table_(table), device_(device), memory_(table, device) {}
  absl::Status TakeVaultAndRows(const model::ModelConfig& config, const ExecutorOptions& options);
  absl::Status TakeStaging(const model::ModelConfig& config, const ExecutorOptions& options, int32_t logit_rows);
  absl::Status CreateEvents();
  absl::Status WarmUp();
  absl::Status WarmPrompt(int32_t count);
  absl::Status WarmDecode(const Padding& shape);

  // Enqueues a step of which the rows are known: inputs, forward pass, draws, results. `shape`: it is padded to that.
  absl::Status Start(const core::StepPlan& plan, const std::optional<Padding>& shape, Flight* flight);
  absl::Status Pass(const StepInputs& inputs, int32_t wanted);
  absl::Status RunShape(const StepInputs& inputs, const Padding& shape, Flight* flight);
  absl::Status RunPlainly(const StepInputs& inputs, Flight* flight);
  void NoteResults(const core::StepPlan& plan, Flight* flight);
  absl::Status Measure(const Flight& flight, core::StepResult* result) const;
  kernels::Tensor Logits(int32_t rows) const {
    kernels::Tensor logits = logits_;
    logits.shape[0] = rows;
    return logits;
  }
  absl::Status Check(kernels::Code code, const char* operation) const { return model::ToStatus(table_, device_, code, operation); }
  absl::Status Record(kernels::Event event) const { return Check(table_.event_record(device_, event, nullptr), "event_record"); }

  const kernels::Table& table_;
  kernels::Device* const device_;
  core::ExecutorInfo info_;
  model::DeviceMemory memory_;
  std::unique_ptr<model::Model> model_;
  std::vector<kernels::KvLayer> vault_;
  std::optional<RowTable> rows_;
  std::optional<Staging> staging_;
  std::optional<InputBuilder> inputs_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<DecodeGraphs> graphs_;     // null: none
  std::vector<Padding> to_prepare_;          // last first
  kernels::Tensor logits_{};                 // [logit rows, vocab] f32
  std::array<TurnEvents, kTurns> events_;
  std::deque<Flight> flights_;               // oldest first
  uint64_t launches_ = 0;
};

// ---- start ----------------------------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<KernelExecutor>> KernelExecutor::Create(const kernels::Table& table, kernels::Device* device,
                                                                       const ExecutorOptions& options) {
  PHX_CHECK(options.max_model_len > 0 && options.max_num_seqs > 0 && options.max_num_batched_tokens > 0 && options.block_size > 0);
  std::unique_ptr<KernelExecutor> executor(new KernelExecutor(table, device));
  PHX_ASSIGN_OR_RETURN(const model::ModelConfig config, model::ReadModelConfig(options.model_path));
  const bool graphs = UsesGraphs(table, options);
  const int32_t logit_rows = LogitRows(config.vocab_size, graphs, options);
  const model::LoadOptions load{options.model_path, options.dtype, options.max_model_len, options.max_num_batched_tokens, logit_rows,
                                options.progress, options.load_format, options.group};
  PHX_ASSIGN_OR_RETURN(executor->model_, model::LoadModel(table, device, load));
  PHX_RETURN_IF_ERROR(executor->TakeStaging(config, options, logit_rows));
  PHX_RETURN_IF_ERROR(executor->TakeVaultAndRows(config, options));
  PHX_RETURN_IF_ERROR(executor->CreateEvents());
  if (graphs) {
    const int32_t rows = std::min({logit_rows, options.max_num_seqs, options.max_num_batched_tokens});
    executor->graphs_ = std::make_unique<DecodeGraphs>(table, device, rows, options.max_model_len);
    executor->to_prepare_ = executor->graphs_->AllShapes();
    std::reverse(executor->to_prepare_.begin(), executor->to_prepare_.end());
  }
  PHX_RETURN_IF_ERROR(executor->WarmUp());
  return executor;
}

// What a step needs beside the model: staging, inputs, sampling, logits.
absl::Status KernelExecutor::TakeStaging(const model::ModelConfig& config, const ExecutorOptions& options, int32_t logit_rows) {
  const SamplerShape shape{config.vocab_size, options.max_num_seqs, options.max_num_batched_tokens + options.max_num_seqs};
  PHX_ASSIGN_OR_RETURN(sampler_, Sampler::Create(table_, device_, shape));
  const int32_t max_blocks = (options.max_model_len + options.block_size - 1) / options.block_size;
  const uint64_t bytes =
      InputBuilder::StagingBytes(options.max_num_batched_tokens, options.max_num_seqs, max_blocks) + Sampler::StagingBytes(shape);
  PHX_ASSIGN_OR_RETURN(staging_, Staging::Create(table_, device_, bytes, &memory_));
  inputs_.emplace(options.max_num_batched_tokens, options.block_size);
  PHX_ASSIGN_OR_RETURN(void* logits, memory_.Take(uint64_t(logit_rows) * config.vocab_size * sizeof(float), "logits"));
  logits_ = kernels::Dense(logits, kernels::kF32, 2, logit_rows, config.vocab_size);
  return absl::OkStatus();
}

absl::Status KernelExecutor::TakeVaultAndRows(const model::ModelConfig& config, const ExecutorOptions& options) {
  kernels::DeviceInfo device_info{};
  PHX_RETURN_IF_ERROR(Check(table_.info(device_, &device_info), "info"));
  model::ModelConfig own = config;   // what this rank's cache holds
  own.num_kv_heads = model_->kv_heads();
  KvBudget budget;
  budget.block_bytes = BlockBytes(own, options.kv_dtype, options.block_size);
  budget.kv_cache_bytes = options.kv_cache_bytes;
  budget.utilization = options.gpu_memory_utilization;
  budget.memory_total = device_info.memory_total;
  budget.memory_free = device_info.memory_free;
  budget.host_memory = std::string_view(table_.name) != "cuda";
  budget.block_size = options.block_size;
  budget.max_model_len = options.max_model_len;
  budget.max_num_seqs = options.max_num_seqs;
  PHX_ASSIGN_OR_RETURN(const int32_t num_blocks, AgreeOnBlocks(CountBlocks(budget), options.group));
  PHX_ASSIGN_OR_RETURN(vault_, TakeVault(own, options.kv_dtype, options.block_size, num_blocks, &memory_));
  rows_.emplace(options.max_num_seqs, num_blocks, options.block_size);
  info_ = {num_blocks,           options.block_size, options.max_num_seqs,        options.max_num_batched_tokens,
           options.max_model_len, config.vocab_size,  StepsAhead(table_, options)};
  return absl::OkStatus();
}

absl::Status KernelExecutor::CreateEvents() {
  for (TurnEvents& events : events_) {
    PHX_RETURN_IF_ERROR(Check(table_.event_create(device_, &events.done), "event_create"));
    if (table_.event_elapsed == nullptr) continue;
    PHX_RETURN_IF_ERROR(Check(table_.event_create(device_, &events.begin), "event_create"));
    PHX_RETURN_IF_ERROR(Check(table_.event_create(device_, &events.drawing), "event_create"));
  }
  return absl::OkStatus();
}

KernelExecutor::~KernelExecutor() {
  table_.stream_synchronize(device_, nullptr);  // what is in flight reads memory that goes away now
  for (const TurnEvents& events : events_) {
    for (kernels::Event event : {events.done, events.begin, events.drawing}) {
      if (event != nullptr) table_.event_destroy(device_, event);
    }
  }
}

// What the first requests meet: warm code, touched memory, small decode steps recorded. On a table whose operations finish when they
// return, a tiny prompt and a decode are enough, and a large step would cost seconds.
absl::Status KernelExecutor::WarmUp() {
  const bool device_works_alone = table_.graph_begin != nullptr;
  const int32_t most = std::min(info_.max_step_tokens, info_.max_model_len);
  if (!device_works_alone) {
    PHX_RETURN_IF_ERROR(WarmPrompt(std::min(info_.block_size, most)));
    return WarmDecode({1, std::min(info_.block_size, info_.max_model_len)});
  }
  for (int32_t count = most; count >= 1; count /= 2) PHX_RETURN_IF_ERROR(WarmPrompt(count));
  if (graphs_ == nullptr) {
    for (int32_t rows = 1; rows <= std::min({kWarmRows, info_.max_rows, info_.max_step_tokens}); rows *= 2) {
      PHX_RETURN_IF_ERROR(WarmDecode({rows, info_.max_model_len}));
    }
    return absl::OkStatus();
  }
  for (const Padding& shape : graphs_->AllShapes()) {
    if (shape.rows <= kWarmRows) PHX_RETURN_IF_ERROR(WarmDecode(shape));
  }
  return absl::OkStatus();
}

// A prompt of `count` tokens, or as many as the vault holds, on a row that is given back.
absl::Status KernelExecutor::WarmPrompt(int32_t count) {
  count = static_cast<int32_t>(std::min<int64_t>(count, int64_t{info_.num_blocks} * info_.block_size));
  core::StepPlan plan;
  plan.added.push_back({});
  plan.added[0].prompt_length = count;
  plan.added[0].sampling.temperature = 0;
  core::NewBlocks& blocks = plan.new_blocks.emplace_back();
  for (int32_t b = 0; b * info_.block_size < count; ++b) blocks.blocks.push_back(b);
  plan.slices.push_back({0, 0, count, 0, true, false});
  plan.tokens.assign(count, 0);
  plan.num_tokens = count;
  PHX_RETURN_IF_ERROR(Run(plan).status());
  core::StepPlan end;
  end.removed = {0};
  return Run(end).status();
}

// A decode step of padding alone: it writes to no block, and nobody reads its draws.
absl::Status KernelExecutor::WarmDecode(const Padding& shape) {
  PHX_CHECK(flights_.empty());
  Flight flight;
  PHX_RETURN_IF_ERROR(Start({}, shape, &flight));
  return Check(table_.event_wait(device_, events_[flight.turn].done), "event_wait");
}

absl::StatusOr<bool> KernelExecutor::Prepare() {
  while (!to_prepare_.empty()) {
    const Padding shape = to_prepare_.back();
    to_prepare_.pop_back();
    if (graphs_->Has(shape, kWithDraws)) continue;
    PHX_RETURN_IF_ERROR(WarmDecode(shape));
    return true;
  }
  return false;
}

// ---- a step ---------------------------------------------------------------------------------------------------------

absl::Status KernelExecutor::Launch(const core::StepPlan& plan) {
  PHX_CHECK(static_cast<int32_t>(flights_.size()) <= info_.steps_ahead);
  rows_->Apply(plan);
  for (const core::AddedSequence& added : plan.added) PHX_RETURN_IF_ERROR(sampler_->Add(added));
  Flight flight;
  flight.step = plan.step;
  if (!plan.slices.empty()) {
    const std::optional<Padding> shape = graphs_ == nullptr ? std::nullopt : graphs_->ShapeOf(plan);
    PHX_RETURN_IF_ERROR(Start(plan, shape, &flight));
    NoteResults(plan, &flight);
  }
  flights_.push_back(std::move(flight));
  return absl::OkStatus();
}

absl::Status KernelExecutor::Start(const core::StepPlan& plan, const std::optional<Padding>& shape, Flight* flight) {
  staging_->Begin();
  flight->turn = staging_->turn();
  flight->launch = ++launches_;
  flight->timed = table_.event_elapsed != nullptr && services::LogEnabled(services::LogLevel::kDebug);
  if (flight->timed) PHX_RETURN_IF_ERROR(Record(events_[flight->turn].begin));
  const StepInputs inputs = inputs_->Build(plan, *rows_, shape.value_or(Padding{}), &*staging_);
  PHX_RETURN_IF_ERROR(sampler_->Prepare(plan, *rows_, inputs_->wanted(), inputs_->num_sampled(), shape ? shape->rows : 0, &*staging_));
  PHX_RETURN_IF_ERROR(staging_->Upload());
  PHX_RETURN_IF_ERROR(shape ? RunShape(inputs, *shape, flight) : RunPlainly(inputs, flight));
  PHX_RETURN_IF_ERROR(sampler_->Download());
  return Record(events_[flight->turn].done);
}

// Everything up to the last hidden state of the wanted rows.
absl::Status KernelExecutor::Pass(const StepInputs& inputs, int32_t wanted) {
  if (inputs.takes || (graphs_ != nullptr && info_.steps_ahead > 0)) {
    PHX_RETURN_IF_ERROR(Check(
        table_.take_ids(device_, inputs.token_ids, inputs.from, sampler_->drawn(), inputs.layout.num_tokens, nullptr), "take_ids"));
  }
  return model_->Forward({inputs.token_ids, inputs.layout, vault_.data(), inputs.logit_rows, wanted}, nullptr);
}

// A decode step of a shape: all its rows draw. Recorded with its draws where they allow that.
absl::Status KernelExecutor::RunShape(const StepInputs& inputs, const Padding& shape, Flight* flight) {
  core::Range range(*this, "decode");
  const bool draws = sampler_->recordable();
  const auto pass = [&]() -> absl::Status {
    PHX_RETURN_IF_ERROR(Pass(inputs, shape.rows));
    PHX_RETURN_IF_ERROR(model_->Logits(0, shape.rows, Logits(shape.rows), nullptr));
    return draws ? sampler_->EnqueuePadded(shape.rows, Logits(shape.rows)) : absl::OkStatus();
  };
  PHX_RETURN_IF_ERROR(graphs_ == nullptr ? pass() : graphs_->Run(shape, draws ? kWithDraws : kLogitsOnly, pass));
  if (draws) return absl::OkStatus();
  flight->timed_draws = flight->timed;
  if (flight->timed) PHX_RETURN_IF_ERROR(Record(events_[flight->turn].drawing));
  const auto wanted = static_cast<int32_t>(inputs_->wanted().size());
  return sampler_->Enqueue(0, wanted, Logits(wanted));
}

// Head and draws over the wanted rows go as many at a time as the logits buffer holds.
absl::Status KernelExecutor::RunPlainly(const StepInputs& inputs, Flight* flight) {
  const auto wanted = static_cast<int32_t>(inputs_->wanted().size());
  const auto chunk = static_cast<int32_t>(logits_.shape[0]);
  {
    core::Range range(*this, "forward");
    PHX_RETURN_IF_ERROR(Pass(inputs, wanted));
  }
  core::Range range(*this, "logits and draws");
  for (int32_t begin = 0; begin < wanted; begin += chunk) {
    const int32_t count = std::min(chunk, wanted - begin);
    PHX_RETURN_IF_ERROR(model_->Logits(begin, count, Logits(count), nullptr));
    flight->timed_draws = flight->timed && wanted <= chunk;
    if (flight->timed_draws) PHX_RETURN_IF_ERROR(Record(events_[flight->turn].drawing));
    PHX_RETURN_IF_ERROR(sampler_->Enqueue(begin, count, Logits(count)));
  }
  return absl::OkStatus();
}

// Who gets what of the step's results, and where each row's last token lies from now on.
void KernelExecutor::NoteResults(const core::StepPlan& plan, Flight* flight) {
  const std::vector<WantedRow>& wanted = inputs_->wanted();
  int32_t draw = 0;
  auto prompt = static_cast<size_t>(inputs_->num_sampled());
  for (size_t s = 0; s < plan.slices.size(); ++s) {
    const core::Slice& slice = plan.slices[s];
    if (!slice.sample && !slice.prompt_logprobs) continue;
    Flight::Slice& out = flight->slices.emplace_back();
    out.row = slice.row;
    out.owner = rows_->at(slice.row).owner;
    out.sampled = slice.sample;
    if (slice.sample) rows_->MarkDrawn(slice.row, flight->launch, draw++);
    for (; prompt < wanted.size() && wanted[prompt].slice == static_cast<int32_t>(s); ++prompt) ++out.prompt_rows;
  }
}

absl::StatusOr<core::StepResult> KernelExecutor::Collect() {
  PHX_CHECK(!flights_.empty());
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  core::StepResult result;
  result.step = flight.step;
  if (flight.turn < 0) return result;
  PHX_RETURN_IF_ERROR(Check(table_.event_wait(device_, events_[flight.turn].done), "event_wait"));
  int32_t draw = 0;
  int32_t prompt = 0;
  for (const Flight::Slice& slice : flight.slices) prompt += slice.sampled;
  result.slices.reserve(flight.slices.size());
  for (const Flight::Slice& slice : flight.slices) {
    core::SliceResult& out = result.slices.emplace_back();
    out.row = slice.row;
    out.sampled = slice.sampled;
    if (slice.sampled) {
      out.token = sampler_->Result(flight.turn, draw++);
      rows_->SetLastToken(slice.row, slice.owner, flight.launch, out.token.id);
    }
    for (int32_t i = 0; i < slice.prompt_rows; ++i) out.prompt.push_back(sampler_->Result(flight.turn, prompt++));
  }
  PHX_RETURN_IF_ERROR(Measure(flight, &result));
  return result;
}

absl::Status KernelExecutor::Measure(const Flight& flight, core::StepResult* result) const {
  const TurnEvents& events = events_[flight.turn];
  if (flight.timed) PHX_RETURN_IF_ERROR(Check(table_.event_elapsed(device_, events.begin, events.done, &result->device_ms), "event_elapsed"));
  if (!flight.timed_draws) return absl::OkStatus();
  return Check(table_.event_elapsed(device_, events.drawing, events.done, &result->sample_ms), "event_elapsed");
}

}  // namespace

absl::StatusOr<std::unique_ptr<core::Executor>> MakeExecutor(const kernels::Table& table, kernels::Device* device,
                                                             const ExecutorOptions& options) {
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<core::Executor> executor, KernelExecutor::Create(table, device, options));
  return executor;
}

}  // namespace phalanx::worker::exec
