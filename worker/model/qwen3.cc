// Qwen3 dense: an RMSNorm over every head of q and k before rotation, head_dim given apart; biases only if asked for.
#include "worker/model/family.h"

namespace phalanx::worker::model {
namespace {

absl::Status Configure(const ConfigFields& fields, ModelConfig* config) {
  config->qk_norm = true;
  PHX_ASSIGN_OR_RETURN(config->qkv_bias, fields.BoolOr("attention_bias", false));
  config->o_bias = config->qkv_bias;
  return ReadQwenWindow(fields, config);
}

}  // namespace

const Family kQwen3 = {"Qwen3ForCausalLM", "qwen3", "qwen3", /*gguf_permutes_qk=*/false, Configure};

}  // namespace phalanx::worker::model
