// config.json and generation_config.json of a Hugging Face folder, in the dialects of transformers 4 and 5.
#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "formats/tensor_file.h"
#include "services/json.h"
#include "worker/model/family.h"
#include "worker/model/fields.h"

namespace phalanx::worker::model {
namespace {

using services::Json;

absl::Status Bad(const std::string& where, std::string_view field, const char* what) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", std::string(field), " ", what));
}

// The member, or null if it is absent or null.
const Json* Member(const Json& object, std::string_view name) {
  const auto it = object.find(std::string(name));
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

absl::StatusOr<Json> ReadObject(const std::string& path) {
  PHX_ASSIGN_OR_RETURN(auto file, formats::MappedFile::Open(path));
  auto json = services::ParseJson(file->bytes());
  if (!json.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", json.status().message()));
  if (!json->is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": is not a JSON object"));
  return json;
}

absl::StatusOr<std::optional<double>> Number(const std::string& where, const Json& object, std::string_view name) {
  const Json* value = Member(object, name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) return Bad(where, name, "is not a number");
  return value->get<double>();
}

absl::StatusOr<double> PositiveNumber(const std::string& where, const Json& object, std::string_view name) {
  PHX_ASSIGN_OR_RETURN(const auto value, Number(where, object, name));
  if (!value) return Bad(where, name, "is missing");
  if (!(*value > 0)) return Bad(where, name, "is not above zero");
  return *value;
}

class HfFields : public ConfigFields {
 public:
  HfFields(std::string folder, std::string where, Json json)
      : folder_(std::move(folder)), where_(std::move(where)), json_(std::move(json)) {}

  const std::string& where() const override { return where_; }
  absl::StatusOr<std::optional<int64_t>> Int(std::string_view name) const override {
    const Json* value = Member(json_, name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_integer() || (value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX)) {
      return Bad(where_, name, "is not a whole number");
    }
    return value->get<int64_t>();
  }
  absl::StatusOr<std::optional<double>> Float(std::string_view name) const override { return Number(where_, json_, name); }
  absl::StatusOr<std::optional<bool>> Bool(std::string_view name) const override {
    const Json* value = Member(json_, name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_boolean()) return Bad(where_, name, "is not true or false");
    return value->get<bool>();
  }
  absl::StatusOr<std::optional<std::vector<std::string>>> Strings(std::string_view name) const override {
    const Json* value = Member(json_, name);
    if (value == nullptr) return std::nullopt;
    std::vector<std::string> out;
    if (!value->is_array()) return Bad(where_, name, "is not a list");
    for (const Json& item : *value) {
      if (!item.is_string()) return Bad(where_, name, "is not a list of strings");
      out.push_back(item.get<std::string>());
    }
    return out;
  }
  absl::StatusOr<std::string> Architecture() const override;
  absl::Status ReadRope(ModelConfig* config) const override;
  absl::Status ReadRest(ModelConfig* config) const override;

 private:
  absl::Status ReadRopeScaling(const Json& rope, ModelConfig* config) const;
  absl::Status RefuseWhatIsNotServed() const;

  const std::string folder_;
  const std::string where_;
  const Json json_;
};

absl::StatusOr<std::string> HfFields::Architecture() const {
  PHX_ASSIGN_OR_RETURN(const auto names, Strings("architectures"));
  if (names && !names->empty()) {
    for (const std::string& name : *names) {
      if (FindFamily(name) != nullptr) return name;
    }
    return absl::UnimplementedError(
        absl::StrCat(where_, ": architecture ", names->front(), " is not supported; supported are ", FamilyNames()));
  }
  const Json* type = Member(json_, "model_type");
  if (type == nullptr || !type->is_string()) return Bad(where_, "architectures", "is missing");
  const Family* family = FindFamilyByModelType(type->get<std::string>());
  if (family == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat(where_, ": model_type ", type->get<std::string>(), " is not supported; supported are ", FamilyNames()));
  }
  return family->architecture;
}

absl::Status HfFields::ReadRope(ModelConfig* config) const {
  const Json* parameters = Member(json_, "rope_parameters");  // transformers 5
  const Json* scaling = Member(json_, "rope_scaling");        // transformers 4
  for (const Json* rope : {parameters, scaling}) {
    if (rope != nullptr && !rope->is_object()) return Bad(where_, "rope_parameters or rope_scaling", "is not an object");
  }
  const Json* rope = parameters != nullptr ? parameters : scaling;
  const bool theta_inside = rope != nullptr && Member(*rope, "rope_theta") != nullptr;
  PHX_ASSIGN_OR_RETURN(const auto theta, Number(where_, theta_inside ? *rope : json_, "rope_theta"));
  if (theta && !(*theta > 0)) return Bad(where_, "rope_theta", "is not above zero");
  if (theta) config->rope_theta = *theta;
  if (rope == nullptr) return absl::OkStatus();
  for (const auto& [name, value] : rope->items()) {
    if (value.is_object()) {
      return absl::UnimplementedError(absl::StrCat(where_, ": rotary parameters per layer type (", name, ") are not supported"));
    }
  }
  return ReadRopeScaling(*rope, config);
}

absl::Status HfFields::ReadRopeScaling(const Json& rope, ModelConfig* config) const {
  const Json* type = Member(rope, "rope_type");
  if (type == nullptr) type = Member(rope, "type");
  if (type != nullptr && !type->is_string()) return Bad(where_, "rope_type", "is not a string");
  const std::string name = type == nullptr ? "default" : type->get<std::string>();
  if (name == "default") return absl::OkStatus();
  if (name == "linear") {
    config->rope_scaling = RopeScaling::kLinear;
    PHX_ASSIGN_OR_RETURN(config->rope_factor, PositiveNumber(where_, rope, "factor"));
    return absl::OkStatus();
  }
  if (name != "llama3") {
    return absl::UnimplementedError(
        absl::StrCat(where_, ": rope type ", name, " is not supported; supported are default, linear, llama3"));
  }
  config->rope_scaling = RopeScaling::kLlama3;
  PHX_ASSIGN_OR_RETURN(config->rope_factor, PositiveNumber(where_, rope, "factor"));
  PHX_ASSIGN_OR_RETURN(config->rope_low_freq_factor, PositiveNumber(where_, rope, "low_freq_factor"));
  PHX_ASSIGN_OR_RETURN(config->rope_high_freq_factor, PositiveNumber(where_, rope, "high_freq_factor"));
  PHX_ASSIGN_OR_RETURN(const double original, PositiveNumber(where_, rope, "original_max_position_embeddings"));
  if (original > INT32_MAX) return Bad(where_, "original_max_position_embeddings", "is too large");
  config->rope_original_max_position = static_cast<int32_t>(original);
  if (config->rope_high_freq_factor <= config->rope_low_freq_factor) {
    return Bad(where_, "high_freq_factor", "is not above low_freq_factor");
  }
  return absl::OkStatus();
}

absl::Status HfFields::RefuseWhatIsNotServed() const {
  const auto refuse = [&](const std::string& what) { return absl::UnimplementedError(absl::StrCat(where_, ": ", what)); };
  if (const Json* quantization = Member(json_, "quantization_config"); quantization != nullptr) {
    const Json* method = quantization->is_object() ? Member(*quantization, "quant_method") : nullptr;
    return refuse(absl::StrCat("quantization_config (", method != nullptr && method->is_string() ? method->get<std::string>() : "unnamed",
                               ") is not supported"));
  }
  if (const Json* act = Member(json_, "hidden_act"); act != nullptr) {
    if (!act->is_string()) return Bad(where_, "hidden_act", "is not a string");
    if (*act != "silu" && *act != "swish") return refuse(absl::StrCat("hidden_act ", act->get<std::string>(), " is not supported, only silu"));
  }
  PHX_ASSIGN_OR_RETURN(const auto partial, Float("partial_rotary_factor"));
  if (partial && *partial != 1.0) return refuse("partial_rotary_factor is not supported");
  return absl::OkStatus();
}

// Appends an id or a list of ids, without doubles.
absl::Status AppendIds(const std::string& where, const Json& object, std::string_view name, int32_t vocab, std::vector<int32_t>* out) {
  const Json* value = Member(object, name);
  if (value == nullptr) return absl::OkStatus();
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& item : list) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0 || item.get<int64_t>() > INT32_MAX) {
      return Bad(where, name, "is not a token id or a list of them");
    }
    const auto id = item.get<int32_t>();
    if (id < vocab && std::find(out->begin(), out->end(), id) == out->end()) out->push_back(id);
  }
  return absl::OkStatus();
}

absl::Status HfFields::ReadRest(ModelConfig* config) const {
  PHX_RETURN_IF_ERROR(RefuseWhatIsNotServed());
  PHX_ASSIGN_OR_RETURN(const auto tied, Bool("tie_word_embeddings"));
  config->tied_embeddings = tied.value_or(false);
  config->tied_is_known = tied.has_value();
  const Json* dtype = Member(json_, "dtype");
  if (dtype == nullptr) dtype = Member(json_, "torch_dtype");
  if (dtype != nullptr) {
    if (!dtype->is_string()) return Bad(where_, "dtype", "is not a string");
    const auto name = dtype->get<std::string>();
    if (name != "float32" && name != "bfloat16" && name != "float16") {
      return absl::UnimplementedError(absl::StrCat(where_, ": dtype ", name, " is not supported; supported are float32, bfloat16, float16"));
    }
    config->checkpoint_dtype = name == "float32" ? kernels::kF32 : name == "float16" ? kernels::kF16 : kernels::kBF16;
  }
  PHX_RETURN_IF_ERROR(AppendIds(where_, json_, "eos_token_id", config->vocab_size, &config->eos_token_ids));
  std::vector<int32_t> bos;
  PHX_RETURN_IF_ERROR(AppendIds(where_, json_, "bos_token_id", config->vocab_size, &bos));
  const std::string generation_path = absl::StrCat(folder_, "/generation_config.json");
  std::error_code error;
  if (std::filesystem::exists(generation_path, error)) {
    PHX_ASSIGN_OR_RETURN(const Json generation, ReadObject(generation_path));
    PHX_RETURN_IF_ERROR(AppendIds(generation_path, generation, "eos_token_id", config->vocab_size, &config->eos_token_ids));
    PHX_RETURN_IF_ERROR(AppendIds(generation_path, generation, "bos_token_id", config->vocab_size, &bos));
  }
  if (!bos.empty()) config->bos_token_id = bos.front();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ConfigFields>> OpenHfFields(const std::string& folder) {
  std::string where = absl::StrCat(folder, "/config.json");
  PHX_ASSIGN_OR_RETURN(Json json, ReadObject(where));
  return std::make_unique<HfFields>(folder, std::move(where), std::move(json));
}

}  // namespace phalanx::worker::model
