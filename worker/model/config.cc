#include <filesystem>

#include "absl/strings/str_cat.h"
#include "worker/model/family.h"
#include "worker/model/fields.h"
#include "worker/model/model.h"

namespace phalanx::worker::model {
namespace {

// Reads a required whole number in [1, max].
absl::Status ReadSize(const ConfigFields& fields, std::string_view name, int64_t max, std::optional<int64_t> fallback, int32_t* out) {
  PHX_ASSIGN_OR_RETURN(auto value, fields.Int(name));
  if (!value) value = fallback;
  if (!value) return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": ", std::string(name), " is missing"));
  if (*value < 1 || *value > max) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": ", std::string(name), " is ", *value, ", it must be 1 to ", max));
  }
  *out = static_cast<int32_t>(*value);
  return absl::OkStatus();
}

absl::Status ReadShape(const ConfigFields& fields, ModelConfig* config) {
  PHX_RETURN_IF_ERROR(ReadSize(fields, "hidden_size", 1 << 16, std::nullopt, &config->hidden_size));
  PHX_RETURN_IF_ERROR(ReadSize(fields, "num_hidden_layers", 1024, std::nullopt, &config->num_layers));
  PHX_RETURN_IF_ERROR(ReadSize(fields, "num_attention_heads", 1024, std::nullopt, &config->num_heads));
  PHX_RETURN_IF_ERROR(ReadSize(fields, "num_key_value_heads", 1024, config->num_heads, &config->num_kv_heads));
  PHX_RETURN_IF_ERROR(ReadSize(fields, "head_dim", 1024, config->hidden_size / config->num_heads, &config->head_dim));
  PHX_RETURN_IF_ERROR(ReadSize(fields, "intermediate_size", 1 << 20, std::nullopt, &config->intermediate_size));
  PHX_RETURN_IF_ERROR(ReadSize(fields, "vocab_size", 1 << 24, std::nullopt, &config->vocab_size));
  PHX_RETURN_IF_ERROR(ReadSize(fields, "max_position_embeddings", 1 << 26, std::nullopt, &config->max_position));
  if (config->num_heads % config->num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": num_attention_heads ", config->num_heads,
                                                   " is not a multiple of num_key_value_heads ", config->num_kv_heads));
  }
  if (config->head_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": head_dim ", config->head_dim, " is odd"));
  }
  PHX_ASSIGN_OR_RETURN(const auto epsilon, fields.Float("rms_norm_eps"));
  if (epsilon && !(*epsilon > 0 && *epsilon < 1)) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": rms_norm_eps is ", *epsilon));
  }
  if (epsilon) config->rms_norm_eps = static_cast<float>(*epsilon);
  return absl::OkStatus();
}

}  // namespace

bool IsGguf(std::string_view path) { return path.ends_with(".gguf") || path.ends_with(".GGUF"); }

absl::StatusOr<bool> ConfigFields::BoolOr(std::string_view name, bool fallback) const {
  PHX_ASSIGN_OR_RETURN(const auto value, Bool(name));
  return value.value_or(fallback);
}

absl::StatusOr<int64_t> ConfigFields::IntOr(std::string_view name, int64_t fallback) const {
  PHX_ASSIGN_OR_RETURN(const auto value, Int(name));
  return value.value_or(fallback);
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return absl::NotFoundError(absl::StrCat(path, ": no such model"));
  PHX_ASSIGN_OR_RETURN(auto fields, IsGguf(path) ? OpenGgufFields(path) : OpenHfFields(path));
  ModelConfig config;
  PHX_ASSIGN_OR_RETURN(config.architecture, fields->Architecture());
  PHX_RETURN_IF_ERROR(ReadShape(*fields, &config));
  PHX_RETURN_IF_ERROR(fields->ReadRope(&config));
  PHX_RETURN_IF_ERROR(fields->ReadRest(&config));
  PHX_RETURN_IF_ERROR(FindFamily(config.architecture)->configure(*fields, &config));
  return config;
}

}  // namespace phalanx::worker::model
