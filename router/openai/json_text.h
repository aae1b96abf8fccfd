// router/openai/json_text.h: JSON written by hand into a string, for the hot path: no tree, one pass, valid UTF-8 always.
// Refuses to know: any field. Thread: pure functions. Neighbours: the writers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace phalanx::router::openai {

// Appends `text` as a JSON string with its quotes. Control characters, quote and backslash are escaped; other characters stay as they
// are; each maximal invalid UTF-8 subpart becomes U+FFFD. One memchr-like pass for ASCII.
void AppendJsonString(std::string_view text, std::string* out);
void AppendInt(int64_t value, std::string* out);
// The shortest decimal that reads back as the same float. Below -9999, infinities and NaN give -9999.0, as vLLM floors log-probabilities.
void AppendLogprob(float value, std::string* out);
// The raw bytes as a list of integers.
void AppendByteList(std::string_view bytes, std::string* out);

}  // namespace phalanx::router::openai
