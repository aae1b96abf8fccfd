#include "router/core/validate.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace phalanx::router::core {
namespace {

constexpr int64_t kTwo31 = int64_t{1} << 31;
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

Limits TestLimits() {
  Limits limits;
  limits.served_names = {"org/model", "alias"};
  limits.vocab_size = 1000;
  limits.max_model_len = 4096;
  return limits;
}

Draft Chat() {
  Draft draft;
  draft.kind = Kind::kChat;
  draft.messages_json = R"([{"role":"user","content":"hi"}])";
  return draft;
}

Draft Completion() {
  Draft draft;
  draft.kind = Kind::kCompletion;
  draft.prompts = {std::string("hi")};
  return draft;
}

TEST(Validate, DefaultsOfTheApi) {
  const auto request = Validate(Chat(), TestLimits());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->served_name, "org/model");
  const ValidSampling& s = request->sampling;
  EXPECT_EQ(s.temperature, 1.0f);
  EXPECT_EQ(s.top_p, 1.0f);
  EXPECT_EQ(s.min_p, 0.0f);
  EXPECT_EQ(s.repetition_penalty, 1.0f);
  EXPECT_EQ(s.top_k, 0);
  EXPECT_EQ(s.n, 1);
  EXPECT_EQ(s.min_tokens, 0);
  EXPECT_EQ(s.logprobs, -1);
  EXPECT_EQ(s.prompt_logprobs, -1);
  EXPECT_FALSE(s.max_tokens.has_value());
  EXPECT_FALSE(s.seed.has_value());
  EXPECT_EQ(*Validate(Completion(), TestLimits())->sampling.max_tokens, 16);
}

TEST(Validate, RequestBeatsGenerationConfigBeatsApi) {
  Limits limits = TestLimits();
  limits.defaults = {.temperature = 0.6, .top_p = 0.9, .min_p = 0.05, .repetition_penalty = 1.1, .top_k = 20, .max_tokens = 100};
  Draft draft = Chat();
  draft.sampling.top_p = 0.5;
  const auto request = Validate(draft, limits);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_FLOAT_EQ(request->sampling.temperature, 0.6f);
  EXPECT_FLOAT_EQ(request->sampling.top_p, 0.5f);
  EXPECT_FLOAT_EQ(request->sampling.min_p, 0.05f);
  EXPECT_FLOAT_EQ(request->sampling.repetition_penalty, 1.1f);
  EXPECT_EQ(request->sampling.top_k, 20);
  EXPECT_EQ(*request->sampling.max_tokens, 100);
  draft.sampling.max_tokens = 2000;  // the generation config's number is a cap too
  EXPECT_EQ(*Validate(draft, limits)->sampling.max_tokens, 100);
}

TEST(Validate, ModelNames) {
  Draft draft = Chat();
  draft.model = "alias";
  EXPECT_EQ(Validate(draft, TestLimits())->served_name, "alias");
  draft.model = "gpt-4";
  const absl::Status status = Validate(draft, TestLimits()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ErrorCodeOf(status), "model_not_found");
  EXPECT_EQ(status.message(), "The model `gpt-4` does not exist.");
  draft.model = std::string(100000, 'x');
  EXPECT_LT(Validate(draft, TestLimits()).status().message().size(), 200u);
}

struct Row {
  const char* field;                        // named by the error; "" = accepted
  std::function<void(Draft*)> change;
};

void ExpectRows(const std::vector<Row>& rows, const std::function<Draft()>& base) {
  for (size_t i = 0; i < rows.size(); ++i) {
    Draft draft = base();
    rows[i].change(&draft);
    const auto request = Validate(draft, TestLimits());
    if (rows[i].field[0] == '\0') {
      EXPECT_TRUE(request.ok()) << "row " << i << ": " << request.status();
    } else {
      EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << "row " << i;
      EXPECT_EQ(FieldOf(request.status()), rows[i].field) << "row " << i << ": " << request.status();
    }
  }
}

#define SET(...) [](Draft* d) { SamplingDraft& s = d->sampling; (void)s; __VA_ARGS__; }

TEST(Validate, NumbersAtTheirEdges) {
  ExpectRows({{"", SET(s.temperature = 0)}, {"temperature", SET(s.temperature = -0.1)}, {"", SET(s.temperature = 5)},
              {"temperature", SET(s.temperature = kNan)}, {"temperature", SET(s.temperature = kInf)}, {"temperature", SET(s.temperature = 1e300)},
              {"top_p", SET(s.top_p = 0)}, {"top_p", SET(s.top_p = 1e-320)}, {"", SET(s.top_p = 1e-9)}, {"", SET(s.top_p = 1)},
              {"top_p", SET(s.top_p = 1.0001)}, {"top_p", SET(s.top_p = kNan)},
              {"", SET(s.min_p = 1)}, {"min_p", SET(s.min_p = -1e-9)}, {"min_p", SET(s.min_p = 1.5)},
              {"repetition_penalty", SET(s.repetition_penalty = 0)}, {"", SET(s.repetition_penalty = 3)},
              {"repetition_penalty", SET(s.repetition_penalty = kInf)},
              {"", SET(s.frequency_penalty = -2)}, {"frequency_penalty", SET(s.frequency_penalty = 2.01)},
              {"", SET(s.presence_penalty = 2)}, {"presence_penalty", SET(s.presence_penalty = kNan)}},
             Chat);
}

TEST(Validate, IntegersAtTheirEdges) {
  ExpectRows({{"", SET(s.top_k = -1)}, {"", SET(s.top_k = 0)}, {"top_k", SET(s.top_k = -2)}, {"top_k", SET(s.top_k = kTwo31)}, {"top_k", SET(s.top_k = kMax)},
              {"n", SET(s.n = 0)}, {"n", SET(s.n = -1)}, {"", SET(s.n = 128)}, {"n", SET(s.n = 129)}, {"n", SET(s.n = kTwo31)}, {"n", SET(s.n = kMax)},
              {"", SET(s.seed = kMax)}, {"", SET(s.seed = -kMax - 1)}, {"", SET(s.seed = 0)},
              {"max_tokens", SET(s.max_tokens = 0)}, {"max_tokens", SET(s.max_tokens = -1)}, {"", SET(s.max_tokens = 4096)},
              {"max_tokens", SET(s.max_tokens = 4097)}, {"max_tokens", SET(s.max_tokens = kTwo31)}, {"max_tokens", SET(s.max_tokens = kMax)},
              {"min_tokens", SET(s.min_tokens = -1)}, {"min_tokens", SET(s.min_tokens = kTwo31)}, {"min_tokens", SET(s.min_tokens = kMax)},
              {"min_tokens", SET(s.min_tokens = 3; s.max_tokens = 2)}, {"", SET(s.min_tokens = 2; s.max_tokens = 2)},
              {"top_logprobs", SET(s.logprobs = -1)}, {"", SET(s.logprobs = 20)}, {"top_logprobs", SET(s.logprobs = 21)}, {"top_logprobs", SET(s.logprobs = kMax)},
              {"prompt_logprobs", SET(s.prompt_logprobs = -1)}, {"prompt_logprobs", SET(s.prompt_logprobs = kTwo31)}, {"", SET(s.prompt_logprobs = 0)},
              {"prompt_logprobs", SET(s.prompt_logprobs = 0; d->stream = true)},
              {"priority", SET(d->priority = 1)}, {"priority", SET(d->priority = -1)},
              {"", SET(d->truncate_prompt_tokens = -1)}, {"truncate_prompt_tokens", SET(d->truncate_prompt_tokens = -2)},
              {"truncate_prompt_tokens", SET(d->truncate_prompt_tokens = 0)}, {"", SET(d->truncate_prompt_tokens = 4096)},
              {"truncate_prompt_tokens", SET(d->truncate_prompt_tokens = kMax)}},
             Chat);
}

TEST(Validate, IdsAreInsideTheVocabulary) {
  ExpectRows({{"", SET(s.stop_token_ids = {0, 999})}, {"stop_token_ids", SET(s.stop_token_ids = {1000})}, {"stop_token_ids", SET(s.stop_token_ids = {-1})},
              {"stop_token_ids", SET(s.stop_token_ids = {kTwo31})}, {"stop_token_ids", SET(s.stop_token_ids = {kMax})},
              {"stop_token_ids", SET(s.stop_token_ids.assign(5000, 1))},
              {"", SET(s.allowed_token_ids = {5})}, {"allowed_token_ids", SET(s.allowed_token_ids = {5, 1000})},
              {"", SET(s.logit_bias = {{999, 1.0}})}, {"logit_bias", SET(s.logit_bias = {{1000, 1.0}})}, {"logit_bias", SET(s.logit_bias = {{-1, 1.0}})},
              {"logit_bias", SET(s.logit_bias = {{kMax, 1.0}})}, {"logit_bias", SET(s.logit_bias = {{1, kNan}})}, {"", SET(s.logit_bias = {{1, kInf}})},
              {"", SET(d->prompts = {std::vector<int64_t>{0, 999}})}, {"prompt", SET(d->prompts = {std::vector<int64_t>{1000}})},
              {"prompt", SET(d->prompts = {std::vector<int64_t>{-1}})}, {"prompt", SET(d->prompts = {std::vector<int64_t>{}})},
              {"prompt", SET(d->prompts = {std::vector<int64_t>{kMax}})}},
             Completion);
}

TEST(Validate, ListsAndStrings) {
  ExpectRows({{"", SET(s.stop = {"a", "b"})}, {"stop", SET(s.stop = {""})}, {"", SET(s.stop.assign(16, "x"))}, {"stop", SET(s.stop.assign(17, "x"))},
              {"stop", SET(s.stop = {std::string(1025, 'x')})}, {"bad_words", SET(s.bad_words = {""})}, {"bad_words", SET(s.bad_words.assign(2000, "x"))},
              {"prompt", SET(d->prompts.clear())}, {"", SET(d->prompts.assign(128, std::string("x")))}, {"prompt", SET(d->prompts.assign(129, std::string("x")))},
              {"n", SET(d->prompts.assign(128, std::string("x")); s.n = 9)}, {"", SET(d->prompts.assign(128, std::string("x")); s.n = 8)},
              {"", SET(d->cache_salt = std::string(128, 'a'))}, {"cache_salt", SET(d->cache_salt = std::string(129, 'a'))},
              {"cache_salt", SET(d->cache_salt = "a/b")}, {"cache_salt", SET(d->cache_salt = std::string("a\0b", 3))}, {"cache_salt", SET(d->cache_salt = "a@b")},
              {"", SET(d->echo = true; s.max_tokens = 0)}, {"max_tokens", SET(s.max_tokens = 0)}},
             Completion);
  ExpectRows({{"messages", SET(d->messages_json = "[]")}, {"messages", SET(d->messages_json.clear())},
              {"continue_final_message", SET(d->continue_final_message = true)},
              {"", SET(d->continue_final_message = true; d->add_generation_prompt = false)}, {"max_tokens", SET(d->echo = true; s.max_tokens = 0)}},
             Chat);
}

TEST(Validate, NormalisesIds) {
  Draft draft = Completion();
  draft.sampling.logit_bias = {{7, 200.0}, {3, -1.5}, {7, -200.0}};
  draft.sampling.stop_token_ids = {9, 2, 9};
  draft.sampling.top_k = 100000;
  draft.sampling.seed = -1;
  const auto request = Validate(draft, TestLimits());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.logit_bias, (std::vector<std::pair<int32_t, float>>{{3, -1.5f}, {7, -100.0f}}));
  EXPECT_EQ(request->sampling.stop_token_ids, (std::vector<int32_t>{2, 9}));
  EXPECT_EQ(request->sampling.top_k, 0);
  EXPECT_FALSE(request->sampling.seed.has_value());
}

TEST(Validate, EchoedPromptHasTheLogprobsOfTheOutput) {
  Draft draft = Completion();
  draft.echo = true;
  draft.sampling.logprobs = 3;
  EXPECT_EQ(Validate(draft, TestLimits())->sampling.prompt_logprobs, 3);
  draft.stream = true;  // only the separate field is refused in a stream
  EXPECT_TRUE(Validate(draft, TestLimits()).ok());
}

TEST(Validate, TooLongIsAContextError) {
  Draft draft = Chat();
  draft.sampling.max_tokens = 5000;
  EXPECT_EQ(ErrorCodeOf(Validate(draft, TestLimits()).status()), "context_length_exceeded");
  Limits unknown = TestLimits();
  unknown.max_model_len = 0;
  unknown.vocab_size = 0;
  draft.sampling.stop_token_ids = {5'000'000};
  EXPECT_TRUE(Validate(draft, unknown).ok());
}

TEST(StatusPayload, RoundTrip) {
  absl::Status status = WithRetryAfter(WithErrorCode(FieldError("n", "n is bad."), "queue_full"), 7);
  EXPECT_EQ(FieldOf(status), "n");
  EXPECT_EQ(ErrorCodeOf(status), "queue_full");
  EXPECT_EQ(RetryAfterOf(status), 7);
  EXPECT_EQ(status.message(), "n is bad.");
  EXPECT_EQ(FieldOf(absl::InternalError("x")), "");
  EXPECT_EQ(ErrorCodeOf(absl::OkStatus()), "");
  EXPECT_EQ(RetryAfterOf(absl::UnavailableError("x")), 0);
}

}  // namespace
}  // namespace phalanx::router::core
