// Every field of a submission, at the edge of what is allowed and beyond: the refusal must begin with the field's name.
#include "worker/rpc/admit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace phalanx::worker::rpc {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::StartsWith;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Ids that must not get in: -1 as it travels, the first beyond the vocabulary, 2^31 and its neighbours, the last 32-bit number.
constexpr uint32_t kBadIds[] = {static_cast<uint32_t>(-1), 100, 101, (1u << 31) - 1, 1u << 31, (1u << 31) + 5, UINT32_MAX - 1};

AdmitLimits Limits() { return {.vocab_size = 100, .max_model_len = 16, .max_logprobs = 5, .eos_ids = {2, 7}}; }

v1::Submit Good() {
  v1::Submit submit;
  submit.set_request_id(1);
  for (uint32_t id : {0, 50, 99}) submit.add_prompt_ids(id);
  submit.set_max_tokens(4);
  return submit;
}

// What Admit says to `Good()` after `change`; "ok" if it takes it.
std::string Answer(const std::function<void(v1::Submit&)>& change) {
  v1::Submit submit = Good();
  change(submit);
  const auto request = Admit(submit, Limits(), 9);
  if (request.ok()) return "ok";
  EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(request.status().message());
}

std::string AnswerSampling(const std::function<void(v1::Sampling&)>& change) {
  return Answer([&](v1::Submit& submit) { change(*submit.mutable_sampling()); });
}

TEST(AdmitTest, AbsentMeansOff) {
  const auto request = Admit(Good(), Limits(), 9);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->id, 9u);
  EXPECT_THAT(request->prompt_ids, ElementsAre(0, 50, 99));
  EXPECT_THAT(request->resume_output_ids, IsEmpty());
  EXPECT_EQ(request->max_tokens, 4);
  EXPECT_EQ(request->min_tokens, 0);
  EXPECT_THAT(request->stop_ids, ElementsAre(2, 7)) << "the model's own end ids";
  EXPECT_EQ(request->credit, UINT32_MAX) << "unlimited";
  const core::SamplingOptions& s = request->sampling;
  EXPECT_EQ(s.temperature, 1.0f);
  EXPECT_EQ(s.top_p, 1.0f);
  EXPECT_EQ(s.top_k, 0);
  EXPECT_EQ(s.min_p, 0.0f);
  EXPECT_FALSE(s.NeedsPenaltyState());
  EXPECT_EQ(s.num_logprobs, -1);
  EXPECT_EQ(s.prompt_logprobs, -1);
}

TEST(AdmitTest, EveryFieldArrives) {
  v1::Submit submit = Good();
  submit.add_resume_output_ids(33);
  submit.set_min_tokens(2);
  for (uint32_t id : {7, 60}) submit.add_stop_ids(id);
  submit.set_cache_salt("tenant");
  submit.set_priority(-3);
  submit.set_credit(12);
  v1::Sampling& in = *submit.mutable_sampling();
  in.set_temperature(0.25f);
  in.set_top_p(0.5f);
  in.set_top_k(40);
  in.set_min_p(0.125f);
  in.set_repetition_penalty(1.5f);
  in.set_frequency_penalty(-2);
  in.set_presence_penalty(2);
  in.set_seed(UINT64_MAX);
  in.set_choice(3);
  in.add_logit_bias()->set_id(99);
  in.mutable_logit_bias(0)->set_bias(-100);
  in.add_allowed_ids(5);
  for (uint32_t id : {8, 9}) in.mutable_bad_words()->Add()->add_ids(id);
  in.mutable_bad_words(0)->add_ids(10);
  in.set_logprobs(5);
  in.set_prompt_logprobs(0);
  const auto request = Admit(submit, Limits(), 9);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->resume_output_ids, ElementsAre(33));
  EXPECT_EQ(request->min_tokens, 2);
  EXPECT_THAT(request->stop_ids, ElementsAre(2, 7, 60)) << "sorted, each once";
  EXPECT_EQ(request->cache_salt, "tenant");
  EXPECT_EQ(request->priority, -3);
  EXPECT_EQ(request->credit, 12u);
  const core::SamplingOptions& s = request->sampling;
  EXPECT_EQ(s.temperature, 0.25f);
  EXPECT_EQ(s.top_p, 0.5f);
  EXPECT_EQ(s.top_k, 40);
  EXPECT_EQ(s.min_p, 0.125f);
  EXPECT_EQ(s.repetition_penalty, 1.5f);
  EXPECT_EQ(s.frequency_penalty, -2.0f);
  EXPECT_EQ(s.presence_penalty, 2.0f);
  EXPECT_EQ(s.seed, UINT64_MAX);
  EXPECT_EQ(s.stream, 3u);
  EXPECT_THAT(s.logit_bias, ElementsAre(Pair(99, -100.0f)));
  EXPECT_THAT(s.allowed_ids, ElementsAre(5));
  EXPECT_THAT(s.bad_words, ElementsAre(ElementsAre(8, 10), ElementsAre(9)));
  EXPECT_EQ(s.num_logprobs, 5);
  EXPECT_EQ(s.prompt_logprobs, 0);
}

TEST(AdmitTest, IgnoreEosLeavesOnlyTheRequestsOwnStopIds) {
  v1::Submit submit = Good();
  submit.set_ignore_eos(true);
  submit.add_stop_ids(60);
  const auto request = Admit(submit, Limits(), 9);
  ASSERT_TRUE(request.ok());
  EXPECT_THAT(request->stop_ids, ElementsAre(60));
  EXPECT_TRUE(request->ignore_eos);
}

TEST(AdmitTest, AllOnesOfCreditStayALimit) {
  v1::Submit submit = Good();
  submit.set_credit(UINT32_MAX);
  const auto request = Admit(submit, Limits(), 9);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->credit, UINT32_MAX - 1);
}

TEST(AdmitTest, IdsOutsideTheVocabularyAreRefusedByField) {
  for (const uint32_t id : kBadIds) {
    SCOPED_TRACE(id);
    const std::string number = std::to_string(id);
    EXPECT_THAT(Answer([&](auto& s) { s.add_prompt_ids(id); }), StartsWith("prompt_ids: id " + number));
    EXPECT_THAT(Answer([&](auto& s) { s.add_resume_output_ids(id); }), StartsWith("resume_output_ids: id " + number));
    EXPECT_THAT(Answer([&](auto& s) { s.add_stop_ids(id); }), StartsWith("stop_ids: id " + number));
    EXPECT_THAT(AnswerSampling([&](auto& s) { s.add_allowed_ids(id); }), StartsWith("allowed_ids: id " + number));
    EXPECT_THAT(AnswerSampling([&](auto& s) { s.add_logit_bias()->set_id(id); }), StartsWith("logit_bias: id " + number));
    EXPECT_THAT(AnswerSampling([&](auto& s) { s.add_bad_words()->add_ids(id); }), StartsWith("bad_words: id " + number));
    EXPECT_THAT(AnswerSampling([&](auto& s) {
                  s.add_bad_words()->add_ids(1);
                  s.mutable_bad_words(0)->add_ids(id);
                }),
                HasSubstr("is outside the vocabulary of 100"));
  }
}

TEST(AdmitTest, LengthsAreCheckedWithoutOverflow) {
  EXPECT_THAT(Answer([](auto& s) { s.clear_prompt_ids(); }), StartsWith("prompt_ids: must not be empty"));
  EXPECT_EQ(Answer([](auto& s) { s.mutable_prompt_ids()->Resize(15, 1); }), "ok");
  EXPECT_THAT(Answer([](auto& s) { s.mutable_prompt_ids()->Resize(16, 1); }), StartsWith("prompt_ids: has 16 tokens"));
  EXPECT_THAT(Answer([](auto& s) {
                s.mutable_prompt_ids()->Resize(13, 1);
                s.mutable_resume_output_ids()->Resize(3, 1);
              }),
              StartsWith("prompt_ids: has 16 tokens"));
  EXPECT_THAT(Answer([](auto& s) { s.mutable_resume_output_ids()->Resize(4, 1); }), StartsWith("resume_output_ids: has 4 ids"));
  for (const uint32_t bad : {0u, 1u << 31, UINT32_MAX}) {
    EXPECT_THAT(Answer([&](auto& s) { s.set_max_tokens(bad); }), StartsWith("max_tokens: must be in [1, 2147483647]"));
  }
  EXPECT_THAT(Answer([](auto& s) { s.set_min_tokens(5); }), StartsWith("min_tokens: must not be above max_tokens 4"));
  EXPECT_THAT(Answer([](auto& s) { s.set_min_tokens(UINT32_MAX); }), StartsWith("min_tokens"));
  v1::Submit most = Good();
  most.set_max_tokens(INT32_MAX);
  most.set_min_tokens(INT32_MAX);
  const auto request = Admit(most, Limits(), 9);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->max_tokens, 16) << "no more than the context, so that sums of lengths stay small";
  EXPECT_EQ(request->min_tokens, 16);
}

// One floating-point option: its edges, and what must be refused around them.
struct FloatCase {
  const char* name;
  void (v1::Sampling::*set)(float);
  std::vector<float> good;
  std::vector<float> bad;
};

TEST(AdmitTest, FloatsAreRefusedByNameAtNanInfinityAndBeyondTheirRange) {
  const std::vector<FloatCase> cases = {
      {"temperature", &v1::Sampling::set_temperature, {0, 1, 2, 100}, {-0.001f, 2e6f}},
      {"top_p", &v1::Sampling::set_top_p, {1e-6f, 1}, {0, -1, 1.001f}},
      {"min_p", &v1::Sampling::set_min_p, {0, 1}, {-0.001f, 1.001f}},
      {"repetition_penalty", &v1::Sampling::set_repetition_penalty, {1e-3f, 1, 2, 10}, {0, -1, 2e6f}},
      {"frequency_penalty", &v1::Sampling::set_frequency_penalty, {-2, 0, 2}, {-2.001f, 2.001f}},
      {"presence_penalty", &v1::Sampling::set_presence_penalty, {-2, 0, 2}, {-2.001f, 2.001f}},
  };
  for (const FloatCase& c : cases) {
    SCOPED_TRACE(c.name);
    const auto answer = [&](float value) { return AnswerSampling([&](v1::Sampling& s) { (s.*c.set)(value); }); };
    for (const float value : c.good) EXPECT_EQ(answer(value), "ok") << value;
    std::vector<float> bad = c.bad;
    bad.insert(bad.end(), {kNaN, -kNaN, kInfinity, -kInfinity});
    for (const float value : bad) EXPECT_THAT(answer(value), StartsWith(std::string(c.name) + ": must be in ")) << value;
  }
  for (const float bias : {-100.5f, 100.5f, kNaN, kInfinity, -kInfinity}) {
    EXPECT_THAT(AnswerSampling([&](auto& s) { s.add_logit_bias()->set_bias(bias); }), StartsWith("logit_bias: must be in [-100, 100]"));
  }
}

TEST(AdmitTest, TopKIsOffAtMinusOneAndZero) {
  for (const int32_t off : {-1, 0}) {
    v1::Submit submit = Good();
    submit.mutable_sampling()->set_top_k(off);
    EXPECT_EQ(Admit(submit, Limits(), 9)->sampling.top_k, 0);
  }
  EXPECT_EQ(AnswerSampling([](auto& s) { s.set_top_k(INT32_MAX); }), "ok");
  EXPECT_THAT(AnswerSampling([](auto& s) { s.set_top_k(-2); }), StartsWith("top_k: "));
  EXPECT_THAT(AnswerSampling([](auto& s) { s.set_top_k(INT32_MIN); }), StartsWith("top_k: "));
}

TEST(AdmitTest, LogprobsAreBounded) {
  for (const int32_t bad : {-1, 6, INT32_MAX, INT32_MIN}) {
    EXPECT_THAT(AnswerSampling([&](auto& s) { s.set_logprobs(bad); }), StartsWith("logprobs: must be in [0, 5]"));
    EXPECT_THAT(AnswerSampling([&](auto& s) { s.set_prompt_logprobs(bad); }), StartsWith("prompt_logprobs: must be in [0, 5]"));
  }
}

TEST(AdmitTest, ListsAreBounded) {
  EXPECT_THAT(Answer([](auto& s) { s.mutable_stop_ids()->Resize(1025, 1); }), StartsWith("stop_ids: has more than 1024"));
  EXPECT_EQ(Answer([](auto& s) { s.mutable_stop_ids()->Resize(1024, 1); }), "ok");
  EXPECT_THAT(AnswerSampling([](auto& s) { s.mutable_allowed_ids()->Resize(101, 1); }), StartsWith("allowed_ids: has more"));
  EXPECT_THAT(AnswerSampling([](auto& s) {
                for (int i = 0; i < 4097; ++i) s.add_logit_bias();
              }),
              StartsWith("logit_bias: has more than 4096"));
  EXPECT_THAT(AnswerSampling([](auto& s) {
                for (int i = 0; i < 1025; ++i) s.add_bad_words()->add_ids(1);
              }),
              StartsWith("bad_words: has more than 1024"));
  EXPECT_THAT(AnswerSampling([](auto& s) { s.add_bad_words(); }), StartsWith("bad_words: an entry must have 1 to 256 ids"));
  EXPECT_THAT(AnswerSampling([](auto& s) { s.add_bad_words()->mutable_ids()->Resize(257, 1); }), StartsWith("bad_words: an entry"));
  EXPECT_THAT(Answer([](auto& s) { s.set_cache_salt(std::string(1025, 'x')); }), StartsWith("cache_salt: has more than 1024"));
  EXPECT_EQ(Answer([](auto& s) { s.set_cache_salt(std::string("a\0b", 3)); }), "ok") << "any bytes are a salt";
}

}  // namespace
}  // namespace phalanx::worker::rpc
