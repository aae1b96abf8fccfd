// services/json.h: the one capped JSON reader (and writer) of the C++ rooms, over nlohmann::json.
// Refuses to know: what any field means. Thread: any; values are plain data.
// Neighbours: formats and worker/model (config files), router/openai (bodies). Order of keys is kept.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "services/status.h"

namespace phalanx::services {

using Json = nlohmann::ordered_json;

// Caps that are checked while parsing, before anything is built.
struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  size_t max_depth = 128;               // nesting of arrays and objects
  size_t max_members = 4096;            // keys of one object (objects are searched linearly)
  size_t max_values = size_t{8} << 20;  // values in the whole text
};

// Parses one JSON text. Errors: kInvalidArgument with the byte offset and the reason (syntax, bad UTF-8, a cap). Never throws.
absl::StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits = {});

// Writes compact JSON. Invalid UTF-8 in strings becomes U+FFFD, NaN and infinities become null. Never throws.
std::string WriteJson(const Json& value);

}  // namespace phalanx::services
