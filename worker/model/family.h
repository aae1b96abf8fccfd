// worker/model/family.h: the table of model families and what makes one differ from the common decoder.
// Refuses to know: containers, weights, devices. Thread: any (pure functions over a table that never changes).
// Neighbours: config.cc picks a family by architecture; llama.cc, mistral.cc, qwen2.cc and qwen3.cc are its rows.
#pragma once

#include <string_view>

#include "services/status.h"
#include "worker/model/fields.h"
#include "worker/model/model.h"

namespace phalanx::worker::model {

// One family: a pre-norm decoder with RMSNorm, SwiGLU, half-split rotary positions and grouped heads, plus what `configure` says.
struct Family {
  const char* architecture;        // in config.json's `architectures`
  const char* model_type;          // config.json's `model_type`, for files without `architectures`
  const char* gguf_architecture;   // GGUF's general.architecture; null = shares another family's
  bool gguf_permutes_qk;           // GGUF converters interleave q and k rows for this family; loading undoes it
  // Fills biases, per-head norms and windows in `config`, whose common numbers are already read.
  absl::Status (*configure)(const ConfigFields& fields, ModelConfig* config);
};

extern const Family kLlama;
extern const Family kMistral;
extern const Family kQwen2;
extern const Family kQwen3;

// Null if there is none.
const Family* FindFamily(std::string_view architecture);
const Family* FindFamilyByModelType(std::string_view model_type);
const Family* FindFamilyByGguf(std::string_view gguf_architecture);
// "LlamaForCausalLM, MistralForCausalLM, ...", for error messages.
std::string FamilyNames();

// Shared by the Qwen families: `use_sliding_window` with `layer_types` or `max_window_layers`.
absl::Status ReadQwenWindow(const ConfigFields& fields, ModelConfig* config);

}  // namespace phalanx::worker::model
