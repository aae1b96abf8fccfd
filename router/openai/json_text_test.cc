// JSON text: escapes, invalid UTF-8 by the Unicode standard's own examples, numbers that read back as they were.
#include "router/openai/json_text.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "services/json.h"

namespace phalanx::router::openai {
namespace {

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(text, &out);
  return out;
}
std::string Logprob(float value) {
  std::string out;
  AppendLogprob(value, &out);
  return out;
}
// `count` replacement characters.
std::string Bad(int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += "\xEF\xBF\xBD";
  return out;
}

TEST(JsonString, Escapes) {
  EXPECT_EQ(Quoted(""), "\"\"");
  EXPECT_EQ(Quoted("plain / text"), "\"plain / text\"");
  EXPECT_EQ(Quoted("a\"b\\c\n\r\t\b\f"), R"("a\"b\\c\n\r\t\b\f")");
  EXPECT_EQ(Quoted(std::string_view("\0\x01\x1f\x7f", 4)), "\"\\u0000\\u0001\\u001f\x7f\"");
  EXPECT_EQ(Quoted("é日👍\u2028"), "\"é日👍\u2028\"");
}

// Tables 3-8 to 3-11 of the Unicode standard: U+FFFD for each maximal subpart.
TEST(JsonString, InvalidUtf8) {
  EXPECT_EQ(Quoted("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), absl::StrCat("\"", Bad(8), "A\""));
  EXPECT_EQ(Quoted("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), absl::StrCat("\"", Bad(8), "A\""));
  EXPECT_EQ(Quoted("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), absl::StrCat("\"", Bad(5), "A", Bad(2), "B\""));
  EXPECT_EQ(Quoted("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), absl::StrCat("\"", Bad(4), "A\""));
  EXPECT_EQ(Quoted("x\xF0\x9F\x91"), absl::StrCat("\"x", Bad(1), "\""));
  EXPECT_EQ(Quoted("\xE6\x97\"\n"), absl::StrCat("\"", Bad(1), "\\\"\\n\""));
}

TEST(JsonString, RandomBytesReadBackAsTheReaderReplacesThem) {
  std::mt19937 random(5);
  for (int round = 0; round < 20000; ++round) {
    std::string text(random() % 12, '\0');
    for (char& c : text) c = static_cast<char>(random() % 3 == 0 ? random() % 128 : 128 + random() % 128);
    const auto json = services::ParseJson(Quoted(text));
    ASSERT_TRUE(json.ok()) << json.status();
    // Valid texts come back unchanged.
    std::string once = json->get<std::string>();
    ASSERT_EQ(services::ParseJson(Quoted(once))->get<std::string>(), once);
    // The other writer of this program replaces the same way.
    ASSERT_EQ(services::ParseJson(services::WriteJson(services::Json(text)))->get<std::string>(), once);
  }
}

TEST(Logprobs, ReadBackAsTheSameFloat) {
  std::mt19937 random(6);
  for (int round = 0; round < 200000; ++round) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (!(value > -9999.0f) || std::isinf(value)) continue;
    const std::string text = Logprob(value);
    ASSERT_EQ(std::strtof(text.c_str(), nullptr), value) << text;
    ASSERT_NE(text.find_first_of(".e"), std::string::npos) << text;
  }
  const auto json = services::ParseJson(absl::StrCat("[", Logprob(-0.1f), "]"));
  ASSERT_TRUE(json.ok());
  EXPECT_TRUE((*json)[0].is_number_float());
}

TEST(Logprobs, FloorAndWholeNumbers) {
  EXPECT_EQ(Logprob(0), "0.0");
  EXPECT_EQ(Logprob(-1), "-1.0");
  EXPECT_EQ(Logprob(-0.1f), "-0.1");
  EXPECT_EQ(Logprob(-9999), "-9999.0");
  EXPECT_EQ(Logprob(-1e30f), "-9999.0");
  EXPECT_EQ(Logprob(-std::numeric_limits<float>::infinity()), "-9999.0");
  EXPECT_EQ(Logprob(std::numeric_limits<float>::infinity()), "-9999.0");
  EXPECT_EQ(Logprob(std::numeric_limits<float>::quiet_NaN()), "-9999.0");
}

TEST(Numbers, IntegersAndBytes) {
  std::string out;
  AppendInt(std::numeric_limits<int64_t>::min(), &out);
  out.push_back(' ');
  AppendInt(std::numeric_limits<int64_t>::max(), &out);
  EXPECT_EQ(out, "-9223372036854775808 9223372036854775807");
  out.clear();
  AppendByteList(std::string_view("\0\x7f\xff", 3), &out);
  AppendByteList("", &out);
  EXPECT_EQ(out, "[0,127,255][]");
}

}  // namespace
}  // namespace phalanx::router::openai
