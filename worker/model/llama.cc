// Llama 2, 3 and 3.x (SmolLM2 among them): no biases unless the configuration asks for them.
#include "worker/model/family.h"

namespace phalanx::worker::model {
namespace {

absl::Status Configure(const ConfigFields& fields, ModelConfig* config) {
  PHX_ASSIGN_OR_RETURN(config->qkv_bias, fields.BoolOr("attention_bias", false));
  config->o_bias = config->qkv_bias;
  PHX_ASSIGN_OR_RETURN(config->mlp_bias, fields.BoolOr("mlp_bias", false));
  return absl::OkStatus();
}

}  // namespace

const Family kLlama = {"LlamaForCausalLM", "llama", "llama", /*gguf_permutes_qk=*/true, Configure};

}  // namespace phalanx::worker::model
