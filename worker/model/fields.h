// worker/model/fields.h: a model's configuration fields under Hugging Face names, whichever container holds them.
// Refuses to know: what a family needs. Thread: immutable after opening.
// Neighbours: hf_fields.cc (config.json) and gguf_fields.cc (GGUF metadata) make it; config.cc and the families read it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "services/status.h"
#include "worker/model/model.h"

namespace phalanx::worker::model {

// Absent and null are the same: nullopt. A wrong type is kInvalidArgument naming file and field.
class ConfigFields {
 public:
  virtual ~ConfigFields() = default;
  virtual absl::StatusOr<std::optional<int64_t>> Int(std::string_view name) const = 0;
  virtual absl::StatusOr<std::optional<double>> Float(std::string_view name) const = 0;
  virtual absl::StatusOr<std::optional<bool>> Bool(std::string_view name) const = 0;
  virtual absl::StatusOr<std::optional<std::vector<std::string>>> Strings(std::string_view name) const = 0;
  // The file, for error messages; for a folder its config.json.
  virtual const std::string& where() const = 0;
  // As config.json's `architectures` says it; kUnimplemented or kInvalidArgument if there is none that is known.
  virtual absl::StatusOr<std::string> Architecture() const = 0;
  // Fills rope_theta, rope_scaling and its numbers.
  virtual absl::Status ReadRope(ModelConfig* config) const = 0;
  // Fills eos_token_ids, bos_token_id, checkpoint_dtype; refuses what the container says and nobody here serves.
  virtual absl::Status ReadRest(ModelConfig* config) const = 0;

  // Shorthands with a default, or naming a missing field.
  absl::StatusOr<bool> BoolOr(std::string_view name, bool fallback) const;
  absl::StatusOr<int64_t> IntOr(std::string_view name, int64_t fallback) const;
};

absl::StatusOr<std::unique_ptr<ConfigFields>> OpenHfFields(const std::string& folder);
absl::StatusOr<std::unique_ptr<ConfigFields>> OpenGgufFields(const std::string& path);

// True if `path` names a GGUF file (by its ending).
bool IsGguf(std::string_view path);

}  // namespace phalanx::worker::model
