// Mistral 7B: Llama without biases; `sliding_window` (v0.1) holds for every layer. Its GGUF files say "llama".
#include "absl/strings/str_cat.h"
#include "worker/model/family.h"

namespace phalanx::worker::model {
namespace {

absl::Status Configure(const ConfigFields& fields, ModelConfig* config) {
  PHX_ASSIGN_OR_RETURN(const int64_t window, fields.IntOr("sliding_window", 0));
  if (window < 0 || window > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": sliding_window is ", window));
  }
  if (window > 0) config->layer_windows.assign(config->num_layers, static_cast<int32_t>(window));
  return absl::OkStatus();
}

}  // namespace

const Family kMistral = {"MistralForCausalLM", "mistral", nullptr, /*gguf_permutes_qk=*/true, Configure};

}  // namespace phalanx::worker::model
