#include "services/json.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace phalanx::services {
namespace {

std::string Nested(size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(Json, KeepsOrderAndTypes) {
  auto value = ParseJson(R"({"z": 1, "a": [true, null, -2, 1.5, "x"], "m": {"k": "v"}})");
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(WriteJson(*value), R"({"z":1,"a":[true,null,-2,1.5,"x"],"m":{"k":"v"}})");
  EXPECT_TRUE((*value)["z"].is_number_unsigned());
  EXPECT_TRUE((*value)["a"][2].is_number_integer());
  EXPECT_TRUE((*value)["a"][3].is_number_float());
}

TEST(Json, BadTextSaysWhere) {
  for (const char* text : {"", "{", "[1,]", "{\"a\" 1}", "nul", "01", "1 2", "'a'", "{\"a\":1,}", "NaN", "[Infinity]", "\"\x01\""}) {
    auto value = ParseJson(text);
    ASSERT_FALSE(value.ok()) << text;
    EXPECT_EQ(value.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(value.status().message().find("at byte "), std::string::npos) << value.status();
  }
}

TEST(Json, RefusesBadUtf8) {
  for (const char* text : {"\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", R"("\ud800")", R"("\udc00x")", "\"\xc0\xaf\""}) {
    EXPECT_FALSE(ParseJson(text).ok()) << text;
  }
  auto pair = ParseJson(R"("\ud83d\ude00 \u0000")");
  ASSERT_TRUE(pair.ok());
  EXPECT_EQ(pair->get<std::string>(), std::string("\xf0\x9f\x98\x80 \0", 6));
}

TEST(Json, NumbersAtTheEdges) {
  EXPECT_FALSE(ParseJson("1e400").ok());
  EXPECT_FALSE(ParseJson("[-1e400]").ok());
  EXPECT_EQ(ParseJson("9223372036854775807")->get<int64_t>(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(ParseJson("18446744073709551615")->get<uint64_t>(), std::numeric_limits<uint64_t>::max());
  EXPECT_TRUE(ParseJson("18446744073709551616")->is_number_float());
  EXPECT_EQ(ParseJson("1e-400")->get<double>(), 0.0);
}

TEST(Json, CapsDepth) {
  EXPECT_TRUE(ParseJson(Nested(128)).ok());
  EXPECT_FALSE(ParseJson(Nested(129)).ok());
  EXPECT_FALSE(ParseJson(std::string(1000000, '[')).ok());
  EXPECT_TRUE(ParseJson(Nested(3), {.max_depth = 3}).ok());
  EXPECT_FALSE(ParseJson(Nested(4), {.max_depth = 3}).ok());
}

TEST(Json, CapsBytesMembersAndValues) {
  EXPECT_FALSE(ParseJson("[1,2,3]", {.max_bytes = 6}).ok());
  EXPECT_TRUE(ParseJson(R"({"a":1,"b":2})", {.max_members = 2}).ok());
  auto members = ParseJson(R"({"a":1,"b":2,"c":3})", {.max_members = 2});
  EXPECT_EQ(members.status().message(), "invalid JSON: an object has more than 2 members");
  EXPECT_TRUE(ParseJson("[1,2]", {.max_values = 3}).ok());
  EXPECT_FALSE(ParseJson("[1,2,3]", {.max_values = 3}).ok());
}

TEST(Json, LastOfEqualKeysWins) {
  auto value = ParseJson(R"({"a":1,"b":2,"a":{"x":3},"c":4,"b":5})");
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(WriteJson(*value), R"({"a":{"x":3},"b":5,"c":4})");
}

TEST(Json, ErrorQuotesLittle) {
  auto value = ParseJson("\"" + std::string(100000, 'x'));
  ASSERT_FALSE(value.ok());
  EXPECT_LT(value.status().message().size(), 400u);
}

TEST(Json, WritesBadValuesWithoutThrowing) {
  EXPECT_EQ(WriteJson(Json("a\xff")), "\"a\xef\xbf\xbd\"");
  EXPECT_EQ(WriteJson(Json(std::nan(""))), "null");
  EXPECT_EQ(WriteJson(Json(std::numeric_limits<double>::infinity())), "null");
}

}  // namespace
}  // namespace phalanx::services
