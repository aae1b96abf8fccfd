// router/openai/fields.h: typed reading of one JSON object's fields, with errors that name the field.
// Refuses to know: which fields exist. Thread: one owner. Neighbours: sampling_fields and the endpoints' parsers.
//
// null means absent. An integer may be written 1.0, as pydantic accepts it; a bool is not a number, a number is not a bool.
// The first error stays; later reads change nothing that matters, so callers check status() once at the end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "services/json.h"
#include "services/status.h"

namespace phalanx::router::openai {

// Parses a body that must be a JSON object. Errors: kInvalidArgument.
absl::StatusOr<services::Json> ParseObject(std::string_view body);

class FieldReader {
 public:
  // `object` is an object and outlives the reader. `prefix` goes before names in errors ("stream_options.").
  explicit FieldReader(const services::Json& object, std::string prefix = "") : object_(object), prefix_(std::move(prefix)) {}

  // The field's value; nullptr when absent or null.
  const services::Json* Find(const char* name) const;
  void Number(const char* name, std::optional<double>* out);
  void Int(const char* name, std::optional<int64_t>* out);
  void Bool(const char* name, bool* out);            // absent leaves `out` as it is
  void Bool(const char* name, std::optional<bool>* out);
  void String(const char* name, std::string* out);   // absent leaves `out` as it is
  void StringOrList(const char* name, std::vector<std::string>* out);
  void StringList(const char* name, std::vector<std::string>* out);
  void IntList(const char* name, std::vector<int64_t>* out);
  const services::Json* Object(const char* name);    // nullptr when absent, null or (an error) no object
  // Refuses a field that would change the meaning of the reply and is not served.
  void Refuse(const char* name, std::string_view why);

  // Reads `value` as an integer for field `name`; false (and an error) if it is none.
  bool AsInt(const char* name, const services::Json& value, int64_t* out);
  void Fail(const char* name, std::string_view message);
  void Adopt(const absl::Status& nested);            // the error of a reader of a nested object
  const absl::Status& status() const { return status_; }

 private:
  const services::Json& object_;
  std::string prefix_;
  absl::Status status_;
};

// Empty of meaning: false, 0, "", [], {}.
bool IsEmptyValue(const services::Json& value);

}  // namespace phalanx::router::openai
