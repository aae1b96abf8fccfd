#include "worker/model/weights.h"

#include <algorithm>
#include <future>

#include "absl/strings/str_cat.h"
#include "services/check.h"
#include "worker/model/checkpoint.h"
#include "worker/model/pack_queue.h"
#include "worker/model/rope.h"

namespace phalanx::worker::model {
namespace {

// Collects what a decoder of this configuration needs from the checkpoint. Matrices are queued for packing, small tensors uploaded at once.
class Loader {
 public:
  Loader(const kernels::Table& table, kernels::Device* device, const ModelConfig& config, const LoadOptions& options)
      : table_(table), device_(device), config_(config), options_(options) {}

  absl::StatusOr<DecoderWeights> Load();

 private:
  absl::Status AddLayer(int32_t index);
  absl::Status AddAttention(const std::string& prefix, LayerWeights* layer);
  absl::Status AddMlp(const std::string& prefix, LayerWeights* layer);
  absl::Status AddMatrix(const std::string& name, int64_t n, int64_t k, kernels::Weight* weight);
  absl::Status AddBiases(const std::vector<std::pair<std::string, int64_t>>& names, bool interleaved, const float** out);
  absl::StatusOr<const void*> UploadVector(const std::string& name, int64_t size);
  absl::StatusOr<void*> Upload(const void* from, uint64_t bytes, const char* what);
  absl::Status UploadRope(const std::vector<float>& table);

  const kernels::Table& table_;
  kernels::Device* const device_;
  const ModelConfig& config_;
  const LoadOptions& options_;
  std::unique_ptr<Checkpoint> checkpoint_;
  ReadScratch scratch_;
  PackQueue queue_;
  DecoderWeights weights_;
};

absl::StatusOr<void*> Loader::Upload(const void* from, uint64_t bytes, const char* what) {
  PHX_ASSIGN_OR_RETURN(void* to, weights_.memory->Take(bytes, what));
  PHX_RETURN_IF_ERROR(ToStatus(table_, device_, table_.copy_to_device(device_, to, from, bytes, nullptr), "copy_to_device"));
  PHX_RETURN_IF_ERROR(ToStatus(table_, device_, table_.stream_synchronize(device_, nullptr), "stream_synchronize"));  // `from` may go now
  return to;
}

absl::StatusOr<const void*> Loader::UploadVector(const std::string& name, int64_t size) {
  PHX_ASSIGN_OR_RETURN(const SourceTensor tensor, checkpoint_->Expect(name, {size}));
  std::vector<char> values(size * kernels::DTypeBytes(options_.dtype));
  PHX_RETURN_IF_ERROR(checkpoint_->ReadRows(tensor, 0, tensor.rows, options_.dtype, values.data(), tensor.columns, &scratch_));
  PHX_ASSIGN_OR_RETURN(const void* memory, Upload(values.data(), values.size(), name.c_str()));
  return memory;
}

// Joins biases to one fp32 vector: one after another, or element by element in turn.
absl::Status Loader::AddBiases(const std::vector<std::pair<std::string, int64_t>>& names, bool interleaved, const float** out) {
  int64_t total = 0;
  for (const auto& [name, size] : names) total += size;
  std::vector<float> joined(total);
  int64_t at = 0;
  for (const auto& [name, size] : names) {
    PHX_ASSIGN_OR_RETURN(const SourceTensor tensor, checkpoint_->Expect(name, {size}));
    std::vector<float> values(size);
    PHX_RETURN_IF_ERROR(checkpoint_->ReadRows(tensor, 0, tensor.rows, kernels::kF32, values.data(), tensor.columns, &scratch_));
    const int64_t step = interleaved ? static_cast<int64_t>(names.size()) : 1;
    for (int64_t i = 0; i < size; ++i) joined[at + i * step] = values[i];
    at += interleaved ? 1 : size;
  }
  PHX_ASSIGN_OR_RETURN(const void* memory, Upload(joined.data(), joined.size() * sizeof(float), "a bias"));
  *out = static_cast<const float*>(memory);
  return absl::OkStatus();
}

absl::Status Loader::AddMatrix(const std::string& name, int64_t n, int64_t k, kernels::Weight* weight) {
  PHX_ASSIGN_OR_RETURN(const SourceTensor tensor, checkpoint_->Expect(name, {n, k}));
  queue_.Add({weight, n, k, {{tensor, 0, 1}}});
  return absl::OkStatus();
}

absl::Status Loader::AddAttention(const std::string& prefix, LayerWeights* layer) {
  const int64_t hidden = config_.hidden_size;
  const int64_t q_rows = int64_t{config_.num_heads} * config_.head_dim;
  const int64_t kv_rows = int64_t{config_.num_kv_heads} * config_.head_dim;
  PHX_ASSIGN_OR_RETURN(const SourceTensor q, checkpoint_->Expect(absl::StrCat(prefix, "q_proj.weight"), {q_rows, hidden}));
  PHX_ASSIGN_OR_RETURN(const SourceTensor k, checkpoint_->Expect(absl::StrCat(prefix, "k_proj.weight"), {kv_rows, hidden}));
  PHX_ASSIGN_OR_RETURN(const SourceTensor v, checkpoint_->Expect(absl::StrCat(prefix, "v_proj.weight"), {kv_rows, hidden}));
  queue_.Add({&layer->qkv, q_rows + 2 * kv_rows, hidden, {{q, 0, 1}, {k, q_rows, 1}, {v, q_rows + kv_rows, 1}}});
  PHX_RETURN_IF_ERROR(AddMatrix(absl::StrCat(prefix, "o_proj.weight"), hidden, q_rows, &layer->o));
  if (config_.qkv_bias) {
    PHX_RETURN_IF_ERROR(AddBiases({{absl::StrCat(prefix, "q_proj.bias"), q_rows},
                                   {absl::StrCat(prefix, "k_proj.bias"), kv_rows},
                                   {absl::StrCat(prefix, "v_proj.bias"), kv_rows}},
                                  /*interleaved=*/false, &layer->qkv_bias));
  }
  if (config_.o_bias) {
    PHX_RETURN_IF_ERROR(AddBiases({{absl::StrCat(prefix, "o_proj.bias"), hidden}}, /*interleaved=*/false, &layer->o_bias));
  }
  if (config_.qk_norm) {
    PHX_ASSIGN_OR_RETURN(layer->q_norm, UploadVector(absl::StrCat(prefix, "q_norm.weight"), config_.head_dim));
    PHX_ASSIGN_OR_RETURN(layer->k_norm, UploadVector(absl::StrCat(prefix, "k_norm.weight"), config_.head_dim));
  }
  return absl::OkStatus();
}

absl::Status Loader::AddMlp(const std::string& prefix, LayerWeights* layer) {
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  PHX_ASSIGN_OR_RETURN(const SourceTensor gate, checkpoint_->Expect(absl::StrCat(prefix, "gate_proj.weight"), {inner, hidden}));
  PHX_ASSIGN_OR_RETURN(const SourceTensor up, checkpoint_->Expect(absl::StrCat(prefix, "up_proj.weight"), {inner, hidden}));
  queue_.Add({&layer->gate_up, 2 * inner, hidden, {{gate, 0, 2}, {up, 1, 2}}});
  PHX_RETURN_IF_ERROR(AddMatrix(absl::StrCat(prefix, "down_proj.weight"), hidden, inner, &layer->down));
  if (!config_.mlp_bias) return absl::OkStatus();
  PHX_RETURN_IF_ERROR(AddBiases({{absl::StrCat(prefix, "gate_proj.bias"), inner}, {absl::StrCat(prefix, "up_proj.bias"), inner}},
                                /*interleaved=*/true, &layer->gate_up_bias));
  return AddBiases({{absl::StrCat(prefix, "down_proj.bias"), hidden}}, /*interleaved=*/false, &layer->down_bias);
}

absl::Status Loader::AddLayer(int32_t index) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  LayerWeights* layer = &weights_.layers[index];
  PHX_ASSIGN_OR_RETURN(layer->attention_norm, UploadVector(absl::StrCat(prefix, "input_layernorm.weight"), config_.hidden_size));
  PHX_ASSIGN_OR_RETURN(layer->mlp_norm, UploadVector(absl::StrCat(prefix, "post_attention_layernorm.weight"), config_.hidden_size));
  PHX_RETURN_IF_ERROR(AddAttention(absl::StrCat(prefix, "self_attn."), layer));
  return AddMlp(absl::StrCat(prefix, "mlp."), layer);
}

std::vector<float> RopeTable(const ModelConfig& config, const LoadOptions& options) {
  const std::vector<float> frequencies = InverseFrequencies(config);
  std::vector<float> table(size_t{2} * frequencies.size() * options.max_model_len);
  for (int32_t position = 0; position < options.max_model_len; ++position) {
    FillRopeRow(frequencies, position, options.dtype, table.data() + size_t{2} * frequencies.size() * position);
  }
  return table;
}

absl::Status Loader::UploadRope(const std::vector<float>& table) {
  PHX_ASSIGN_OR_RETURN(const void* memory, Upload(table.data(), table.size() * sizeof(float), "the rotary table"));
  weights_.cos_sin = static_cast<const float*>(memory);
  return absl::OkStatus();
}

absl::StatusOr<DecoderWeights> Loader::Load() {
  PHX_ASSIGN_OR_RETURN(checkpoint_, Checkpoint::Open(options_.path, config_, options_.format));
  weights_.memory = std::make_unique<DeviceMemory>(table_, device_);
  weights_.layers.resize(config_.num_layers);
  const int64_t vocab = config_.vocab_size;
  const bool has_head = checkpoint_->Has("lm_head.weight");
  const bool tied = config_.tied_is_known ? config_.tied_embeddings : !has_head;
  PHX_RETURN_IF_ERROR(AddMatrix("model.embed_tokens.weight", vocab, config_.hidden_size, &weights_.embedding));
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) PHX_RETURN_IF_ERROR(AddLayer(layer));
  PHX_ASSIGN_OR_RETURN(weights_.final_norm, UploadVector("model.norm.weight", config_.hidden_size));
  if (!tied) {
    PHX_RETURN_IF_ERROR(AddMatrix("lm_head.weight", vocab, config_.hidden_size, &weights_.head));
  } else if (has_head) {
    // A copy that some tools write although the head is tied; it is checked and not read.
    PHX_RETURN_IF_ERROR(checkpoint_->Expect("lm_head.weight", {vocab, config_.hidden_size}).status());
  }
  PHX_RETURN_IF_ERROR(checkpoint_->CheckAllUsed());
  // A long context makes this a matter of a tenth of a second: it runs beside the reading.
  std::future<std::vector<float>> rope = std::async(std::launch::async, [this] { return RopeTable(config_, options_); });
  PHX_RETURN_IF_ERROR(queue_.Run(table_, device_, *checkpoint_, options_.dtype, weights_.memory.get(), options_.progress));
  PHX_RETURN_IF_ERROR(UploadRope(rope.get()));
  if (tied) weights_.head = weights_.embedding;
  return std::move(weights_);
}

}  // namespace

absl::StatusOr<DecoderWeights> LoadWeights(const kernels::Table& table, kernels::Device* device, const ModelConfig& config,
                                           const LoadOptions& options) {
  return Loader(table, device, config, options).Load();
}

}  // namespace phalanx::worker::model
