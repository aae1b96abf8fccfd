// The forward pass of every family: a pre-norm decoder over the kernel table, and nothing else.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/check.h"
#include "worker/model/device.h"
#include "worker/model/model.h"
#include "worker/model/shard.h"
#include "worker/model/weights.h"
#include "worker/tp/group.h"

namespace phalanx::worker::model {
namespace {

using kernels::Dense;
using kernels::Stream;
using kernels::Tensor;

// What lies between operations. Every buffer has room for the largest step. Heads and the intermediate size are this rank's.
struct Scratch {
  void* residual = nullptr;    // [tokens, hidden]
  void* normed = nullptr;      // [tokens, hidden]
  void* qkv = nullptr;         // [tokens, (heads + 2 kv_heads) head_dim]
  void* q = nullptr;           // [tokens, heads, head_dim]
  void* attention = nullptr;   // [tokens, heads head_dim]
  void* inner = nullptr;       // [tokens, intermediate]
  void* wanted = nullptr;      // [tokens, hidden] last hidden state of the rows whose logits are wanted
  void* wanted_attention = nullptr;  // [tokens, heads head_dim] the same rows' attention output in the last layer
  float* shard_logits = nullptr;     // [logit rows, this rank's part of vocab]; null without other ranks
  float* all_logits = nullptr;       // [ranks, logit rows, a rank's part of vocab]; likewise
};

class Decoder : public Model {
 public:
  Decoder(const kernels::Table& table, kernels::Device* device, ModelConfig config, const Shard& shard, const LoadOptions& options,
          DecoderWeights weights)
      : table_(table), device_(device), config_(std::move(config)), shard_(shard), group_(shard.size > 1 ? options.group : nullptr),
        dtype_(options.dtype), max_tokens_(options.max_step_tokens), max_logit_rows_(options.max_logit_rows),
        weights_(std::move(weights)) {}

  const ModelConfig& config() const override { return config_; }
  kernels::DType dtype() const override { return dtype_; }
  int32_t kv_heads() const override { return shard_.kv_heads; }
  uint64_t weight_bytes() const override { return weights_.memory->bytes(); }
  absl::Status TakeScratch();
  absl::Status Forward(const ForwardInput& input, Stream stream) override;
  absl::Status Logits(int32_t begin, int32_t count, Tensor logits, Stream stream) override;

 private:
  absl::Status Attention(int32_t index, const ForwardInput& input, Stream stream);
  absl::Status OutputAndMlp(const LayerWeights& layer, void* attention, void* residual, int64_t rows, Stream stream);
  absl::Status AddProduct(Tensor x, const kernels::Weight& weight, const float* bias, Tensor residual, Stream stream);
  absl::Status KeepWanted(const ForwardInput& input, Stream stream);
  absl::Status GatherLogits(int32_t count, Tensor logits, Stream stream);
  absl::Status Linear(Tensor x, const kernels::Weight& weight, const float* bias, Tensor out, kernels::Epilogue epilogue, Stream stream);
  absl::Status NormLinear(Tensor x, const void* gamma, const kernels::Weight& weight, const float* bias, Tensor out,
                          kernels::Epilogue epilogue, Stream stream);
  absl::Status Check(kernels::Code code, const char* operation) const { return ToStatus(table_, device_, code, operation); }
  Tensor Rows(void* data, int64_t rows, int64_t columns) const { return Dense(data, dtype_, 2, rows, columns); }
  int64_t q_width() const { return shard_.q.width; }
  int64_t kv_width() const { return shard_.kv.width; }

  const kernels::Table& table_;
  kernels::Device* const device_;
  const ModelConfig config_;
  const Shard shard_;
  tp::Group* const group_;           // null: no other ranks
  const kernels::DType dtype_;
  const int32_t max_tokens_;
  const int32_t max_logit_rows_;
  const DecoderWeights weights_;
  Scratch scratch_;
  std::unique_ptr<DeviceMemory> scratch_memory_;
  int32_t num_wanted_ = 0;
};

absl::Status Decoder::TakeScratch() {
  scratch_memory_ = std::make_unique<DeviceMemory>(table_, device_);
  const std::pair<void**, int64_t> buffers[] = {
      {&scratch_.residual, config_.hidden_size},  {&scratch_.normed, config_.hidden_size},
      {&scratch_.qkv, q_width() + 2 * kv_width()}, {&scratch_.q, q_width()},
      {&scratch_.attention, q_width()},           {&scratch_.inner, shard_.inner.width},
      {&scratch_.wanted, config_.hidden_size},    {&scratch_.wanted_attention, q_width()},
  };
  for (const auto& [buffer, columns] : buffers) {
    PHX_ASSIGN_OR_RETURN(*buffer, scratch_memory_->Take(columns * max_tokens_ * kernels::DTypeBytes(dtype_), "the forward pass"));
  }
  if (group_ == nullptr) return absl::OkStatus();
  const uint64_t bytes = uint64_t(max_logit_rows_) * shard_.vocab.width * sizeof(float);
  PHX_ASSIGN_OR_RETURN(void* part, scratch_memory_->Take(bytes, "this rank's logits"));
  PHX_ASSIGN_OR_RETURN(void* all, scratch_memory_->Take(bytes * shard_.size, "all ranks' logits"));
  scratch_.shard_logits = static_cast<float*>(part);
  scratch_.all_logits = static_cast<float*>(all);
  return absl::OkStatus();
}

absl::Status Decoder::Linear(Tensor x, const kernels::Weight& weight, const float* bias, Tensor out, kernels::Epilogue epilogue,
                             Stream stream) {
  const kernels::LinearArgs args{x, weight, bias, out, epilogue, nullptr, 0, nullptr};
  return Check(table_.linear(device_, &args, stream), "linear");
}

absl::Status Decoder::NormLinear(Tensor x, const void* gamma, const kernels::Weight& weight, const float* bias, Tensor out,
                                 kernels::Epilogue epilogue, Stream stream) {
  const kernels::LinearArgs args{x, weight, bias, out, epilogue, gamma, config_.rms_norm_eps, scratch_.normed};
  return Check(table_.linear(device_, &args, stream), "linear");
}

absl::Status Decoder::Forward(const ForwardInput& input, Stream stream) {
  const int32_t tokens = input.layout.num_tokens;
  PHX_CHECK(tokens >= 1 && tokens <= max_tokens_ && input.num_logit_rows <= tokens);
  PHX_RETURN_IF_ERROR(Check(
      table_.embedding(device_, &weights_.embedding, input.token_ids, Rows(scratch_.residual, tokens, config_.hidden_size), stream),
      "embedding"));
  for (int32_t index = 0; index + 1 < config_.num_layers; ++index) {
    PHX_RETURN_IF_ERROR(Attention(index, input, stream));
    PHX_RETURN_IF_ERROR(OutputAndMlp(weights_.layers[index], scratch_.attention, scratch_.residual, tokens, stream));
  }
  // The last layer's cache needs every row, what follows it only the rows whose logits are wanted.
  num_wanted_ = input.num_logit_rows;
  PHX_RETURN_IF_ERROR(Attention(config_.num_layers - 1, input, stream));
  if (num_wanted_ == 0) return absl::OkStatus();
  PHX_RETURN_IF_ERROR(KeepWanted(input, stream));
  return OutputAndMlp(weights_.layers.back(), scratch_.wanted_attention, scratch_.wanted, num_wanted_, stream);
}

absl::Status Decoder::Attention(int32_t index, const ForwardInput& input, Stream stream) {
  const LayerWeights& layer = weights_.layers[index];
  const int64_t tokens = input.layout.num_tokens;
  const Tensor qkv = Rows(scratch_.qkv, tokens, q_width() + 2 * kv_width());
  PHX_RETURN_IF_ERROR(NormLinear(Rows(scratch_.residual, tokens, config_.hidden_size), layer.attention_norm, layer.qkv, layer.qkv_bias,
                                 qkv, kernels::kEpilogueNone, stream));

  const Tensor q = Dense(scratch_.q, dtype_, 3, tokens, shard_.heads, config_.head_dim);
  const kernels::RopeAppendArgs rope{qkv, q, shard_.heads, layer.q_norm, layer.k_norm, config_.rms_norm_eps,
                                     weights_.cos_sin, config_.head_dim, input.kv[index]};
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  const int32_t window = config_.layer_windows.empty() ? 0 : config_.layer_windows[index];
  const kernels::AttentionArgs attention{q, Rows(scratch_.attention, tokens, q_width()), input.kv[index], scale, window};
  if (table_.rope_attention != nullptr && input.layout.max_query_length == 1) {
    return Check(table_.rope_attention(device_, &rope, &attention, &input.layout, stream), "rope_attention");
  }
  PHX_RETURN_IF_ERROR(Check(table_.rope_append(device_, &rope, &input.layout, stream), "rope_append"));
  return Check(table_.attention(device_, &attention, &input.layout, stream), "attention");
}

absl::Status Decoder::OutputAndMlp(const LayerWeights& layer, void* attention, void* residual, int64_t rows, Stream stream) {
  const Tensor sum = Rows(residual, rows, config_.hidden_size);
  const Tensor inner = Rows(scratch_.inner, rows, shard_.inner.width);
  PHX_RETURN_IF_ERROR(AddProduct(Rows(attention, rows, q_width()), layer.o, layer.o_bias, sum, stream));
  PHX_RETURN_IF_ERROR(NormLinear(sum, layer.mlp_norm, layer.gate_up, layer.gate_up_bias, inner, kernels::kEpilogueSiluMul, stream));
  return AddProduct(inner, layer.down, layer.down_bias, sum, stream);
}

// residual += the product of all ranks' parts. Rank 0 adds its part to the residual, the others put theirs in the place of it; the sum over
// the ranks is the new residual on each of them. In fp32 it differs from that of one rank by the order of additions; in bf16 every rank's
// part is rounded before the sum.
absl::Status Decoder::AddProduct(Tensor x, const kernels::Weight& weight, const float* bias, Tensor residual, Stream stream) {
  const kernels::Epilogue epilogue = shard_.rank == 0 ? kernels::kEpilogueAdd : kernels::kEpilogueNone;
  PHX_RETURN_IF_ERROR(Linear(x, weight, bias, residual, epilogue, stream));
  return group_ == nullptr ? absl::OkStatus() : group_->AllReduce(residual, stream);
}

absl::Status Decoder::KeepWanted(const ForwardInput& input, Stream stream) {
  const int64_t tokens = input.layout.num_tokens;
  PHX_RETURN_IF_ERROR(Check(table_.gather_rows(device_, Rows(scratch_.residual, tokens, config_.hidden_size), input.logit_rows,
                                               Rows(scratch_.wanted, num_wanted_, config_.hidden_size), stream), "gather_rows"));
  return Check(table_.gather_rows(device_, Rows(scratch_.attention, tokens, q_width()), input.logit_rows,
                                  Rows(scratch_.wanted_attention, num_wanted_, q_width()), stream), "gather_rows");
}

absl::Status Decoder::Logits(int32_t begin, int32_t count, Tensor logits, Stream stream) {
  PHX_CHECK(begin >= 0 && count >= 1 && begin + count <= num_wanted_);
  char* first = static_cast<char*>(scratch_.wanted) + int64_t{begin} * config_.hidden_size * kernels::DTypeBytes(dtype_);
  const Tensor x = Rows(first, count, config_.hidden_size);
  if (group_ == nullptr) return NormLinear(x, weights_.final_norm, weights_.head, nullptr, logits, kernels::kEpilogueNone, stream);
  PHX_CHECK(count <= max_logit_rows_);
  const Tensor own = Dense(scratch_.shard_logits, kernels::kF32, 2, count, shard_.vocab.width);
  PHX_RETURN_IF_ERROR(NormLinear(x, weights_.final_norm, weights_.head, nullptr, own, kernels::kEpilogueNone, stream));
  return GatherLogits(count, logits, stream);
}

// Every rank's part of `count` rows, side by side in `logits`; the columns that fill up the last parts are dropped. The one place that
// needs whole rows on every rank: draws from partial results would replace it.
absl::Status Decoder::GatherLogits(int32_t count, Tensor logits, Stream stream) {
  const int64_t width = shard_.vocab.width;
  PHX_RETURN_IF_ERROR(group_->AllGather(Dense(scratch_.shard_logits, kernels::kF32, 2, count, width),
                                        Dense(scratch_.all_logits, kernels::kF32, 3, shard_.size, count, width), stream));
  for (int rank = 0; rank < shard_.size; ++rank) {
    const Cut part = EvenCut(config_.vocab_size, rank, shard_.size);
    for (int64_t row = 0; row < count; ++row) {   // host memory: LoadModel has seen to it
      std::memcpy(static_cast<float*>(logits.data) + row * logits.stride[0] + part.first,
                  scratch_.all_logits + (rank * count + row) * width, part.count * sizeof(float));
    }
  }
  return absl::OkStatus();
}

// What a decoder calls. A table without one of them is refused here, never in mid-step.
absl::Status CheckOperations(const kernels::Table& table) {
  const std::pair<const char*, bool> needed[] = {
      {"alloc", table.alloc != nullptr},
      {"free", table.free != nullptr},
      {"copy_to_device", table.copy_to_device != nullptr},
      {"packed_bytes", table.packed_bytes != nullptr},
      {"pack_weight", table.pack_weight != nullptr},
      {"embedding", table.embedding != nullptr},
      {"linear", table.linear != nullptr},
      {"rope_append", table.rope_append != nullptr},
      {"attention", table.attention != nullptr},
      {"gather_rows", table.gather_rows != nullptr},
  };
  for (const auto& [name, there] : needed) {
    if (!there) return absl::UnimplementedError(absl::StrCat("the back end ", table.name, " lacks the operation ", name));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> LoadModel(const kernels::Table& table, kernels::Device* device, const LoadOptions& options) {
  if (options.dtype != kernels::kBF16 && options.dtype != kernels::kF32) {
    return absl::UnimplementedError("a model runs in bfloat16 or float32; float16 is not supported");
  }
  PHX_CHECK(options.max_model_len > 0 && options.max_step_tokens > 0);
  PHX_RETURN_IF_ERROR(CheckOperations(table));
  const bool alone = options.group == nullptr || options.group->size() == 1;
  // Sums and gathered logits are the host's work here: memory it can reach, and operations that have finished when they return.
  if (!alone && (!IsHost(table) || table.graph_begin != nullptr)) {
    return absl::UnimplementedError(absl::StrCat("a model over several ranks runs on CPUs only so far, not on ", table.name));
  }
  PHX_ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(options.path));
  PHX_ASSIGN_OR_RETURN(const Shard shard, MakeShard(config, alone ? 0 : options.group->rank(), alone ? 1 : options.group->size()));
  PHX_ASSIGN_OR_RETURN(DecoderWeights weights, LoadWeights(table, device, config, shard, options));
  auto model = std::make_unique<Decoder>(table, device, std::move(config), shard, options, std::move(weights));
  PHX_RETURN_IF_ERROR(model->TakeScratch());
  return model;
}

}  // namespace phalanx::worker::model
