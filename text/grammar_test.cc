// Constrained output: whatever is drawn from the masks validates, what is malformed or too large is refused, and nothing ends the process.
#include "text/grammar.h"

#include <gtest/gtest.h>
#include <regex.h>

#include <functional>
#include <random>
#include <thread>

#include "text/test_util.h"

namespace phalanx::text {
namespace {

using Json = nlohmann::ordered_json;
using Mask = std::vector<uint32_t>;
using EnvPtr = std::shared_ptr<const GrammarEnv>;

bool Allows(const Mask& mask, int32_t id) { return (mask[id / 32] >> (id % 32) & 1) != 0; }

std::vector<int32_t> Allowed(const Mask& mask) {
  std::vector<int32_t> ids;
  for (size_t id = 0; id < mask.size() * 32; ++id) {
    if (Allows(mask, static_cast<int32_t>(id))) ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

struct Model {
  std::shared_ptr<const Tokenizer> tokenizer;
  EnvPtr env;
  int32_t width = 0;
  std::vector<int32_t> ends;
};

Model Make(const std::string& name, int32_t extra, const std::vector<std::string>& ends) {
  Model out;
  out.tokenizer = LoadTokenizer(name);
  out.width = out.tokenizer->vocab_size() + extra;
  for (const std::string& end : ends) out.ends.push_back(*out.tokenizer->IdOf(end));
  auto env = GrammarEnv::Create(out.tokenizer, out.width, out.ends);
  EXPECT_TRUE(env.ok()) << env.status();
  out.env = *env;
  return out;
}
const Model& Demo() {
  static const auto& model = *new Model(Make("demo", 0, {"<|im_end|>", "<|endoftext|>"}));
  return model;
}
const Model& Qwen() {  // logits wider than the vocabulary
  static const auto& model = *new Model(Make("qwen3", 267, {"<|im_end|>"}));
  return model;
}

Matcher Compile(const Model& model, GrammarKind kind, const std::string& source) {
  auto matcher = model.env->Compile(kind, source);
  EXPECT_TRUE(matcher.ok()) << source << ": " << matcher.status();
  return *std::move(matcher);
}

Mask MaskOf(Matcher* matcher) {
  Mask mask(matcher->mask_words(), 0xAAAAAAAA);
  EXPECT_TRUE(matcher->FillMask(mask.data()).ok());
  return mask;
}

// Draws a whole output. After `patience` tokens what closes is taken where it is allowed, so that outputs end.
std::string Draw(const Model& model, Matcher* matcher, std::mt19937* random, int patience = 60) {
  std::string text;
  for (int step = 0; step < 3000; ++step) {
    const Mask mask = MaskOf(matcher);
    const std::vector<int32_t> allowed = Allowed(mask);
    EXPECT_FALSE(allowed.empty()) << text;
    if (allowed.empty()) return text;
    const bool may_end = matcher->may_end();
    for (const int32_t end : model.ends) EXPECT_EQ(Allows(mask, end), may_end) << text;
    for (const int32_t id : allowed) {
      const bool is_end = std::find(model.ends.begin(), model.ends.end(), id) != model.ends.end();
      EXPECT_TRUE(is_end || (id < model.tokenizer->vocab_size() && !model.tokenizer->IsSpecial(id))) << id;
    }
    // What is not allowed changes nothing. (Of a forced text the mask shows one spelling; others are accepted.)
    for (int i = 0; i < 3 && allowed.size() > 1; ++i) {
      const auto id = static_cast<int32_t>((*random)() % model.width);
      EXPECT_TRUE(Allows(mask, id) || !matcher->Accept(id).ok()) << id;
    }
    EXPECT_EQ(MaskOf(matcher), mask) << text;
    int32_t id = allowed[(*random)() % allowed.size()];
    if (step >= patience) {
      if (may_end) id = model.ends.front();
      for (const char* closer : {"]", "}", "\""}) {  // the last one wins: a string is closed first
        const auto close = model.tokenizer->IdOf(closer);
        if (!may_end && close && Allows(mask, *close)) id = *close;
      }
    }
    EXPECT_TRUE(matcher->Accept(id).ok()) << id;
    if (std::find(model.ends.begin(), model.ends.end(), id) != model.ends.end()) {
      EXPECT_TRUE(matcher->has_ended()) << text;
      for (const int32_t last : Allowed(MaskOf(matcher))) EXPECT_NE(std::find(model.ends.begin(), model.ends.end(), last),
          model.ends.end()) << last;
      return text;
    }
    text += model.tokenizer->TokenBytes(id);
  }
  ADD_FAILURE() << "does not end: " << text;
  return text;
}

// The whole text matches; POSIX extended syntax.
bool Matches(const std::string& text, const std::string& pattern) {
  regex_t compiled;
  EXPECT_EQ(regcomp(&compiled, ("^(" + pattern + ")$").c_str(), REG_EXTENDED | REG_NOSUB), 0) << pattern;
  const bool found = regexec(&compiled, text.c_str(), 0, nullptr, 0) == 0;
  regfree(&compiled);
  return found;
}

void ExpectDraws(const Model& model, GrammarKind kind, const std::string& source, int draws,
    const std::function<bool(const std::string&)>& valid) {
  std::mt19937 random(21);
  for (int i = 0; i < draws; ++i) {
    Matcher matcher = Compile(model, kind, source);
    const std::string text = Draw(model, &matcher, &random, 5 + i * 3);
    EXPECT_TRUE(valid(text)) << source << " gave " << text;
    if (testing::Test::HasFailure()) return;
  }
}

const char kPerson[] =
    R"({"type":"object","properties":{"name":{"type":"string","minLength":1,"maxLength":8},"age":{"type":"integer","minimum":0,"maximum":150},)"
    R"("tags":{"type":"array","items":{"enum":["a","b\"c",7,null]},"maxItems":3},"at":{"$ref":"#/$defs/place"}},)"
    R"("required":["name","age"],"additionalProperties":false,"$defs":{"place":{"type":"object","properties":{"x":{"type":"boolean"}},"required":["x"],"additionalProperties":false}}})";

bool IsPerson(const std::string& text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("name") || !json.contains("age")) return false;
  for (const auto& [key, value] : json.items()) {
    if (key == "name") {
      const auto name = value.get<std::string>();
      const auto length = std::count_if(name.begin(), name.end(), [](char c) { return (c & 0xC0) != 0x80; });
      if (length < 1 || length > 8) return false;
    } else if (key == "age") {
      if (!value.is_number_integer() || value < 0 || value > 150) return false;
    } else if (key == "tags") {
      if (!value.is_array() || value.size() > 3) return false;
      for (const Json& tag : value) {
        if (tag != "a" && tag != "b\"c" && tag != 7 && !tag.is_null()) return false;
      }
    } else if (key == "at") {
      if (!value.is_object() || value.size() != 1 || !value.at("x").is_boolean()) return false;
    } else {
      return false;
    }
  }
  return true;
}

TEST(Grammar, JsonSchemaDrawsValidate) {
  ExpectDraws(Demo(), GrammarKind::kJsonSchema, kPerson, 25, IsPerson);
  ExpectDraws(Qwen(), GrammarKind::kJsonSchema, kPerson, 4, IsPerson);
}

TEST(Grammar, SchemaKeywords) {
  const std::vector<std::pair<const char*, std::function<bool(const Json&)>>> rows = {
      {R"({"type":"integer","exclusiveMinimum":3,"maximum":12})", [](const Json& j) { return j.is_number_integer() && j > 3 && j <= 12; }},
      {R"({"type":"string","pattern":"^[ab]{2,4}$"})", [](const Json& j) { return Matches(j.get<std::string>(), "[ab]{2,4}"); }},
      {R"({"const":{"a":[1,"x"]}})", [](const Json& j) { return j == Json::parse(R"({"a":[1,"x"]})"); }},
      {R"({"anyOf":[{"type":"boolean"},{"type":"null"}]})", [](const Json& j) { return j.is_boolean() || j.is_null(); }},
      {R"({"type":"array","prefixItems":[{"type":"boolean"},{"type":"null"}],"items":false,"minItems":2})",
       [](const Json& j) { return j.is_array() && j.size() == 2 && j[0].is_boolean() && j[1].is_null(); }},
      {R"({"type":"array","items":{"type":"boolean"},"minItems":2,"maxItems":4})", [](const Json& j) { return j.is_array() && j.size() >= 2
          && j.size() <= 4; }},
      {R"({"type":["string","null"],"maxLength":3})", [](const Json& j) { return j.is_null() || j.is_string(); }},
      {R"({"type":"string","format":"date"})", [](const Json& j) { return Matches(j.get<std::string>(), "[0-9]{4}-[0-9]{2}-[0-9]{2}"); }}};
  for (const auto& [schema, valid] : rows) {
    ExpectDraws(Demo(), GrammarKind::kJsonSchema, schema, 8, [&](const std::string& text) {
      const Json json = Json::parse(text, nullptr, false);
      return !json.is_discarded() && valid(json);
    });
  }
}

TEST(Grammar, JsonObjectDrawsAreObjects) {
  ExpectDraws(Demo(), GrammarKind::kJsonObject, "ignored", 15, [](const std::string& text) { return Json::parse(text, nullptr,
      false).is_object(); });
}

TEST(Grammar, RegexDrawsMatch) {
  for (const char* pattern : {"[a-z]{2,5}-[0-9]{3}", "(yes|no)!*", "a?b+", R"(a/b\\c[0-9])"}) {
    ExpectDraws(Demo(), GrammarKind::kRegex, pattern, 15, [&](const std::string& text) { return Matches(text, pattern); });
  }
}

TEST(Grammar, ChoiceDrawsAreChoices) {
  const std::vector<std::string> choices = {"yes", "yes, please", "\"quoted\" \\ back\nslash\t", "日本 \U0001F600", "</s>{}[]|/*", "a"};
  std::vector<bool> seen(choices.size());
  ExpectDraws(Demo(), GrammarKind::kChoice, Json(choices).dump(), 60, [&](const std::string& text) {
    const auto at = std::find(choices.begin(), choices.end(), text);
    if (at == choices.end()) return false;
    seen[at - choices.begin()] = true;
    return true;
  });
  EXPECT_GE(std::count(seen.begin(), seen.end(), true), 4);
}

TEST(Grammar, LarkDrawsParse) {
  const char* grammar = "start: pair (\", \" pair)*\npair: WORD \"=\" NUMBER\nWORD: /[a-c]+/\nNUMBER: /[1-9][0-9]?/\n";
  ExpectDraws(Demo(), GrammarKind::kLark, grammar, 15,
              [](const std::string& text) { return Matches(text, "[a-c]+=[1-9][0-9]?(, [a-c]+=[1-9][0-9]?)*"); });
}

// A real answer, token by token, and one that goes wrong.
TEST(Grammar, AcceptsWhatTheModelWouldSay) {
  const Model& model = Qwen();
  Matcher matcher = Compile(model, GrammarKind::kJsonSchema,
      R"({"type":"object","properties":{"city":{"type":"string"}},"required":["city"],"additionalProperties":false})");
  const auto ids = model.tokenizer->Encode(R"({"city": "Zürich"})", SpecialTokens::kNone);
  ASSERT_TRUE(ids.ok());
  for (const int32_t id : *ids) {
    EXPECT_FALSE(matcher.may_end());
    EXPECT_TRUE(Allows(MaskOf(&matcher), id)) << model.tokenizer->TokenText(id);
    ASSERT_TRUE(matcher.Accept(id).ok());
  }
  EXPECT_TRUE(matcher.may_end());
  EXPECT_EQ(Allowed(MaskOf(&matcher)), model.ends);  // no white space for ever
  Matcher moved = std::move(matcher);
  EXPECT_TRUE(moved.Accept(model.ends[0]).ok());
  EXPECT_TRUE(moved.has_ended());
  for (const int32_t id : {-1, model.width, model.width - 1, std::numeric_limits<int32_t>::max()}) {
    Matcher other = Compile(model, GrammarKind::kJsonObject, "");
    EXPECT_FALSE(other.Accept(id).ok()) << id;
  }
}

TEST(Grammar, WhatIsMalformedIsTheCallersFault) {
  using K = GrammarKind;
  const std::vector<std::pair<K, std::string>> rows = {
      {K::kJsonSchema, ""}, {K::kJsonSchema, "{"}, {K::kJsonSchema, "nonsense"}, {K::kJsonSchema, R"({"type":"nonsense"})"},
          {K::kJsonSchema, R"({"type":7})"},
      {K::kJsonSchema, R"({"$ref":"https://example.com/schema"})"}, {K::kJsonSchema, R"({"$ref":"#/nowhere"})"}, {K::kJsonSchema,
          R"s({"type":"string","pattern":"("})s"},
      {K::kJsonSchema, R"s({"type":"string","pattern":"(?=a)"})s"}, {K::kJsonSchema, R"({"not":{}})"}, {K::kJsonSchema, R"({"enum":[]})"},
          {K::kJsonSchema, "false"},
      {K::kJsonSchema, R"({"type":"integer","minimum":5,"maximum":4})"}, {K::kJsonSchema, R"({"type":"string","minLength":-1})"},
      {K::kRegex, "("}, {K::kRegex, "[z-a]"}, {K::kRegex, "(?=a)b"}, {K::kRegex, R"((a)\1)"}, {K::kRegex, "a{2,1}"}, {K::kRegex, "\\"},
          {K::kRegex, "a\\\\\\"},
      {K::kChoice, ""}, {K::kChoice, "[]"}, {K::kChoice, "[1]"}, {K::kChoice, "\"a\""}, {K::kChoice, "{}"},
      {K::kLark, ""}, {K::kLark, "start"}, {K::kLark, "start: missing"}, {K::kLark, "%%%"}, {K::kLark, "start: \"unclosed"}, {K::kLark,
          "other: \"a\""},
      {K::kRegex, "\xff"}, {K::kJsonSchema, "\"\xff\""}, {K::kLark, std::string("start: \0", 8)}};
  for (const auto& [kind, source] : rows) {
    const auto matcher = Demo().env->Compile(kind, source);
    EXPECT_EQ(matcher.status().code(), absl::StatusCode::kInvalidArgument) << static_cast<int>(kind) << " " << source << ": "
        << matcher.status();
    EXPECT_LT(matcher.status().message().size(), 2000u) << source;
  }
}

// Bombs: refused or survived, within memory and time; the process and the environment go on.
TEST(Grammar, BombsAreBounded) {
  using K = GrammarKind;
  const auto repeat = [](const std::string& text, int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += text;
    return out;
  };
  std::vector<std::pair<K, std::string>> bombs = {
      {K::kRegex, "((a{1,100}){1,100}){1,100}"}, {K::kRegex, "(a|b|ab)*c(a|b){1000}"}, {K::kRegex, repeat("(", 5000) + repeat(")", 5000)},
          {K::kRegex, repeat("(a*)*", 2000)},
      {K::kRegex, repeat("a?", 3000) + repeat("a", 3000)}, {K::kRegex, "[a-z]{100000}"}, {K::kRegex, ".{0,2000}.{0,2000}x.{0,2000}"},
      {K::kJsonSchema, repeat("{\"items\":", 5000) + "{}" + repeat("}", 5000)}, {K::kJsonSchema, R"({"$ref":"#"})"}, {K::kJsonSchema,
          R"({"allOf":[{"$ref":"#"}]})"},
      {K::kJsonSchema, R"({"type":"string","maxLength":1000000000})"}, {K::kJsonSchema,
          R"({"type":"array","items":{"type":"integer"},"minItems":100000000})"},
      {K::kJsonSchema, R"({"type":"integer","multipleOf":7919,"minimum":1e300})"}, {K::kJsonSchema,
          R"({"type":"number","minimum":1e-300,"maximum":1e300})"},
      {K::kJsonSchema, R"({"type":"string","pattern":"(a|aa)*b(.{1,500}){1,500}"})"}, {K::kLark, "start: start start | \"a\"\n"},
          {K::kLark, "start: a\na: start\n"},
      {K::kLark, "start: " + repeat("(", 3000) + "\"a\"" + repeat(")", 3000)}, {K::kLark, "start: \"a\"{1,1000000}"}};
  std::string wide = R"({"type":"object","properties":{)";
  for (int i = 0; i < 3000; ++i) wide += (i > 0 ? ",\"p" : "\"p") + std::to_string(i) + R"(":{"type":"string"})";
  bombs.emplace_back(K::kJsonSchema, wide + "}}");
  std::string of_any = R"({"allOf":[)";
  for (int i = 0; i < 20; ++i) of_any += std::string(i > 0 ? "," : "") + R"({"oneOf":[{"type":"string","minLength":)" + std::to_string(i) +
      R"(},{"type":"integer","multipleOf":)" + std::to_string(i + 2) + "}]}";
  bombs.emplace_back(K::kJsonSchema, of_any + "]}");
  std::string chain = R"({"$ref":"#/$defs/d0","$defs":{"d4000":{"type":"null"})";
  for (int i = 0; i < 4000; ++i) chain += ",\"d" + std::to_string(i) + R"(":{"$ref":"#/$defs/d)" + std::to_string(i + 1) + "\"}";
  bombs.emplace_back(K::kJsonSchema, chain + "}}");
  bombs.emplace_back(K::kLark, "start: %json {\"type\":\"array\",\"minItems\":100000000}\n");
  std::mt19937 random(22);
  for (const auto& [kind, source] : bombs) {
    auto matcher = Demo().env->Compile(kind, source);
    if (!matcher.ok()) {
      EXPECT_EQ(matcher.status().code(), absl::StatusCode::kInvalidArgument) << source.substr(0, 100) << matcher.status();
      continue;
    }
    Mask mask(matcher->mask_words());
    for (int step = 0; step < 50 && !matcher->has_ended(); ++step) {
      const absl::Status status = matcher->FillMask(mask.data());
      if (!status.ok()) {  // a limit: this one is dead, and says so every time
        EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << source.substr(0, 100);
        EXPECT_FALSE(matcher->FillMask(mask.data()).ok());
        break;
      }
      const auto allowed = Allowed(mask);
      if (allowed.empty() || !matcher->Accept(allowed[random() % allowed.size()]).ok()) break;
    }
  }
  const std::string too_long = "[\"" + std::string(300 << 10, 'a') + "\"]";
  EXPECT_EQ(Demo().env->Compile(K::kChoice, too_long).status().code(), absl::StatusCode::kInvalidArgument);
  ExpectDraws(Demo(), K::kRegex, "a?b+", 3, [](const std::string& text) { return !text.empty(); });
}

TEST(Grammar, EnvironmentsCheckTheirNumbers) {
  const auto tokenizer = LoadTokenizer("demo");
  const int32_t size = tokenizer->vocab_size();
  const auto code = [&](int32_t width, const std::vector<int32_t>& ends) { return GrammarEnv::Create(tokenizer, width,
      ends).status().code(); };
  EXPECT_EQ(code(size, {0}), absl::StatusCode::kOk);
  for (const int32_t width : {size - 1, 0, -1, std::numeric_limits<int32_t>::max()}) EXPECT_EQ(code(width, {0}),
      absl::StatusCode::kInvalidArgument) << width;
  EXPECT_EQ(code(size, {}), absl::StatusCode::kInvalidArgument);
  for (const int32_t end : {size, -1, std::numeric_limits<int32_t>::max()}) EXPECT_EQ(code(size, {0, end}),
      absl::StatusCode::kInvalidArgument) << end;
}

TEST(Grammar, OneEnvironmentManyThreads) {
  std::vector<std::thread> threads;
  std::vector<std::string> texts(8);
  for (size_t t = 0; t < texts.size(); ++t) {
    threads.emplace_back([&texts, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 5; ++i) {
        Matcher matcher = Compile(Demo(), GrammarKind::kJsonSchema, kPerson);
        texts[t] = Draw(Demo(), &matcher, &random, 20);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& text : texts) EXPECT_TRUE(IsPerson(text)) << text;
}

}  // namespace
}  // namespace phalanx::text
