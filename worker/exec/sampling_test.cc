// What each sampling option does to a stream, seen from outside: a real model, the real engine, and arithmetic on the log-probabilities
// that come back. The kernels' own tests are kernels/ops_sampling_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "worker/exec/exec_test_util.h"

namespace phalanx::worker::exec {
namespace {

using core::FinishReason;
using core::Request;
using core::TokenInfo;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kModel[] = "llama_mha";
constexpr int32_t kVocab = 96;

class SamplingTest : public ::testing::Test {
 protected:
  Request Plain(int32_t prompt = 20, int32_t max_tokens = 40) { return Greedy(kModel, prompt, max_tokens); }
  Request Random(uint64_t seed, float temperature = 1.0f) {
    Request request = Plain();
    request.sampling.temperature = temperature;
    request.sampling.seed = seed;
    return request;
  }
  std::vector<int32_t> Ids(const Request& request) { return RunOne(setup_, request).ids(); }

  WorkerSetup setup_{.model = kModel, .max_num_batched_tokens = 16};
};

// ---- draws ----------------------------------------------------------------------------------------------------------

TEST_F(SamplingTest, ASeedRepeatsAndAnotherSeedDoesNot) {
  const std::vector<int32_t> first = Ids(Random(7));
  EXPECT_EQ(Ids(Random(7)), first);
  EXPECT_NE(Ids(Random(8)), first);
  EXPECT_NE(Ids(Random(7ULL << 32)), first) << "all 64 bits of the seed count";
  EXPECT_NE(Ids(Plain()), first);
}

TEST_F(SamplingTest, ChoicesOfOneRequestDiffer) {
  std::vector<Request> choices;
  for (uint32_t choice = 0; choice < 4; ++choice) {
    Request& request = choices.emplace_back(Random(7));
    request.id = 1 + choice;
    request.sampling.stream = choice;
  }
  Outputs outputs = RunAll(setup_, choices);
  std::set<std::vector<int32_t>> different;
  for (const Request& request : choices) different.insert(outputs.of[request.id].ids());
  EXPECT_EQ(different.size(), 4u);
  EXPECT_EQ(outputs.of[1].ids(), Ids(Random(7))) << "the first choice is what n = 1 gives";
}

TEST_F(SamplingTest, ZeroTemperatureTopKOfOneAndMinPOfOneAreGreedy) {
  const std::vector<int32_t> greedy = Ids(Plain());
  Request request = Random(3);
  request.sampling.top_k = 1;
  EXPECT_EQ(Ids(request), greedy);
  request = Random(3);
  request.sampling.min_p = 1.0f;
  EXPECT_EQ(Ids(request), greedy);
  request = Random(3);
  request.sampling.top_p = 1e-6f;
  EXPECT_EQ(Ids(request), greedy);
}

TEST_F(SamplingTest, TopKKeepsTheDrawAmongTheBest) {
  Request request = Random(5, /*temperature=*/3.0f);
  request.sampling.top_k = 4;
  request.sampling.num_logprobs = 4;
  std::set<int32_t> ranks;
  for (const TokenInfo& token : RunOne(setup_, request).tokens) ranks.insert(token.rank);
  EXPECT_LE(*ranks.rbegin(), 4);
  EXPECT_GT(ranks.size(), 1u) << "at temperature 3 the draw must wander";
}

// ---- penalties ------------------------------------------------------------------------------------------------------

// Frequency and presence penalties move greedy choices in a way that the raw log-probabilities let us work out.
TEST_F(SamplingTest, FrequencyAndPresencePenaltiesCountOutputsOnly) {
  Request request = Plain();
  request.sampling.frequency_penalty = 0.7f;
  request.sampling.presence_penalty = 0.9f;
  request.sampling.num_logprobs = kernels::kMaxTopLogprobs;
  const Output output = RunOne(setup_, request);
  std::map<int32_t, int> counts;
  int moved = 0;
  for (const TokenInfo& token : output.tokens) {
    const auto penalised = [&](const core::TopLogprob& top) {
      const int count = counts.contains(top.id) ? counts.at(top.id) : 0;
      return top.logprob - 0.7f * static_cast<float>(count) - (count > 0 ? 0.9f : 0.0f);
    };
    const auto best = std::max_element(token.top.begin(), token.top.end(),
                                       [&](const auto& a, const auto& b) { return penalised(a) < penalised(b); });
    EXPECT_EQ(token.id, best->id);
    moved += token.id != token.top.front().id;
    ++counts[token.id];
  }
  EXPECT_GT(moved, 0) << "the penalties never mattered";
}

TEST_F(SamplingTest, AHugeRepetitionPenaltyNeverRepeatsPromptOrOutput) {
  Request request = Plain(20, 40);
  request.sampling.repetition_penalty = 1e6f;
  std::set<int32_t> seen(request.prompt_ids.begin(), request.prompt_ids.end());
  for (const int32_t id : Ids(request)) EXPECT_TRUE(seen.insert(id).second) << id;
}

TEST_F(SamplingTest, PenaltiesOfARowDoNotReachItsNeighboursOrItsSuccessor) {
  setup_.max_num_seqs = 2;
  Request penalised = Plain();
  penalised.sampling.frequency_penalty = 2.0f;
  Request plain = Plain();
  plain.id = 2;
  Request next = penalised;  // gets the row of one of the others
  next.id = 3;
  next.prompt_ids.resize(10);
  const Outputs outputs = RunAll(setup_, {penalised, plain, next});
  EXPECT_EQ(outputs.of.at(2).ids(), Ids(plain));
  EXPECT_NE(outputs.of.at(1).ids(), outputs.of.at(2).ids());
  EXPECT_EQ(outputs.of.at(3).ids(), Ids(next));
}

// ---- lists ----------------------------------------------------------------------------------------------------------

TEST_F(SamplingTest, OnlyAllowedIdsAreChosen) {
  Request request = Random(11, 2.0f);
  request.sampling.allowed_ids = {0, 31, 32, 95};
  const std::vector<int32_t> ids = Ids(request);
  EXPECT_THAT(ids, Each(::testing::AnyOf(0, 31, 32, 95)));
  EXPECT_GT(std::set<int32_t>(ids.begin(), ids.end()).size(), 1u);
}

TEST_F(SamplingTest, LogitBiasForcesAndBans) {
  Request request = Plain();
  request.sampling.logit_bias = {{42, 100.0f}};
  EXPECT_THAT(Ids(request), Each(42));
  const std::vector<int32_t> greedy = Ids(Plain());
  request.sampling.logit_bias = {{greedy[0], -100.0f}};
  EXPECT_THAT(Ids(request), Not(Contains(greedy[0])));
}

// The bias is added to the logits: a small one moves exactly the choices whose lead is smaller.
TEST_F(SamplingTest, ASmallLogitBiasIsAddedToTheLogit) {
  Request request = Plain();
  request.sampling.num_logprobs = 2;
  const TokenInfo first = RunOne(setup_, request).tokens.front();
  const float lead = first.top[0].logprob - first.top[1].logprob;
  request.max_tokens = 1;
  request.sampling.logit_bias = {{first.top[1].id, lead - 0.01f}};
  EXPECT_EQ(Ids(request).front(), first.top[0].id);
  request.sampling.logit_bias = {{first.top[1].id, lead + 0.01f}};
  EXPECT_EQ(Ids(request).front(), first.top[1].id);
}

TEST_F(SamplingTest, ABadWordIsNeverCompletedAndItsPartsMayStand) {
  const std::vector<int32_t> greedy = Ids(Plain());
  Request request = Plain();
  request.sampling.bad_words = {{greedy[0]}};
  EXPECT_THAT(Ids(request), Not(Contains(greedy[0])));

  request.sampling.bad_words = {{greedy[4], greedy[5], greedy[6]}};
  const std::vector<int32_t> ids = Ids(request);
  const std::vector<int32_t> word = request.sampling.bad_words[0];
  EXPECT_EQ(std::search(ids.begin(), ids.end(), word.begin(), word.end()), ids.end());
  EXPECT_TRUE(std::equal(ids.begin(), ids.begin() + 6, greedy.begin())) << "nothing changes before the word would be complete";
  EXPECT_NE(ids[6], greedy[6]);
}

// ---- ends -----------------------------------------------------------------------------------------------------------

TEST_F(SamplingTest, EndIdsAreMaskedBeforeMinTokens) {
  const std::vector<int32_t> greedy = Ids(Plain());
  Request request = Plain();
  request.stop_ids = {greedy[2]};
  const Output early = RunOne(setup_, request);
  EXPECT_EQ(early.ids(), std::vector<int32_t>(greedy.begin(), std::find(greedy.begin(), greedy.end(), greedy[2]) + 1));
  EXPECT_EQ(early.end.reason, FinishReason::kStop);
  EXPECT_EQ(early.end.stop_id, greedy[2]);

  request.min_tokens = 10;
  std::vector<int32_t> ids = Ids(request);
  ASSERT_GE(ids.size(), 10u);
  ids.resize(10);
  EXPECT_THAT(ids, Not(Contains(greedy[2])));
}

TEST_F(SamplingTest, TheContextEndsAStream) {
  setup_.max_model_len = 30;
  const Output output = RunOne(setup_, Plain(20, 40));
  EXPECT_EQ(output.tokens.size(), 10u);
  EXPECT_EQ(output.end.reason, FinishReason::kLength);
}

TEST_F(SamplingTest, ADeadEndFailsItsOwnRequestOnly) {
  Request dead = Plain();
  dead.sampling.allowed_ids = {5};
  dead.sampling.bad_words = {{5}};
  Request fine = Plain();
  fine.id = 2;
  const Outputs outputs = RunAll(setup_, {dead, fine});
  EXPECT_EQ(outputs.of.at(1).end.reason, FinishReason::kError);
  EXPECT_THAT(outputs.of.at(1).end.error, HasSubstr("no valid next token"));
  EXPECT_THAT(outputs.of.at(1).tokens, IsEmpty());
  EXPECT_EQ(outputs.of.at(2).ids(), Ids(Plain()));
}

// A model with a NaN in its last norm: an error with a name, never token 0 or an id out of range.
TEST(SamplingNanTest, NanLogitsFailTheRequest) {
  const model::ScratchFolder folder;
  std::filesystem::copy(model::FixtureFolder(kModel), folder.path());
  std::string bytes = model::ReadFile(folder / "model.safetensors");
  const auto whole = formats::SafetensorsCheckpoint::Open(folder / "model.safetensors");
  ASSERT_TRUE(whole.ok());
  const std::string_view norm = (*whole)->tensors().at("model.norm.weight").bytes;
  const size_t at = bytes.find(norm);
  ASSERT_NE(at, std::string::npos);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + at, &nan, sizeof nan);
  model::WriteFile(folder / "model.safetensors", bytes);

  WorkerSetup setup{.model = kModel};
  setup.path = folder.path();
  const Output output = RunOne(setup, Greedy(kModel, 5, 4));
  EXPECT_EQ(output.end.reason, FinishReason::kError);
  EXPECT_THAT(output.tokens, IsEmpty());
}

// ---- log-probabilities ----------------------------------------------------------------------------------------------

TEST_F(SamplingTest, LogprobsAreTheRawModelsWhateverElseIsAsked) {
  Request request = Random(21, 0.5f);
  request.sampling.num_logprobs = kernels::kMaxTopLogprobs;
  request.sampling.presence_penalty = 1.0f;
  request.sampling.logit_bias = {{3, 5.0f}};
  for (const TokenInfo& token : RunOne(setup_, request).tokens) {
    ASSERT_EQ(token.top.size(), static_cast<size_t>(kernels::kMaxTopLogprobs));
    EXPECT_TRUE(std::is_sorted(token.top.begin(), token.top.end(), [](const auto& a, const auto& b) { return a.logprob > b.logprob; }));
    ASSERT_GE(token.rank, 1);
    ASSERT_LE(token.rank, kVocab);
    if (token.rank <= kernels::kMaxTopLogprobs) {
      EXPECT_EQ(token.top[token.rank - 1].id, token.id);
      EXPECT_EQ(token.top[token.rank - 1].logprob, token.logprob) << "equal floats: clients look the token up in the list";
    }
    double mass = 0;
    for (const core::TopLogprob& top : token.top) mass += std::exp(double{top.logprob});
    EXPECT_LT(mass, 1.0 + 1e-5);
    EXPECT_GT(mass, 0.9);
  }
}

TEST_F(SamplingTest, LogprobsAreTransformersToo) {
  const model::Golden golden = model::ReadGolden(kModel);
  Request request = Greedy(kModel, 40, 1);
  request.sampling.prompt_logprobs = 0;
  const Output output = RunOne(setup_, request);
  ASSERT_EQ(output.prompt.size(), 39u);
  for (size_t i = 0; i < output.prompt.size(); ++i) {
    const float* row = golden.logits.data() + i * kVocab;
    double sum = 0;
    for (int32_t id = 0; id < kVocab; ++id) sum += std::exp(double{row[id]});
    EXPECT_EQ(output.prompt[i].id, golden.input_ids[i + 1]);
    EXPECT_NEAR(output.prompt[i].logprob, row[output.prompt[i].id] - std::log(sum), 2e-4);
    EXPECT_EQ(output.prompt[i].rank, 1 + std::count_if(row, row + kVocab, [&](float x) { return x > row[output.prompt[i].id]; }));
  }
}

// What was drawn with log-probabilities, given back as a prompt, has the same log-probabilities.
TEST_F(SamplingTest, PromptLogprobsAreThoseOfGeneration) {
  Request request = Random(9, 1.3f);
  request.sampling.num_logprobs = 5;
  const Output generated = RunOne(setup_, request);
  Request again = Plain();
  again.prompt_ids.insert(again.prompt_ids.end(), generated.tokens.size(), 0);
  std::transform(generated.tokens.begin(), generated.tokens.end(), again.prompt_ids.begin() + 20, [](const auto& t) { return t.id; });
  again.max_tokens = 1;
  again.sampling.prompt_logprobs = 5;
  for (const int32_t seqs : {2, 64}) {  // logits are computed in chunks of 16 and 64 rows then
    setup_.max_num_seqs = seqs;
    setup_.max_num_batched_tokens = 512;
    const Output scored = RunOne(setup_, again);
    ASSERT_EQ(scored.prompt.size(), again.prompt_ids.size() - 1);
    for (size_t i = 0; i < generated.tokens.size(); ++i) {
      const TokenInfo& drawn = generated.tokens[i];
      const TokenInfo& found = scored.prompt[19 + i];
      EXPECT_EQ(found.id, drawn.id);
      EXPECT_EQ(found.logprob, drawn.logprob);
      EXPECT_EQ(found.rank, drawn.rank);
      ASSERT_EQ(found.top.size(), 5u);
      for (size_t t = 0; t < 5; ++t) {
        EXPECT_EQ(found.top[t].id, drawn.top[t].id);
        EXPECT_EQ(found.top[t].logprob, drawn.top[t].logprob);
      }
    }
  }
}

TEST_F(SamplingTest, NoLogprobsUnlessAskedFor) {
  const Output none = RunOne(setup_, Plain());
  EXPECT_THAT(none.tokens.front().top, IsEmpty());
  EXPECT_EQ(none.tokens.front().rank, 0);
  EXPECT_THAT(none.prompt, IsEmpty());
  Request request = Plain();
  request.sampling.num_logprobs = 0;
  const TokenInfo chosen = RunOne(setup_, request).tokens.front();
  EXPECT_THAT(chosen.top, IsEmpty());
  EXPECT_EQ(chosen.rank, 1);
  EXPECT_LT(chosen.logprob, 0);
}

}  // namespace
}  // namespace phalanx::worker::exec
