// Qwen2 and Qwen2.5: biases on q, k and v. A sliding window is off unless `use_sliding_window` says so.
#include "absl/strings/str_cat.h"
#include "worker/model/family.h"

namespace phalanx::worker::model {
namespace {

absl::Status Configure(const ConfigFields& fields, ModelConfig* config) {
  config->qkv_bias = true;
  return ReadQwenWindow(fields, config);
}

}  // namespace

absl::Status ReadQwenWindow(const ConfigFields& fields, ModelConfig* config) {
  PHX_ASSIGN_OR_RETURN(const bool use, fields.BoolOr("use_sliding_window", false));
  PHX_ASSIGN_OR_RETURN(const int64_t window, fields.IntOr("sliding_window", 0));
  if (!use || window == 0) return absl::OkStatus();
  if (window < 0 || window > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": sliding_window is ", window));
  }
  PHX_ASSIGN_OR_RETURN(const auto types, fields.Strings("layer_types"));
  PHX_ASSIGN_OR_RETURN(const int64_t full_layers, fields.IntOr("max_window_layers", 28));
  if (types && types->size() != static_cast<size_t>(config->num_layers)) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": layer_types has ", types->size(), " entries for ",
                                                   config->num_layers, " layers"));
  }
  config->layer_windows.assign(config->num_layers, 0);
  for (int32_t layer = 0; layer < config->num_layers; ++layer) {
    if (types && (*types)[layer] != "sliding_attention" && (*types)[layer] != "full_attention") {
      return absl::UnimplementedError(absl::StrCat(fields.where(), ": layer type ", (*types)[layer], " is not supported"));
    }
    const bool slides = types ? (*types)[layer] == "sliding_attention" : layer >= full_layers;
    if (slides) config->layer_windows[layer] = static_cast<int32_t>(window);
  }
  return absl::OkStatus();
}

const Family kQwen2 = {"Qwen2ForCausalLM", "qwen2", "qwen2", /*gguf_permutes_qk=*/false, Configure};

}  // namespace phalanx::worker::model
