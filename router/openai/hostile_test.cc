// Hostile numbers at every field that takes one, through Parse and Validate: refused by name, or harmless.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "router/core/validate.h"
#include "router/openai/chat.h"
#include "router/openai/completions.h"
#include "router/openai/error.h"
#include "router/openai/tokenize.h"
#include "services/json.h"

namespace phalanx::router::openai {
namespace {

core::Limits TestLimits(bool known) {
  core::Limits limits;
  limits.served_names = {"m"};
  limits.vocab_size = known ? 1000 : 0;  // 0: no worker has been seen yet
  limits.max_model_len = known ? 4096 : 0;
  return limits;
}

// A body of each endpoint with one more field.
std::string Body(bool chat, const std::string& field, const std::string& value) {
  const std::string base = chat ? R"({"messages":[{"role":"user","content":"hi"}])" : R"({"prompt":"hi")";
  const std::string companion = field == "top_logprobs" ? R"(,"logprobs":true)" : "";
  return base + companion + ",\"" + field + "\":" + value + "}";
}

absl::StatusOr<core::ValidRequest> Try(bool chat, const std::string& body, bool known) {
  PHX_ASSIGN_OR_RETURN(ParsedRequest parsed, chat ? ParseChat(body) : ParseCompletion(body));
  return core::Validate(std::move(parsed.draft), TestLimits(known));
}

// What a worker may be given.
void ExpectInRange(const core::ValidSampling& s, const std::string& body) {
  EXPECT_TRUE(std::isfinite(s.temperature) && s.temperature >= 0) << body;
  EXPECT_TRUE(s.top_p > 0 && s.top_p <= 1) << body;
  EXPECT_TRUE(s.min_p >= 0 && s.min_p <= 1) << body;
  EXPECT_TRUE(std::isfinite(s.repetition_penalty) && s.repetition_penalty > 0) << body;
  EXPECT_TRUE(std::abs(s.frequency_penalty) <= 2 && std::abs(s.presence_penalty) <= 2) << body;
  EXPECT_TRUE(s.top_k >= 0 && s.n >= 1 && s.n <= 128 && s.min_tokens >= 0) << body;
  EXPECT_TRUE(!s.max_tokens || *s.max_tokens >= 1) << body;
  EXPECT_TRUE(s.logprobs >= -1 && s.logprobs <= 20 && s.prompt_logprobs >= -1 && s.prompt_logprobs <= 20) << body;
  for (const auto& [id, bias] : s.logit_bias) EXPECT_TRUE(id >= 0 && std::abs(bias) <= 100) << body;
  for (const int32_t id : s.allowed_token_ids) EXPECT_GE(id, 0) << body;
  for (const int32_t id : s.stop_token_ids) EXPECT_GE(id, 0) << body;
}

const std::vector<std::string>& Numbers() {
  static const auto& numbers = *new std::vector<std::string>{
      "-1", "0", "-0.0", "0.5", "2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808",
          "-9223372036854775808",
      "-9223372036854775809", "18446744073709551615", "18446744073709551616", "99999999999999999999999", "1e308", "-1e308", "1e-308",
          "1e19", "1e18"};
  return numbers;
}
const std::vector<std::string>& WrongTypes() {
  static const auto& types = *new std::vector<std::string>{"\"NaN\"", "\"1\"", "true", "[]", "[1]", "{}", "{\"a\":1}"};
  return types;
}

struct Field {
  std::string name;
  bool chat = true, completion = true;
};

void ExpectNamed(const absl::Status& status, std::string field, const std::string& body) {
  // One sentence about the context for both names.
  if (field == "max_completion_tokens" && core::ErrorCodeOf(status) == "context_length_exceeded") field = "max_tokens";
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << body;
  EXPECT_EQ(core::FieldOf(status), field) << body << " " << status;
  EXPECT_NE(status.message().find(field), absl::string_view::npos) << body << " " << status;
  EXPECT_LT(ToErrorReply(status).body.size(), 600u) << body;
}

void TryAll(const Field& field, const std::vector<std::string>& values, bool all_refused) {
  for (const bool chat : {true, false}) {
    if (!(chat ? field.chat : field.completion)) continue;
    for (const std::string& value : values) {
      for (const bool known : {true, false}) {
        const std::string body = Body(chat, field.name, value);
        const auto request = Try(chat, body, known);
        if (request.ok()) {
          EXPECT_FALSE(all_refused) << body;
          ExpectInRange(request->sampling, body);
        } else {
          ExpectNamed(request.status(), field.name, body);
        }
      }
    }
  }
}

TEST(HostileNumbers, EveryNumberField) {
  for (const char* name : {"temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"}) {
    TryAll({name}, Numbers(), false);
    TryAll({name}, WrongTypes(), true);
  }
}

TEST(HostileNumbers, EveryIntegerField) {
  const std::vector<Field> fields = {{"top_k"}, {"seed"}, {"n"}, {"max_tokens"}, {"max_completion_tokens", true, false}, {"min_tokens"},
      {"prompt_logprobs"},
                                     {"top_logprobs", true, false}, {"logprobs", false, true}, {"truncate_prompt_tokens"}, {"priority"},
                                     {"thinking_token_budget"}, {"best_of", false, true}};
  for (const Field& field : fields) {
    TryAll(field, Numbers(), false);
    TryAll(field, {"0.5", "-1.5", "1e308", "9223372036854775808", "\"NaN\"", "\"1\"", "true", "[]", "{}"}, true);
  }
}

TEST(HostileNumbers, EveryListOfIds) {
  for (const char* name : {"stop_token_ids", "allowed_token_ids"}) {
    std::vector<std::string> lists;
    for (const std::string& number : Numbers()) lists.push_back("[1," + number + "]");
    TryAll({name}, lists, false);
    TryAll({name}, {"1", "\"1\"", "[[1]]", "[null]", "[true]", "[\"1\"]", "{\"0\":1}"}, true);
  }
  for (const std::string& number : Numbers()) {
    for (const std::string& prompt : {"[" + number + "]", "[1," + number + "]", "[[1],[" + number + "]]"}) {
      const std::string body = "{\"prompt\":" + prompt + "}";
      const auto request = Try(false, body, true);
      if (!request.ok()) ExpectNamed(request.status(), "prompt", body);
      EXPECT_EQ(request.ok(), number == "0" || number == "-0.0") << body;
    }
  }
}

TEST(HostileNumbers, LogitBias) {
  for (const std::string& number : Numbers()) {
    for (const std::string& value : {"{\"" + number + "\":1}", "{\"5\":" + number + "}"}) TryAll({"logit_bias"}, {value}, false);
  }
  TryAll({"logit_bias"}, {"{\"\":1}", "{\" 5\":1}", "{\"5 \":1}", "{\"+5\":1}", "{\"0x5\":1}", "{\"5\":null}", "{\"5\":true}",
      "{\"5\":[]}", "[5]", "5"}, true);
}

TEST(HostileNumbers, WhatIsNoJsonNumberIsNoBody) {
  for (const char* value : {"NaN", "Infinity", "-Infinity", "+1", "01", "0x10", ".5", "5.", "1e", "--1", "1e400", "-1e400"}) {
    const auto request = Try(true, Body(true, "temperature", value), true);
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << value;
  }
}

TEST(HostileNumbers, Detokenize) {
  for (const std::string& number : Numbers()) {
    const auto form = ParseDetokenize("{\"tokens\":[" + number + "]}");
    const absl::Status status = form.ok() ? core::CheckTokenIds("tokens", form->tokens, TestLimits(true)) : form.status();
    EXPECT_EQ(status.ok(), number == "0" || number == "-0.0") << number;
    if (!status.ok()) ExpectNamed(status, "tokens", number);
  }
}

TEST(HostileSizes, DepthAndWidthAreBounded) {
  const auto nested = [](int depth, const char* open, const char* close) {
    std::string out;
    for (int i = 0; i < depth; ++i) out += open;
    out += "1";
    for (int i = 0; i < depth; ++i) out += close;
    return out;
  };
  for (const char* field : {"metadata", "chat_template_kwargs", "tools", "messages", "logit_bias", "unknown"}) {
    for (const bool chat : {true, false}) {
      EXPECT_EQ(Try(chat, Body(chat, field, nested(5000, "[", "]")), true).status().code(), absl::StatusCode::kInvalidArgument) << field;
      EXPECT_EQ(Try(chat, Body(chat, field, nested(5000, "{\"a\":", "}")), true).status().code(), absl::StatusCode::kInvalidArgument)
          << field;
    }
  }
  std::string members = "{\"0\":1";
  for (int i = 1; i < 100000; ++i) members += ",\"" + std::to_string(i) + "\":1";
  EXPECT_EQ(Try(true, Body(true, "metadata", members + "}"), true).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(HostileSizes, ListsAreRefusedByLength) {
  const auto list = [](const std::string& item, int count) {
    std::string out = "[" + item;
    for (int i = 1; i < count; ++i) out += "," + item;
    return out + "]";
  };
  const std::vector<std::pair<std::string, std::string>> lists = {{"stop", list("\"x\"", 100000)}, {"bad_words", list("\"x\"", 100000)},
                                                                  {"stop_token_ids", list("1", 100000)}, {"allowed_token_ids", list("-1",
                                                                      100000)}};
  for (const auto& [field, value] : lists) ExpectNamed(Try(true, Body(true, field, value), true).status(), field, field);
  ExpectNamed(Try(false, "{\"prompt\":" + list("\"x\"", 200000) + "}", true).status(), "prompt", "prompts");
  ExpectNamed(Try(false, "{\"prompt\":" + list("[1]", 200000) + "}", true).status(), "prompt", "prompts");
}

TEST(HostileText, BadUtf8AndLoneSurrogates) {
  for (const char* text : {"\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", R"("\ud800")", R"("\udc00")", R"("\ud800\ud800")", R"("\ud800x")",
      "\"\x01\""}) {
    EXPECT_EQ(ParseCompletion(R"({"prompt":)" + std::string(text) + "}").status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(ParseChat(R"({"messages":[{"role":"user","content":)" + std::string(text) + "}]}").status().code(),
        absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(ParseTokenize(R"({"prompt":)" + std::string(text) + "}").status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_TRUE(ParseCompletion(R"({"prompt":"\ud83d\ude00 \u0000"})").ok());
}

// A body's own text is quoted back only in part.
TEST(HostileText, MessagesStayShort) {
  const std::string long_text(1 << 20, 'x');
  for (const std::string& body : {Body(true, "response_format", "{\"type\":\"" + long_text + "\"}"), Body(true, "logit_bias", "{\"" +
      long_text + "\":1}"),
                                  Body(true, "model", "\"" + long_text + "\""), Body(true, "reasoning_effort", "\"" + long_text + "\""),
                                      "{\"" + long_text}) {
    const absl::Status status = Try(true, body, true).status();
    ASSERT_FALSE(status.ok());
    EXPECT_LT(status.message().size(), 400u);
  }
}

}  // namespace
}  // namespace phalanx::router::openai
