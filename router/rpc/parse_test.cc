// Native messages as drafts, by literal rows.
#include "router/rpc/parse.h"

#include <gtest/gtest.h>

#include <functional>

#include "router/core/validate.h"

namespace phalanx::router::rpc {
namespace {

v1::ChatRequest Hello() {
  v1::ChatRequest request;
  request.add_messages()->set_role("user");
  request.mutable_messages(0)->set_content("hi \"you\"");
  return request;
}

TEST(ParseTest, ChatDefaults) {
  const auto draft = ParseChat(Hello());
  ASSERT_TRUE(draft.ok()) << draft.status();
  EXPECT_EQ(draft->kind, core::Kind::kChat);
  EXPECT_EQ(draft->messages_json, R"([{"role":"user","content":"hi \"you\""}])");
  EXPECT_EQ(draft->template_kwargs_json, "");
  EXPECT_TRUE(draft->add_generation_prompt);
  EXPECT_FALSE(draft->continue_final_message);
  EXPECT_TRUE(draft->stream);
  EXPECT_FALSE(draft->sampling.temperature || draft->sampling.top_p || draft->sampling.top_k || draft->sampling.seed || draft->sampling.n ||
               draft->sampling.max_tokens || draft->sampling.min_tokens || draft->sampling.logprobs || draft->sampling.min_p ||
               draft->sampling.repetition_penalty || draft->sampling.frequency_penalty || draft->sampling.presence_penalty);
  EXPECT_TRUE(draft->sampling.skip_special_tokens);
}

TEST(ParseTest, ChatWithEverything) {
  v1::ChatRequest request = Hello();
  request.set_model("m");
  v1::Message* message = request.add_messages();
  message->set_role("assistant");  // no content
  message->set_reasoning_content("why");
  message->set_name("bot");
  message = request.add_messages();
  message->set_role("tool");
  message->set_content("4");
  message->set_tool_call_id("call_1");
  request.set_template_kwargs_json(" {\"a\": [1, 2]} ");
  request.set_add_generation_prompt(false);
  request.set_continue_final_message(true);
  request.set_cache_salt("salt");
  const auto draft = ParseChat(request);
  ASSERT_TRUE(draft.ok()) << draft.status();
  EXPECT_EQ(draft->model, "m");
  EXPECT_EQ(draft->messages_json,
            R"([{"role":"user","content":"hi \"you\""},{"role":"assistant","content":"","name":"bot","reasoning_content":"why"},)"
            R"({"role":"tool","content":"4","tool_call_id":"call_1"}])");
  EXPECT_EQ(draft->template_kwargs_json, R"({"a":[1,2]})");
  EXPECT_FALSE(draft->add_generation_prompt);
  EXPECT_TRUE(draft->continue_final_message);
  EXPECT_EQ(draft->cache_salt, "salt");
}

TEST(ParseTest, ZeroIsNotAbsent) {
  v1::ChatRequest request = Hello();
  v1::Sampling& in = *request.mutable_sampling();
  in.set_max_tokens(0);
  in.set_min_tokens(0);
  in.set_temperature(0);
  in.set_top_p(0);
  in.set_top_k(0);
  in.set_min_p(0);
  in.set_repetition_penalty(0);
  in.set_frequency_penalty(0);
  in.set_presence_penalty(0);
  in.set_seed(0);
  in.set_n(0);
  in.set_logprobs(0);
  in.set_skip_special_tokens(false);
  const auto draft = ParseChat(request);
  ASSERT_TRUE(draft.ok());
  const core::SamplingDraft& out = draft->sampling;
  EXPECT_EQ(out.max_tokens, 0);
  EXPECT_EQ(out.min_tokens, 0);
  EXPECT_EQ(out.temperature, 0.0);
  EXPECT_EQ(out.top_p, 0.0);
  EXPECT_EQ(out.top_k, 0);
  EXPECT_EQ(out.min_p, 0.0);
  EXPECT_EQ(out.repetition_penalty, 0.0);
  EXPECT_EQ(out.frequency_penalty, 0.0);
  EXPECT_EQ(out.presence_penalty, 0.0);
  EXPECT_EQ(out.seed, 0);
  EXPECT_EQ(out.n, 0);
  EXPECT_EQ(out.logprobs, 0);
  EXPECT_FALSE(out.skip_special_tokens);
}

TEST(ParseTest, EverySamplingFieldArrives) {
  v1::CompleteRequest request;
  request.set_text("t");
  v1::Sampling& in = *request.mutable_sampling();
  in.set_max_tokens(1);
  in.set_min_tokens(2);
  in.set_temperature(0.25f);
  in.set_top_p(0.5f);
  in.set_top_k(-1);
  in.set_min_p(0.125f);
  in.set_repetition_penalty(1.5f);
  in.set_frequency_penalty(-1);
  in.set_presence_penalty(2);
  in.set_seed(-7);
  in.set_n(3);
  in.set_logprobs(4);
  in.add_stop("a");
  in.add_stop("b");
  in.add_stop_token_ids(4000000000u);  // not cut to a negative number
  (*in.mutable_logit_bias())[5] = 0.5f;
  in.add_allowed_token_ids(6);
  in.add_bad_words("w");
  in.set_ignore_eos(true);
  in.set_include_stop_in_output(true);
  const auto draft = ParseComplete(request);
  ASSERT_TRUE(draft.ok());
  const core::SamplingDraft& out = draft->sampling;
  EXPECT_EQ(out.max_tokens, 1);
  EXPECT_EQ(out.min_tokens, 2);
  EXPECT_EQ(out.temperature, 0.25);
  EXPECT_EQ(out.top_p, 0.5);
  EXPECT_EQ(out.top_k, -1);
  EXPECT_EQ(out.min_p, 0.125);
  EXPECT_EQ(out.repetition_penalty, 1.5);
  EXPECT_EQ(out.frequency_penalty, -1.0);
  EXPECT_EQ(out.presence_penalty, 2.0);
  EXPECT_EQ(out.seed, -7);
  EXPECT_EQ(out.n, 3);
  EXPECT_EQ(out.logprobs, 4);
  EXPECT_EQ(out.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(out.stop_token_ids, (std::vector<int64_t>{4000000000}));
  EXPECT_EQ(out.logit_bias, (std::vector<std::pair<int64_t, double>>{{5, 0.5}}));
  EXPECT_EQ(out.allowed_token_ids, (std::vector<int64_t>{6}));
  EXPECT_EQ(out.bad_words, (std::vector<std::string>{"w"}));
  EXPECT_TRUE(out.ignore_eos);
  EXPECT_TRUE(out.include_stop_in_output);
}

TEST(ParseTest, CompletePrompts) {
  v1::CompleteRequest request;
  EXPECT_EQ(core::FieldOf(ParseComplete(request).status()), "prompt");
  request.mutable_tokens();
  auto draft = ParseComplete(request);
  ASSERT_TRUE(draft.ok());
  EXPECT_EQ(draft->prompts, (std::vector<core::Prompt>{std::vector<int64_t>{}}));
  request.mutable_tokens()->add_ids(3);
  request.mutable_tokens()->add_ids(4000000000u);
  request.set_echo(true);
  request.set_add_special_tokens(false);
  draft = ParseComplete(request);
  ASSERT_TRUE(draft.ok());
  EXPECT_EQ(draft->prompts, (std::vector<core::Prompt>{std::vector<int64_t>{3, 4000000000}}));
  EXPECT_TRUE(draft->echo);
  EXPECT_EQ(draft->add_special_tokens, false);
  request.set_text("");
  draft = ParseComplete(request);
  ASSERT_TRUE(draft.ok());
  EXPECT_EQ(draft->prompts, (std::vector<core::Prompt>{std::string()}));
}

TEST(ParseTest, FieldErrors) {
  struct Row {
    const char* field;
    std::function<void(v1::ChatRequest&)> spoil;
  };
  const Row rows[] = {
      {"messages[0].role", [](auto& r) { r.mutable_messages(0)->set_role("robot"); }},
      {"messages[1].role", [](auto& r) { r.add_messages(); }},
      {"template_kwargs_json", [](auto& r) { r.set_template_kwargs_json("{"); }},
      {"template_kwargs_json", [](auto& r) { r.set_template_kwargs_json("[1]"); }},
  };
  for (const Row& row : rows) {
    v1::ChatRequest request = Hello();
    row.spoil(request);
    const auto draft = ParseChat(request);
    EXPECT_EQ(draft.status().code(), absl::StatusCode::kInvalidArgument) << row.field;
    EXPECT_EQ(core::FieldOf(draft.status()), row.field);
  }
}

}  // namespace
}  // namespace phalanx::router::rpc
