// worker/model/model.h: a loaded decoder: weights on a device and a forward pass over one step's rows.
// Refuses to know: requests, scheduling, sampling. Thread: the engine thread (loading may use its own threads inside).
// Neighbours: formats gives bytes by name, kernels does the arithmetic, worker/exec calls Forward.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "services/status.h"

namespace phalanx::worker::tp {
class Group;
}  // namespace phalanx::worker::tp

namespace phalanx::worker::model {

enum class RopeScaling { kNone, kLinear, kLlama3 };

// The architecture's numbers, from config.json (both dialects) or GGUF metadata; checked.
struct ModelConfig {
  std::string architecture;     // "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"
  int32_t hidden_size = 0;
  int32_t num_layers = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t intermediate_size = 0;
  int32_t vocab_size = 0;       // rows of the embedding = width of the logits
  int32_t max_position = 0;     // context the model was made for
  float rms_norm_eps = 1e-6f;
  bool tied_embeddings = false;
  bool tied_is_known = false;   // false: config.json says nothing, a checkpoint without lm_head.weight is tied
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;
  std::vector<int32_t> layer_windows;  // [num_layers] sliding window of each layer, 0 = none; empty = none anywhere
  double rope_theta = 10000.0;
  RopeScaling rope_scaling = RopeScaling::kNone;
  double rope_factor = 1.0;
  double rope_low_freq_factor = 1.0;
  double rope_high_freq_factor = 4.0;
  int32_t rope_original_max_position = 0;
  std::vector<float> rope_freq_divisors;  // GGUF rope_freqs; empty = none
  kernels::DType checkpoint_dtype = kernels::kBF16;
  std::vector<int32_t> eos_token_ids;     // union of config.json, generation_config.json and GGUF
  int32_t bos_token_id = -1;
};

// Reads and checks the configuration of a model folder (Hugging Face layout) or a .gguf file, without weights.
// Errors: kNotFound, kInvalidArgument (names file and field), kUnimplemented (names the architecture or feature).
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path);

// Where weights come from. kAuto: from the container that `path` names; the named containers refuse another one.
enum class LoadFormat { kAuto, kSafetensors, kGguf, kDummy };

struct LoadOptions {
  std::string path;                             // folder or .gguf
  kernels::DType dtype = kernels::kBF16;        // model dtype: kBF16 or kF32
  int32_t max_model_len = 0;                    // positions of the rotary table
  int32_t max_step_tokens = 0;                  // rows of the largest step: sizes the workspaces
  int32_t max_logit_rows = 0;                   // rows of one call to Logits
  std::function<void(double)> progress;         // 0..1, may be null; called from the loading thread
  LoadFormat format = LoadFormat::kAuto;        // kDummy: made-up weights; of `path` only the configuration is read
  tp::Group* group = nullptr;                   // the ranks that share the model; null = this one alone. Outlives the model
};

// Scratch and state that a forward pass needs from exec.
struct ForwardInput {
  const int32_t* token_ids;              // [num_tokens], device memory
  kernels::StepLayout layout;
  const kernels::KvLayer* kv;            // [num_layers], of Model::kv_heads() heads
  const int32_t* logit_rows;             // [num_logit_rows] rows of this step whose logits are wanted, device memory
  int32_t num_logit_rows;                // 0 = none: a chunk of a prompt
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual kernels::DType dtype() const = 0;
  virtual int32_t kv_heads() const = 0;        // of the cache: with ranks those of this one, else the configuration's
  virtual uint64_t weight_bytes() const = 0;   // bytes on the device
  // Runs all layers over the step's rows, fills the KV cache and keeps the wanted rows' last hidden state until the next call.
  // kInternal names the failed operation; with ranks, those of tp::Group. Every rank makes the same calls for the same rows, here and in
  // Logits, and has the same bits in the end.
  virtual absl::Status Forward(const ForwardInput& input, kernels::Stream stream) = 0;
  // Second stage: `logits` [count, vocab_size] f32 gets the logits of wanted rows [begin, begin + count) of the last Forward;
  // count <= max_logit_rows. Only these rows pay for the head.
  virtual absl::Status Logits(int32_t begin, int32_t count, kernels::Tensor logits, kernels::Stream stream) = 0;
};

// Asks the kernel to read the weight files of a model folder, or a .gguf file, into its cache. May block for as long as that takes; what
// cannot be read is left to LoadModel to report. Any thread.
void ReadAhead(const std::string& path);

// Loads weights onto `device`, with ranks this rank's part of them (shard.h); no rank waits for another. Errors name the file and the
// tensor; kInvalidArgument if the heads cannot be spread over the ranks; kUnimplemented for ranks on any table but a CPU's.
// Nothing of the device stays taken.
absl::StatusOr<std::unique_ptr<Model>> LoadModel(const kernels::Table& table, kernels::Device* device, const LoadOptions& options);

}  // namespace phalanx::worker::model
