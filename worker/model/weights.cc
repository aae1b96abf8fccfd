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

struct BiasPart {
  std::string name;
  int64_t size = 0;   // of the whole bias
  Cut cut;
};

// Collects what a decoder of this configuration needs from the checkpoint. Matrices are queued for packing, small tensors uploaded at once.
class Loader {
 public:
  Loader(const kernels::Table& table, kernels::Device* device, const ModelConfig& config, const Shard& shard, const LoadOptions& options)
      : table_(table), device_(device), config_(config), shard_(shard), options_(options) {}

  absl::StatusOr<DecoderWeights> Load();

 private:
  absl::Status AddLayer(int32_t index);
  absl::Status AddAttention(const std::string& prefix, LayerWeights* layer);
  absl::Status AddMlp(const std::string& prefix, LayerWeights* layer);
  absl::StatusOr<SourceTensor> Expect(const std::string& name, int64_t n, int64_t k, const Cut& rows, const Cut& columns);
  absl::Status AddMatrix(const std::string& name, int64_t n, int64_t k, const Cut& rows, const Cut& columns, kernels::Weight* weight);
  absl::Status AddHead(const std::string& name);
  absl::Status AddBiases(const std::vector<BiasPart>& parts, bool interleaved, const float** out);
  absl::Status AddOnce(const std::string& name, const float** out);
  absl::StatusOr<bool> HeadLiesInEmbedding() const;
  absl::StatusOr<const void*> UploadVector(const std::string& name, int64_t size);
  absl::StatusOr<void*> Upload(const void* from, uint64_t bytes, const char* what);
  absl::Status UploadRope(const std::vector<float>& table);

  const kernels::Table& table_;
  kernels::Device* const device_;
  const ModelConfig& config_;
  const Shard& shard_;
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
absl::Status Loader::AddBiases(const std::vector<BiasPart>& parts, bool interleaved, const float** out) {
  int64_t total = 0;
  for (const BiasPart& part : parts) total += part.cut.width;
  std::vector<float> joined(total);
  int64_t at = 0;
  for (const BiasPart& part : parts) {
    PHX_ASSIGN_OR_RETURN(const SourceTensor tensor, checkpoint_->Expect(part.name, {part.size}));
    std::vector<float> values(part.size);
    PHX_RETURN_IF_ERROR(checkpoint_->ReadRows(tensor, 0, tensor.rows, kernels::kF32, values.data(), tensor.columns, &scratch_));
    const int64_t step = interleaved ? static_cast<int64_t>(parts.size()) : 1;
    for (int64_t i = 0; i < part.cut.count; ++i) joined[at + i * step] = values[part.cut.first + i];
    at += interleaved ? 1 : part.cut.width;
  }
  PHX_ASSIGN_OR_RETURN(const void* memory, Upload(joined.data(), joined.size() * sizeof(float), "a bias"));
  *out = static_cast<const float*>(memory);
  return absl::OkStatus();
}

// The bias of a layer whose products are summed over the ranks: one of them adds it.
absl::Status Loader::AddOnce(const std::string& name, const float** out) {
  const int64_t hidden = config_.hidden_size;
  if (shard_.rank == 0) return AddBiases({{name, hidden, Whole(hidden)}}, /*interleaved=*/false, out);
  return checkpoint_->Expect(name, {hidden}).status();
}

// The part of the tensor `name` [n, k].
absl::StatusOr<SourceTensor> Loader::Expect(const std::string& name, int64_t n, int64_t k, const Cut& rows, const Cut& columns) {
  PHX_ASSIGN_OR_RETURN(const SourceTensor tensor, checkpoint_->Expect(name, {n, k}));
  return tensor.Part(rows, columns);
}

absl::Status Loader::AddMatrix(const std::string& name, int64_t n, int64_t k, const Cut& rows, const Cut& columns,
                               kernels::Weight* weight) {
  PHX_ASSIGN_OR_RETURN(const SourceTensor tensor, Expect(name, n, k, rows, columns));
  queue_.Add({weight, tensor.rows, tensor.columns, {{tensor, 0, 1}}});
  return absl::OkStatus();
}

absl::Status Loader::AddAttention(const std::string& prefix, LayerWeights* layer) {
  const int64_t hidden = config_.hidden_size;
  const int64_t q_rows = int64_t{config_.num_heads} * config_.head_dim;
  const int64_t kv_rows = int64_t{config_.num_kv_heads} * config_.head_dim;
  const Cut& own_q = shard_.q;
  const Cut& own_kv = shard_.kv;
  PHX_ASSIGN_OR_RETURN(const SourceTensor q, Expect(absl::StrCat(prefix, "q_proj.weight"), q_rows, hidden, own_q, Whole(hidden)));
  PHX_ASSIGN_OR_RETURN(const SourceTensor k, Expect(absl::StrCat(prefix, "k_proj.weight"), kv_rows, hidden, own_kv, Whole(hidden)));
  PHX_ASSIGN_OR_RETURN(const SourceTensor v, Expect(absl::StrCat(prefix, "v_proj.weight"), kv_rows, hidden, own_kv, Whole(hidden)));
  queue_.Add({&layer->qkv, q.rows + 2 * k.rows, hidden, {{q, 0, 1}, {k, q.rows, 1}, {v, q.rows + k.rows, 1}}});
  PHX_RETURN_IF_ERROR(AddMatrix(absl::StrCat(prefix, "o_proj.weight"), hidden, q_rows, Whole(hidden), own_q, &layer->o));
  if (config_.qkv_bias) {
    PHX_RETURN_IF_ERROR(AddBiases({{absl::StrCat(prefix, "q_proj.bias"), q_rows, own_q},
                                   {absl::StrCat(prefix, "k_proj.bias"), kv_rows, own_kv},
                                   {absl::StrCat(prefix, "v_proj.bias"), kv_rows, own_kv}},
                                  /*interleaved=*/false, &layer->qkv_bias));
  }
  if (config_.o_bias) PHX_RETURN_IF_ERROR(AddOnce(absl::StrCat(prefix, "o_proj.bias"), &layer->o_bias));
  if (config_.qk_norm) {
    PHX_ASSIGN_OR_RETURN(layer->q_norm, UploadVector(absl::StrCat(prefix, "q_norm.weight"), config_.head_dim));
    PHX_ASSIGN_OR_RETURN(layer->k_norm, UploadVector(absl::StrCat(prefix, "k_norm.weight"), config_.head_dim));
  }
  return absl::OkStatus();
}

absl::Status Loader::AddMlp(const std::string& prefix, LayerWeights* layer) {
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  const Cut& own = shard_.inner;
  PHX_ASSIGN_OR_RETURN(const SourceTensor gate, Expect(absl::StrCat(prefix, "gate_proj.weight"), inner, hidden, own, Whole(hidden)));
  PHX_ASSIGN_OR_RETURN(const SourceTensor up, Expect(absl::StrCat(prefix, "up_proj.weight"), inner, hidden, own, Whole(hidden)));
  queue_.Add({&layer->gate_up, 2 * own.width, hidden, {{gate, 0, 2}, {up, 1, 2}}});
  PHX_RETURN_IF_ERROR(AddMatrix(absl::StrCat(prefix, "down_proj.weight"), hidden, inner, Whole(hidden), own, &layer->down));
  if (!config_.mlp_bias) return absl::OkStatus();
  PHX_RETURN_IF_ERROR(AddBiases({{absl::StrCat(prefix, "gate_proj.bias"), inner, own}, {absl::StrCat(prefix, "up_proj.bias"), inner, own}},
                                /*interleaved=*/true, &layer->gate_up_bias));
  return AddOnce(absl::StrCat(prefix, "down_proj.bias"), &layer->down_bias);
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

absl::Status Loader::AddHead(const std::string& name) {
  const int64_t hidden = config_.hidden_size;
  return AddMatrix(name, config_.vocab_size, hidden, shard_.vocab, Whole(hidden), &weights_.head);
}

// True if this rank's part of a tied head is a run of the packed embedding's rows, at a place that kernels like.
absl::StatusOr<bool> Loader::HeadLiesInEmbedding() const {
  constexpr uint64_t kAlignment = 256;
  if (shard_.size == 1) return true;
  const uint64_t at = uint64_t(shard_.vocab.first) * config_.hidden_size * kernels::DTypeBytes(options_.dtype);
  if (shard_.vocab.count < shard_.vocab.width || at % kAlignment != 0) return false;
  return KeepsRows(table_, device_, options_.dtype);
}

// The rows of a matrix that is kept as it is.
kernels::Weight RowsOf(const kernels::Weight& whole, const Cut& rows) {
  kernels::Weight part = whole;
  const uint64_t row_bytes = uint64_t(whole.k) * kernels::DTypeBytes(whole.dtype);
  part.data = static_cast<const char*>(whole.data) + rows.first * row_bytes;
  part.n = rows.width;
  part.bytes = rows.width * row_bytes;
  return part;
}

absl::StatusOr<DecoderWeights> Loader::Load() {
  PHX_ASSIGN_OR_RETURN(checkpoint_, Checkpoint::Open(options_.path, config_, options_.format));
  weights_.memory = std::make_unique<DeviceMemory>(table_, device_);
  weights_.layers.resize(config_.num_layers);
  const int64_t vocab = config_.vocab_size;
  const int64_t hidden = config_.hidden_size;
  const bool has_head = checkpoint_->Has("lm_head.weight");
  const bool tied = config_.tied_is_known ? config_.tied_embeddings : !has_head;
  PHX_RETURN_IF_ERROR(AddMatrix("model.embed_tokens.weight", vocab, hidden, Whole(vocab), Whole(hidden), &weights_.embedding));
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) PHX_RETURN_IF_ERROR(AddLayer(layer));
  PHX_ASSIGN_OR_RETURN(weights_.final_norm, UploadVector("model.norm.weight", hidden));
  bool shared = false;
  if (tied) {
    PHX_ASSIGN_OR_RETURN(shared, HeadLiesInEmbedding());
  }
  if (!shared) PHX_RETURN_IF_ERROR(AddHead(tied ? "model.embed_tokens.weight" : "lm_head.weight"));
  if (tied && has_head) {
    // A copy that some tools write although the head is tied; it is checked and not read.
    PHX_RETURN_IF_ERROR(checkpoint_->Expect("lm_head.weight", {vocab, hidden}).status());
  }
  PHX_RETURN_IF_ERROR(checkpoint_->CheckAllUsed());
  // A long context makes this a matter of a tenth of a second: it runs beside the reading.
  std::future<std::vector<float>> rope = std::async(std::launch::async, [this] { return RopeTable(config_, options_); });
  PHX_RETURN_IF_ERROR(queue_.Run(table_, device_, *checkpoint_, options_.dtype, weights_.memory.get(), options_.progress));
  PHX_RETURN_IF_ERROR(UploadRope(rope.get()));
  if (shared) weights_.head = shard_.size == 1 ? weights_.embedding : RowsOf(weights_.embedding, shard_.vocab);
  return std::move(weights_);
}

}  // namespace

absl::StatusOr<DecoderWeights> LoadWeights(const kernels::Table& table, kernels::Device* device, const ModelConfig& config,
                                           const Shard& shard, const LoadOptions& options) {
  return Loader(table, device, config, shard, options).Load();
}

}  // namespace phalanx::worker::model
