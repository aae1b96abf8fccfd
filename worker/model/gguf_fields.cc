// GGUF metadata under Hugging Face names. Keys: the GGUF specification's standardised metadata and llama.cpp's converters.
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "formats/gguf.h"
#include "worker/model/family.h"
#include "worker/model/fields.h"

namespace phalanx::worker::model {
namespace {

struct KeyName {
  std::string_view field;
  std::string_view key;  // after "<architecture>."
};

constexpr std::array<KeyName, 10> kKeys = {{
    {"hidden_size", "embedding_length"},
    {"num_hidden_layers", "block_count"},
    {"num_attention_heads", "attention.head_count"},
    {"num_key_value_heads", "attention.head_count_kv"},
    {"head_dim", "attention.key_length"},
    {"intermediate_size", "feed_forward_length"},
    {"max_position_embeddings", "context_length"},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon"},
    {"rope_theta", "rope.freq_base"},
    {"sliding_window", "attention.sliding_window"},
}};

class GgufFields : public ConfigFields {
 public:
  GgufFields(std::unique_ptr<formats::GgufFile> file, std::string architecture)
      : file_(std::move(file)), gguf_architecture_(std::move(architecture)) {}

  const std::string& where() const override { return file_->path(); }
  absl::StatusOr<std::optional<int64_t>> Int(std::string_view name) const override {
    if (name == "vocab_size") return VocabSize();
    const std::string key = KeyOf(name);
    if (file_->Find(key) == nullptr) return std::nullopt;
    PHX_ASSIGN_OR_RETURN(const int64_t value, file_->GetInt(key));
    return value;
  }
  absl::StatusOr<std::optional<double>> Float(std::string_view name) const override {
    const std::string key = KeyOf(name);
    if (file_->Find(key) == nullptr) return std::nullopt;
    PHX_ASSIGN_OR_RETURN(const double value, file_->GetFloat(key));
    return value;
  }
  // Biases are no metadata in GGUF: the tensors are there or not.
  absl::StatusOr<std::optional<bool>> Bool(std::string_view name) const override {
    if (name == "attention_bias") return file_->tensors().contains("blk.0.attn_q.bias");
    if (name == "mlp_bias") return file_->tensors().contains("blk.0.ffn_up.bias");
    return std::nullopt;
  }
  absl::StatusOr<std::optional<std::vector<std::string>>> Strings(std::string_view name) const override { return std::nullopt; }
  absl::StatusOr<std::string> Architecture() const override {
    const Family* family = FindFamilyByGguf(gguf_architecture_);
    if (family == nullptr) {
      return absl::UnimplementedError(
          absl::StrCat(where(), ": architecture ", gguf_architecture_, " is not supported; supported are llama, qwen2, qwen3"));
    }
    return family->architecture;
  }
  absl::Status ReadRope(ModelConfig* config) const override;
  absl::Status ReadRest(ModelConfig* config) const override;

 private:
  std::string KeyOf(std::string_view field) const {
    for (const KeyName& entry : kKeys) {
      if (entry.field == field) return absl::StrCat(gguf_architecture_, ".", std::string(entry.key));
    }
    return absl::StrCat(gguf_architecture_, ".", std::string(field));
  }
  // Rows of the embedding: the metadata's vocab_size is optional and may differ from it.
  absl::StatusOr<std::optional<int64_t>> VocabSize() const {
    const auto embedding = file_->tensors().find("token_embd.weight");
    if (embedding == file_->tensors().end()) {
      return absl::InvalidArgumentError(absl::StrCat(where(), ": tensor token_embd.weight is missing"));
    }
    return embedding->second.shape.front();
  }
  absl::Status ReadRopeDivisors(ModelConfig* config) const;

  const std::unique_ptr<formats::GgufFile> file_;
  const std::string gguf_architecture_;
};

absl::Status GgufFields::ReadRopeDivisors(ModelConfig* config) const {
  const auto it = file_->tensors().find("rope_freqs.weight");
  if (it == file_->tensors().end()) return absl::OkStatus();
  const formats::TensorRange& tensor = it->second;
  if (tensor.encoding != formats::Encoding::kF32 || tensor.shape != std::vector<int64_t>{config->head_dim / 2}) {
    return absl::InvalidArgumentError(absl::StrCat(where(), ": tensor rope_freqs.weight must be F32 with head_dim / 2 entries"));
  }
  config->rope_freq_divisors.resize(tensor.shape[0]);
  PHX_RETURN_IF_ERROR(formats::DecodeToF32(tensor.encoding, tensor.bytes.data(), tensor.shape[0], config->rope_freq_divisors.data()));
  for (const float divisor : config->rope_freq_divisors) {
    if (!(divisor > 0)) return absl::InvalidArgumentError(absl::StrCat(where(), ": tensor rope_freqs.weight has a value that is not above 0"));
  }
  return absl::OkStatus();
}

absl::Status GgufFields::ReadRope(ModelConfig* config) const {
  PHX_ASSIGN_OR_RETURN(const auto theta, Float("rope_theta"));
  if (theta && !(*theta > 0)) return absl::InvalidArgumentError(absl::StrCat(where(), ": ", KeyOf("rope_theta"), " is not above zero"));
  if (theta) config->rope_theta = *theta;
  PHX_ASSIGN_OR_RETURN(const int64_t rotary, IntOr("rope.dimension_count", config->head_dim));
  if (rotary != config->head_dim) {
    return absl::UnimplementedError(absl::StrCat(where(), ": rope.dimension_count ", rotary, " differs from the head size ",
                                                 config->head_dim, ", which is not supported"));
  }
  PHX_RETURN_IF_ERROR(ReadRopeDivisors(config));
  const std::string type_key = KeyOf("rope.scaling.type");
  if (file_->Find(type_key) == nullptr) return absl::OkStatus();
  PHX_ASSIGN_OR_RETURN(const std::string type, file_->GetString(type_key));
  if (type == "none") return absl::OkStatus();
  if (type != "linear") {
    return absl::UnimplementedError(absl::StrCat(where(), ": rope type ", type, " is not supported; supported are none, linear"));
  }
  PHX_ASSIGN_OR_RETURN(const auto factor, Float("rope.scaling.factor"));
  if (!factor || !(*factor > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(where(), ": ", KeyOf("rope.scaling.factor"), " is missing or not above zero"));
  }
  config->rope_scaling = RopeScaling::kLinear;
  config->rope_factor = *factor;
  return absl::OkStatus();
}

absl::Status GgufFields::ReadRest(ModelConfig* config) const {
  PHX_ASSIGN_OR_RETURN(const int64_t experts, IntOr("expert_count", 0));
  if (experts > 0) return absl::UnimplementedError(absl::StrCat(where(), ": mixtures of experts are not supported"));
  PHX_ASSIGN_OR_RETURN(const int64_t value_length, IntOr("attention.value_length", config->head_dim));
  if (value_length != config->head_dim) {
    return absl::UnimplementedError(absl::StrCat(where(), ": attention.value_length differs from key_length, which is not supported"));
  }
  config->tied_embeddings = !file_->tensors().contains("output.weight");
  config->tied_is_known = true;
  const formats::Encoding encoding = file_->tensors().find("token_embd.weight")->second.encoding;
  config->checkpoint_dtype = encoding == formats::Encoding::kF32   ? kernels::kF32
                             : encoding == formats::Encoding::kF16 ? kernels::kF16
                                                                   : kernels::kBF16;
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    if (file_->Find(key) == nullptr) continue;
    PHX_ASSIGN_OR_RETURN(const int64_t id, file_->GetInt(key));
    if (id < 0 || id >= config->vocab_size) return absl::InvalidArgumentError(absl::StrCat(where(), ": ", key, " is ", id));
    auto& ids = config->eos_token_ids;
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(static_cast<int32_t>(id));
  }
  if (file_->Find("tokenizer.ggml.bos_token_id") != nullptr) {
    PHX_ASSIGN_OR_RETURN(const int64_t id, file_->GetInt("tokenizer.ggml.bos_token_id"));
    if (id >= 0 && id < config->vocab_size) config->bos_token_id = static_cast<int32_t>(id);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ConfigFields>> OpenGgufFields(const std::string& path) {
  PHX_ASSIGN_OR_RETURN(auto file, formats::GgufFile::Open(path));
  PHX_ASSIGN_OR_RETURN(std::string architecture, file->GetString("general.architecture"));
  return std::make_unique<GgufFields>(std::move(file), std::move(architecture));
}

}  // namespace phalanx::worker::model
