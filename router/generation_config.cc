#include "router/generation_config.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>

#include "absl/strings/str_cat.h"
#include "services/json.h"

namespace phalanx::router {
namespace {

using services::Json;

class ConfigReader {
 public:
  ConfigReader(const Json& object, const std::string& path) : object_(object), path_(path) {}

  void Number(const char* name, std::optional<double>* out) {
    const auto it = object_.find(name);
    if (it == object_.end() || it->is_null()) return;
    if (!it->is_number()) return Fail(name, "is not a number");
    *out = it->get<double>();
  }
  void Int(const char* name, std::optional<int64_t>* out) {
    const auto it = object_.find(name);
    if (it == object_.end() || it->is_null()) return;
    if (!it->is_number_integer()) return Fail(name, "is not a whole number");
    *out = it->get<int64_t>();
  }
  const absl::Status& status() const { return status_; }

 private:
  void Fail(const char* name, const char* why) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(path_, ": ", name, " ", why));
  }
  const Json& object_;
  const std::string& path_;
  absl::Status status_;
};

// Would a request that says nothing be valid? Otherwise every such request would fail.
absl::Status CheckDefaults(const core::GenerationDefaults& defaults, const std::string& path) {
  core::Draft draft;
  draft.kind = core::Kind::kCompletion;
  draft.prompts = {std::string("x")};
  core::Limits limits;
  limits.served_names = {"x"};
  limits.defaults = defaults;
  const absl::Status status = core::Validate(std::move(draft), limits).status();
  return status.ok() ? status : absl::InvalidArgumentError(absl::StrCat(path, ": ", status.message()));
}

}  // namespace

absl::StatusOr<core::GenerationDefaults> ReadGenerationDefaults(const std::string& source, const std::string& model_path) {
  if (source == "vllm") return core::GenerationDefaults{};
  const bool automatic = source == "auto";
  const std::filesystem::path path = std::filesystem::path(automatic ? model_path : source) / "generation_config.json";
  std::error_code ignored;
  if (automatic && !std::filesystem::exists(path, ignored)) return core::GenerationDefaults{};
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path.string()));
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  absl::StatusOr<Json> json = services::ParseJson(text);
  if (!json.ok()) return absl::InvalidArgumentError(absl::StrCat(path.string(), ": ", json.status().message()));
  if (!json->is_object()) return absl::InvalidArgumentError(absl::StrCat(path.string(), " is not a JSON object"));
  core::GenerationDefaults out;
  const std::string name = path.string();
  ConfigReader reader(*json, name);
  reader.Number("temperature", &out.temperature);
  reader.Number("top_p", &out.top_p);
  reader.Number("min_p", &out.min_p);
  reader.Number("repetition_penalty", &out.repetition_penalty);
  reader.Int("top_k", &out.top_k);
  reader.Int("max_new_tokens", &out.max_tokens);
  PHX_RETURN_IF_ERROR(reader.status());
  PHX_RETURN_IF_ERROR(CheckDefaults(out, name));
  return out;
}

}  // namespace phalanx::router
