// router/generation_config.h: a model's own sampling defaults, from its generation_config.json.
// Refuses to know: requests. Thread: pure functions. Neighbours: main.cc reads it once, core::Validate applies it.
#pragma once

#include <string>

#include "router/core/validate.h"
#include "services/status.h"

namespace phalanx::router {

// `source`: "vllm" = no defaults; "auto" = the file beside the model, if there is one; else a folder, which must have one.
// Like vLLM it takes temperature, top_p, top_k, min_p, repetition_penalty and max_new_tokens, and nothing else.
// Errors: kInvalidArgument that names the file and the field; kNotFound.
absl::StatusOr<core::GenerationDefaults> ReadGenerationDefaults(const std::string& source, const std::string& model_path);

}  // namespace phalanx::router
