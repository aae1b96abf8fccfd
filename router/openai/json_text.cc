#include "router/openai/json_text.h"

#include <array>
#include <charconv>
#include <cmath>

namespace phalanx::router::openai {
namespace {

enum Class : uint8_t { kPlain, kEscape, kMultibyte };

constexpr std::array<uint8_t, 256> MakeClasses() {
  std::array<uint8_t, 256> classes{};
  for (int c = 0; c < 256; ++c) classes[c] = c < 0x20 || c == '"' || c == '\\' ? kEscape : c < 0x80 ? kPlain : kMultibyte;
  return classes;
}
constexpr std::array<uint8_t, 256> kClasses = MakeClasses();

void AppendEscaped(uint8_t c, std::string* out) {
  constexpr char kHex[] = "0123456789abcdef";
  switch (c) {
    case '"': out->append("\\\""); return;
    case '\\': out->append("\\\\"); return;
    case '\n': out->append("\\n"); return;
    case '\r': out->append("\\r"); return;
    case '\t': out->append("\\t"); return;
    case '\b': out->append("\\b"); return;
    case '\f': out->append("\\f"); return;
    default:
      out->append("\\u00");
      out->push_back(kHex[c >> 4]);
      out->push_back(kHex[c & 15]);
  }
}

// Length of the character at `p` (its first byte is >= 0x80) if it is whole and valid; else minus the length of the invalid subpart.
// Source: Unicode 15, table 3-7.
int MultibyteLength(const uint8_t* p, const uint8_t* end) {
  const uint8_t lead = p[0];
  if (lead < 0xC2 || lead > 0xF4) return -1;
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (int i = 1; i < length; ++i) {
    if (p + i == end) return -i;
    if (p[i] < (i == 1 ? low : 0x80) || p[i] > (i == 1 ? high : 0xBF)) return -i;
  }
  return length;
}

}  // namespace

void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = p + text.size();
  const uint8_t* run = p;  // start of the bytes that pass unchanged
  const auto flush = [&] { out->append(reinterpret_cast<const char*>(run), p - run); };
  while (p != end) {
    const uint8_t kind = kClasses[*p];
    if (kind == kPlain) {
      ++p;
    } else if (kind == kEscape) {
      flush();
      AppendEscaped(*p, out);
      run = ++p;
    } else if (const int length = MultibyteLength(p, end); length > 0) {
      p += length;
    } else {
      flush();
      out->append("\xEF\xBF\xBD");
      run = p -= length;
    }
  }
  flush();
  out->push_back('"');
}

void AppendInt(int64_t value, std::string* out) {
  char buffer[24];
  const auto result = std::to_chars(buffer, buffer + sizeof buffer, value);
  out->append(buffer, result.ptr - buffer);
}

void AppendLogprob(float value, std::string* out) {
  if (!(value > -9999.0f) || std::isinf(value)) {  // NaN too
    out->append("-9999.0");
    return;
  }
  char buffer[40];
  const auto result = std::to_chars(buffer, buffer + sizeof buffer, value);
  out->append(buffer, result.ptr - buffer);
  // Clients that look at the type see a float.
  if (std::string_view(buffer, result.ptr - buffer).find_first_of(".e") == std::string_view::npos) out->append(".0");
}

void AppendByteList(std::string_view bytes, std::string* out) {
  out->push_back('[');
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out->push_back(',');
    AppendInt(static_cast<uint8_t>(bytes[i]), out);
  }
  out->push_back(']');
}

}  // namespace phalanx::router::openai
