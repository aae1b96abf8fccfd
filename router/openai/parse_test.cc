// Bodies to drafts: shapes, types, numbers at their edges, refusals, and mutated bytes that must never crash.
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "router/core/validate.h"
#include "router/openai/chat.h"
#include "router/openai/completions.h"
#include "router/openai/error.h"
#include "router/openai/tokenize.h"
#include "services/json.h"

namespace phalanx::router::openai {
namespace {

std::string Chat(const std::string& more) { return R"({"model":"m","messages":[{"role":"user","content":"hi"}])" + more + "}"; }
std::string Text(const std::string& more) { return R"({"model":"m","prompt":"hi")" + more + "}"; }

struct Row {
  std::string body;
  std::string field;  // named by the error
};

void ExpectRefused(const std::vector<Row>& rows, absl::StatusOr<ParsedRequest> (*parse)(std::string_view)) {
  for (const Row& row : rows) {
    const auto parsed = parse(row.body);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << row.body;
    EXPECT_EQ(core::FieldOf(parsed.status()), row.field) << row.body << parsed.status();
  }
}

TEST(ParseChat, Minimal) {
  const auto parsed = ParseChat(Chat(""));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->draft.kind, core::Kind::kChat);
  EXPECT_EQ(parsed->draft.model, "m");
  EXPECT_EQ(parsed->draft.messages_json, R"([{"role":"user","content":"hi"}])");
  EXPECT_FALSE(parsed->form.stream);
  EXPECT_FALSE(parsed->draft.sampling.temperature.has_value());
  EXPECT_TRUE(parsed->draft.add_generation_prompt);
}

TEST(ParseChat, EveryField) {
  const auto parsed = ParseChat(Chat(
      R"(,"temperature":0,"top_p":0.5,"top_k":5.0,"min_p":0.1,"repetition_penalty":1.2,"frequency_penalty":-1,"presence_penalty":1.5,)"
      R"("seed":9223372036854775807,"n":2,"max_tokens":5,"max_completion_tokens":7,"min_tokens":1,"logprobs":true,"top_logprobs":3,)"
      R"("logit_bias":{"17":-100,"3":1.5},"allowed_token_ids":[1,2],"stop_token_ids":[4],"bad_words":["x"],"stop":["a","b"],)"
      R"("ignore_eos":true,"include_stop_str_in_output":true,"skip_special_tokens":false,"add_special_tokens":true,)"
      R"("truncate_prompt_tokens":-1,"cache_salt":"s","priority":0,"stream":true,)"
      R"("stream_options":{"include_usage":true,"continuous_usage_stats":true,"include_obfuscation":false},"return_token_ids":true,)"
      R"("chat_template_kwargs":{"enable_thinking":false,"b":[1]},"add_generation_prompt":false,"continue_final_message":true,)"
      R"("include_reasoning":false,"request_id":"r","user":"u","metadata":{"a":"b"},"unknown":{"x":[1]},"tools":[],"tool_choice":"none",)"
      R"("response_format":{"type":"text"},"parallel_tool_calls":true,"service_tier":"auto")"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const core::SamplingDraft& s = parsed->draft.sampling;
  EXPECT_EQ(*s.temperature, 0);
  EXPECT_EQ(*s.top_k, 5);
  EXPECT_EQ(*s.seed, 9223372036854775807);
  EXPECT_EQ(*s.n, 2);
  EXPECT_EQ(*s.max_tokens, 7);
  EXPECT_EQ(*s.logprobs, 3);
  EXPECT_EQ(s.logit_bias, (std::vector<std::pair<int64_t, double>>{{17, -100}, {3, 1.5}}));
  EXPECT_EQ(s.allowed_token_ids, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(s.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(s.ignore_eos && s.include_stop_in_output && !s.skip_special_tokens);
  EXPECT_EQ(parsed->draft.template_kwargs_json, R"({"enable_thinking":false,"b":[1]})");
  EXPECT_TRUE(parsed->form.stream && parsed->form.include_usage && parsed->form.continuous_usage && parsed->form.return_token_ids);
  EXPECT_FALSE(parsed->form.include_reasoning);
  EXPECT_EQ(parsed->draft.request_id, "r");
}

TEST(ParseChat, NullIsAbsent) {
  const auto parsed = ParseChat(Chat(R"(,"temperature":null,"stop":null,"stream":null,"stream_options":null,"n":null,"tools":null,"tool_choice":null,)"
                                     R"("logprobs":null,"top_logprobs":null,"logit_bias":null,"response_format":null,"max_tokens":null)"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_FALSE(parsed->draft.sampling.n.has_value());
}

TEST(ParseChat, Messages) {
  const auto parsed = ParseChat(
      R"({"messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b\n"}]},)"
      R"({"role":"assistant","reasoning":"because","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}],"audio":null},)"
      R"({"role":"tool","tool_call_id":"1","content":"é\u0000"},{"role":"assistant","content":"so","extra":1}],"echo":true})");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->draft.messages_json,
            R"([{"role":"developer","content":"a\nb\n"},{"role":"assistant","content":"","reasoning_content":"because",)"
            R"("tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},)"
            R"({"role":"tool","content":"é\u0000","tool_call_id":"1"},{"role":"assistant","content":"so"}])");
  EXPECT_EQ(parsed->form.echo_message, "so");
  EXPECT_FALSE(parsed->draft.echo);
}

TEST(ParseChat, Refuses) {
  ExpectRefused({{"", ""}, {"{", ""}, {"[]", ""}, {"null", ""}, {Chat(R"(,"n":1e400)"), ""}, {Chat(R"(,"temperature":NaN)"), ""},
                 {R"({"model":"m"})", "messages"}, {R"({"messages":[]})", "messages"}, {R"({"messages":"hi"})", "messages"},
                 {R"({"messages":[1]})", "messages[0]"}, {R"({"messages":[{}]})", "messages[0].role"},
                 {R"({"messages":[{"role":"boss","content":"x"}]})", "messages[0].role"},
                 {R"({"messages":[{"role":"user","content":1}]})", "messages[0].content"},
                 {R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]})", "messages[0].content"},
                 {R"({"messages":[{"role":"user","content":"\ud800"}]})", ""}, {Chat(R"(,"model":1)"), "model"},
                 {Chat(R"(,"temperature":"1")"), "temperature"}, {Chat(R"(,"temperature":true)"), "temperature"}, {Chat(R"(,"n":1.5)"),
                     "n"},
                 {Chat(R"(,"n":true)"), "n"}, {Chat(R"(,"n":"1")"), "n"}, {Chat(R"(,"n":18446744073709551615)"), "n"},
                     {Chat(R"(,"n":1e30)"), "n"},
                 {Chat(R"(,"max_tokens":99999999999999999999)"), "max_tokens"}, {Chat(R"(,"stream":1)"), "stream"}, {Chat(R"(,"stop":1)"),
                     "stop"},
                 {Chat(R"(,"stop":["a",1])"), "stop"}, {Chat(R"(,"logit_bias":[1])"), "logit_bias"}, {Chat(R"(,"logit_bias":{"a":1})"),
                     "logit_bias"},
                 {Chat(R"(,"logit_bias":{"1.5":1})"), "logit_bias"}, {Chat(R"(,"logit_bias":{"1":"x"})"), "logit_bias"},
                 {Chat(R"(,"logit_bias":{"99999999999999999999":1})"), "logit_bias"}, {Chat(R"(,"stream_options":{"include_usage":true})"),
                     "stream_options"},
                 {Chat(R"(,"stream":true,"stream_options":{"include_usage":1})"), "stream_options.include_usage"},
                 {Chat(R"(,"logprobs":5)"), "logprobs"}, {Chat(R"(,"top_logprobs":2)"), "top_logprobs"},
                 {Chat(R"(,"tools":[{"type":"function","function":{"name":"f"}}])"), "tools"}, {Chat(R"(,"tool_choice":"auto")"),
                     "tool_choice"},
                 {Chat(R"(,"response_format":{"type":"json_object"})"), "response_format"}, {Chat(R"(,"response_format":{})"),
                     "response_format"},
                 {Chat(R"(,"structured_outputs":{"regex":"a"})"), "structured_outputs"}, {Chat(R"(,"guided_json":{"a":1})"), "guided_json"},
                 {Chat(R"(,"use_beam_search":true)"), "use_beam_search"}, {Chat(R"(,"logits_processors":["x"])"), "logits_processors"},
                 {Chat(R"(,"chat_template":"x")"), "chat_template"}, {Chat(R"(,"chat_template_kwargs":[])"), "chat_template_kwargs"},
                 {Chat(R"(,"allowed_token_ids":[])"), "allowed_token_ids"}, {Chat(R"(,"cache_salt":"")"), "cache_salt"},
                 {Chat(R"(,"reasoning_effort":"huge")"), "reasoning_effort"}, {Chat(R"(,"modalities":["audio"])"), "modalities"},
                 {Chat(R"(,"function_call":"auto","functions":[{"name":"f"}])"), "functions"}},
                ParseChat);
}

TEST(ParseChat, EffortSetsTheTemplate) {
  EXPECT_EQ(ParseChat(Chat(R"(,"reasoning_effort":"none")"))->draft.template_kwargs_json,
      R"({"enable_thinking":false,"reasoning_effort":"none"})");
}

TEST(ParseCompletion, PromptShapes) {
  using Ids = std::vector<int64_t>;
  const auto prompts = [](const std::string& prompt) { return ParseCompletion(R"({"prompt":)" + prompt + "}")->draft.prompts; };
  EXPECT_EQ(prompts(R"("a")"), (std::vector<core::Prompt>{std::string("a")}));
  EXPECT_EQ(prompts(R"(["a",""])"), (std::vector<core::Prompt>{std::string("a"), std::string()}));
  EXPECT_EQ(prompts("[1,2.0]"), (std::vector<core::Prompt>{Ids{1, 2}}));
  EXPECT_EQ(prompts("[[1],[2,3]]"), (std::vector<core::Prompt>{Ids{1}, Ids{2, 3}}));
  const auto parsed = ParseCompletion(Text(R"(,"logprobs":0,"echo":true,"max_tokens":0,"best_of":1,"suffix":"")"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->form.logprobs && parsed->form.echo);
  EXPECT_EQ(*parsed->draft.sampling.logprobs, 0);
}

TEST(ParseCompletion, Refuses) {
  ExpectRefused({{"{}", "prompt"}, {R"({"prompt":[]})", "prompt"}, {R"({"prompt":1})", "prompt"}, {R"({"prompt":["a",1]})", "prompt"},
                 {R"({"prompt":[1,"a"]})", "prompt"}, {R"({"prompt":[[1],"a"]})", "prompt"}, {R"({"prompt":[[1],2]})", "prompt"},
                 {R"({"prompt":[true]})", "prompt"}, {R"({"prompt":[[1.5]]})", "prompt"}, {R"({"prompt":{"a":1}})", "prompt"},
                 {R"({"prompt":[[[1]]]})", "prompt"}, {Text(R"(,"logprobs":true)"), "logprobs"}, {Text(R"(,"suffix":"x")"), "suffix"},
                 {Text(R"(,"best_of":3)"), "best_of"}, {Text(R"(,"prompt_embeds":"x")"), "prompt_embeds"}, {Text(R"(,"echo":"yes")"),
                     "echo"}},
                ParseCompletion);
}

TEST(ParseTokenize, Shapes) {
  const auto text = ParseTokenize(R"({"prompt":"hi","add_special_tokens":false,"return_token_strs":true})");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->draft.kind, core::Kind::kCompletion);
  EXPECT_TRUE(text->return_token_strs && text->draft.add_special_tokens == false);
  EXPECT_EQ(ParseTokenize(R"({"messages":[{"role":"user","content":"x"}]})")->draft.kind, core::Kind::kChat);
  EXPECT_EQ(core::FieldOf(ParseTokenize("{}").status()), "prompt");
  EXPECT_EQ(ParseDetokenize(R"({"tokens":[1,2]})")->tokens, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(core::FieldOf(ParseDetokenize(R"({"tokens":"x"})").status()), "tokens");
  EXPECT_EQ(core::FieldOf(ParseDetokenize("{}").status()), "tokens");
  EXPECT_EQ(WriteTokenize({.ids = {1, 2}, .pieces = {"a", "\""}, .max_model_len = 9}, true),
            R"({"count":2,"max_model_len":9,"tokens":[1,2],"token_strs":["a","\""]})");
  EXPECT_EQ(WriteTokenize({.ids = {}, .pieces = {}, .max_model_len = 9}, false),
      R"({"count":0,"max_model_len":9,"tokens":[],"token_strs":null})");
  EXPECT_EQ(WriteDetokenize("a\nb"), R"({"prompt":"a\nb"})");
}

TEST(Parse, DeepAndHugeBodiesAreRefusedQuickly) {
  EXPECT_FALSE(ParseChat(std::string(5000, '[')).ok());
  EXPECT_FALSE(ParseChat(Chat(R"(,"metadata":)" + std::string(5000, '[') + std::string(5000, ']'))).ok());
  std::string biases = R"(,"logit_bias":{"0":1)";
  for (int i = 1; i < 10000; ++i) biases += ",\"" + std::to_string(i) + "\":1";
  EXPECT_FALSE(ParseChat(Chat(biases + "}")).ok());
}

// Whatever the bytes, the answer is a draft or a kInvalidArgument whose error body is JSON.
TEST(Parse, MutatedBodiesNeverCrash) {
  const std::vector<std::string> seeds = {
      Chat(R"(,"stream":true,"stream_options":{"include_usage":true},"logit_bias":{"5":1},"stop":["x","é"],"n":2,"tools":[],"top_logprobs":0)"),
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}]})",
      Text(R"(,"prompt":[[1,2],[3]],"echo":true,"logprobs":5,"allowed_token_ids":[1,2],"response_format":{"type":"text"})")};
  const std::string bytes = "{}[]\",:0123456789.eE+-truefalsnl\\u\xff\xc3\x00 ";
  std::mt19937 random(7);
  int accepted = 0;
  for (int round = 0; round < 60000; ++round) {
    std::string body = seeds[round % seeds.size()];
    for (int edits = 1 + random() % 4; edits > 0 && !body.empty(); --edits) {
      const size_t at = random() % body.size();
      switch (random() % 4) {
        case 0: body[at] = bytes[random() % bytes.size()]; break;
        case 1: body.erase(at, 1 + random() % 8); break;
        case 2: body.insert(at, 1, bytes[random() % bytes.size()]); break;
        default: body.insert(at, body.substr(random() % body.size(), random() % 20));
      }
    }
    for (auto* parse : {&ParseChat, &ParseCompletion}) {
      const auto parsed = parse(body);
      if (parsed.ok()) {
        ++accepted;
        continue;
      }
      ASSERT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << body;
      const std::string error = ToErrorReply(parsed.status()).body;
      ASSERT_TRUE(services::ParseJson(error).ok()) << body << "\n" << error << "\n" << services::ParseJson(error).status();
    }
    (void)ParseTokenize(body);
    (void)ParseDetokenize(body);
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace phalanx::router::openai
