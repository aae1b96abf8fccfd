#include "router/openai/fields.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/core/validate.h"

namespace phalanx::router::openai {
namespace {

using services::Json;

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

const char* TypeName(const Json& value) {
  if (value.is_boolean()) return "a boolean";
  if (value.is_string()) return "a string";
  if (value.is_array()) return "a list";
  if (value.is_object()) return "an object";
  if (value.is_number_float()) return "a number that is not whole";
  return value.is_null() ? "null" : "a number";
}

}  // namespace

absl::StatusOr<Json> ParseObject(std::string_view body) {
  absl::StatusOr<Json> json = services::ParseJson(body);
  if (!json.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("The body is not valid JSON: ", json.status().message()));
  }
  if (!json->is_object()) return absl::InvalidArgumentError(absl::StrCat("The body must be a JSON object, got ", TypeName(*json), "."));
  return json;
}

const Json* FieldReader::Find(const char* name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void FieldReader::Fail(const char* name, std::string_view message) {
  if (status_.ok()) status_ = core::FieldError(absl::StrCat(prefix_, name), absl::StrCat(prefix_, name, " ", Absl(message)));
}

void FieldReader::Adopt(const absl::Status& nested) {
  if (status_.ok()) status_ = nested;
}

void FieldReader::Number(const char* name, std::optional<double>* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_number()) return Fail(name, absl::StrCat("must be a number, got ", TypeName(*value), "."));
  *out = value->get<double>();
}

bool FieldReader::AsInt(const char* name, const Json& value, int64_t* out) {
  constexpr double kTwo63 = 9223372036854775808.0;
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    Fail(name, "is too large for a 64-bit integer.");
    return false;
  }
  if (value.is_number_integer()) {
    *out = value.get<int64_t>();
    return true;
  }
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::isfinite(number) && std::floor(number) == number) {
      if (number >= kTwo63 || number < -kTwo63) {
        Fail(name, "is too large for a 64-bit integer.");
        return false;
      }
      *out = static_cast<int64_t>(number);
      return true;
    }
  }
  Fail(name, absl::StrCat("must be an integer, got ", TypeName(value), "."));
  return false;
}

void FieldReader::Int(const char* name, std::optional<int64_t>* out) {
  const Json* value = Find(name);
  int64_t number = 0;
  if (value != nullptr && AsInt(name, *value, &number)) *out = number;
}

void FieldReader::Bool(const char* name, bool* out) {
  std::optional<bool> value;
  Bool(name, &value);
  if (value) *out = *value;
}

void FieldReader::Bool(const char* name, std::optional<bool>* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_boolean()) return Fail(name, absl::StrCat("must be true or false, got ", TypeName(*value), "."));
  *out = value->get<bool>();
}

void FieldReader::String(const char* name, std::string* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_string()) return Fail(name, absl::StrCat("must be a string, got ", TypeName(*value), "."));
  *out = value->get_ref<const std::string&>();
}

void FieldReader::StringOrList(const char* name, std::vector<std::string>* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (value->is_string()) {
    out->push_back(value->get_ref<const std::string&>());
  } else if (value->is_array()) {
    StringList(name, out);
  } else {
    Fail(name, absl::StrCat("must be a string or a list of strings, got ", TypeName(*value), "."));
  }
}

void FieldReader::StringList(const char* name, std::vector<std::string>* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_array()) return Fail(name, absl::StrCat("must be a list of strings, got ", TypeName(*value), "."));
  for (const Json& item : *value) {
    if (!item.is_string()) return Fail(name, absl::StrCat("must be a list of strings, but holds ", TypeName(item), "."));
    out->push_back(item.get_ref<const std::string&>());
  }
}

void FieldReader::IntList(const char* name, std::vector<int64_t>* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_array()) return Fail(name, absl::StrCat("must be a list of integers, got ", TypeName(*value), "."));
  out->reserve(value->size());
  for (const Json& item : *value) {
    int64_t number = 0;
    if (!AsInt(name, item, &number)) return;
    out->push_back(number);
  }
}

const Json* FieldReader::Object(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr || value->is_object()) return value;
  Fail(name, absl::StrCat("must be an object, got ", TypeName(*value), "."));
  return nullptr;
}

bool IsEmptyValue(const Json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

void FieldReader::Refuse(const char* name, std::string_view why) {
  const Json* value = Find(name);
  if (value != nullptr && !IsEmptyValue(*value)) Fail(name, why);
}

}  // namespace phalanx::router::openai
