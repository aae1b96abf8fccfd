// One choice of a reply over real tokenizers: text, stops that span tokens, reasoning, log-probabilities, counts, ends.
#include "router/reply/reply.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"

namespace phalanx::router::reply {
namespace {

using core::Finish;
using core::ReplyPart;
using Ids = std::vector<int32_t>;
using TokenizerPtr = std::shared_ptr<const text::Tokenizer>;

std::string FromEnv(const char* name, const std::string& fallback) {
  const char* value = getenv(name);
  return value != nullptr ? value : fallback;
}
std::string SourceDir() { return FromEnv("PHALANX_SOURCE_DIR", "."); }

TokenizerPtr Load(const std::string& path) {
  auto loaded = text::Tokenizer::Load(path);
  EXPECT_TRUE(loaded.ok()) << loaded.status() << "; scripts/fetch_fixtures.sh fetches real ones";
  return loaded.ok() ? *std::move(loaded) : nullptr;
}
// <think> and </think> are ordinary added tokens here, as in Qwen3.
TokenizerPtr Demo() {
  static auto& loaded = *new TokenizerPtr(Load(SourceDir() + "/models/demo"));
  return loaded;
}
// The same with <think> and </think> as special tokens, which detokenising skips.
TokenizerPtr SpecialThink() {
  static auto& loaded = *new TokenizerPtr([] {
    std::ifstream in(SourceDir() + "/models/demo/tokenizer.json");
    std::string json(std::istreambuf_iterator<char>(in), {});
    json = absl::StrReplaceAll(json, {{"\"special\": false", "\"special\": true"}, {"\"special\":false", "\"special\":true"}});
    std::string folder = (std::filesystem::temp_directory_path() / "phalanx_reply_XXXXXX").string();
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    std::ofstream(folder + "/tokenizer.json") << json;
    TokenizerPtr out = Load(folder);
    std::filesystem::remove_all(folder);
    EXPECT_TRUE(out->IsSpecial(*out->IdOf("<think>")));
    return out;
  }());
  return loaded;
}
TokenizerPtr Qwen() { return Load(FromEnv("PHALANX_DEPS", SourceDir() + "/build/deps") + "/fixtures/text/qwen3"); }
TokenizerPtr Spm() { return Load(SourceDir() + "/tests/fixtures/text/spm"); }

Ids Encode(const TokenizerPtr& tokenizer, std::string_view text) {
  auto ids = tokenizer->Encode(text, text::SpecialTokens::kNone);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return *ids;
}

// All parts of one reply put together.
struct Joined {
  std::string text, reasoning, stop_string;
  Ids ids;
  Finish finish = Finish::kNone;
  int finishes = 0;
  int32_t stop_token = -1;
  std::vector<core::TokenLogprob> logprobs;
};

void Add(ReplyPart part, Joined* out) {
  out->text += part.text;
  out->reasoning += part.reasoning;
  out->stop_string += part.stop_string;
  out->ids.insert(out->ids.end(), part.ids.begin(), part.ids.end());
  out->logprobs.insert(out->logprobs.end(), part.logprobs.begin(), part.logprobs.end());
  if (part.finish == Finish::kNone) return;
  out->finish = part.finish;
  out->stop_token = part.stop_token;
  ++out->finishes;
}

// Feeds `ids` in steps of the given sizes (the last one repeats); the worker's end comes with the last id.
Joined FeedAll(Reply* reply, const Ids& ids, Finish finish, const std::vector<size_t>& steps = {1}) {
  Joined out;
  size_t step = 0;
  for (size_t at = 0; at < ids.size();) {
    const size_t count = std::min(std::max<size_t>(steps[std::min(step++, steps.size() - 1)], 1), ids.size() - at);
    StepOutput output;
    output.ids.assign(ids.begin() + at, ids.begin() + at + count);
    at += count;
    if (at == ids.size()) {
      output.finish = finish;
      if (finish == Finish::kStop) output.stop_id = ids.back();
    }
    Add(reply->Feed(std::move(output)), &out);
  }
  return out;
}

const char kText[] = "The café « Ελλάδα » serves 日本茶 and 👩‍👩‍👧 tea. stop here.\n\nStop, or not?";

TEST(Reply, TextOfAllIdsInStepsOfAnySize) {
  std::mt19937 random(3);
  for (const TokenizerPtr& tokenizer : {Demo(), Qwen()}) {
    const Ids ids = Encode(tokenizer, kText);
    for (int round = 0; round < 20; ++round) {
      std::vector<size_t> steps(1);
      if (round > 0) steps.resize(ids.size());
      for (size_t& step : steps) step = round == 0 ? 1 : 1 + random() % 4;
      Reply reply(tokenizer, {.index = 3});
      const Joined out = FeedAll(&reply, ids, Finish::kLength, steps);
      EXPECT_EQ(out.text, kText);
      EXPECT_EQ(out.ids, ids);
      EXPECT_EQ(out.finish, Finish::kLength);
      EXPECT_EQ(out.finishes, 1);
      EXPECT_EQ(reply.completion_tokens(), static_cast<int32_t>(ids.size()));
      EXPECT_EQ(reply.reasoning_tokens(), 0);
      EXPECT_TRUE(reply.finished());
    }
  }
}

TEST(Reply, PartsCarryTheIndexAndFirstPartTheEcho) {
  Reply reply(Demo(), {.index = 5, .echo_text = "the prompt", .prompt_ids = {7, 8}});
  const Ids ids = Encode(Demo(), "ab");
  ReplyPart part = reply.Feed({.ids = {ids[0]}});
  EXPECT_EQ(part.index, 5);
  EXPECT_EQ(part.echo_text, "the prompt");
  EXPECT_EQ(part.prompt_ids, (Ids{7, 8}));
  part = reply.Feed({.ids = {ids[0]}});
  EXPECT_EQ(part.index, 5);
  EXPECT_EQ(part.echo_text, "");
  EXPECT_TRUE(part.prompt_ids.empty());
}

TEST(Reply, TheEndTokenIsCountedAndNotText) {
  const int32_t end = *Demo()->eos_id();
  Ids ids = Encode(Demo(), "Hello");
  ids.push_back(end);
  Reply hidden(Demo(), {});
  Joined out = FeedAll(&hidden, ids, Finish::kStop);
  EXPECT_EQ(out.text, "Hello");
  EXPECT_EQ(out.finish, Finish::kStop);
  EXPECT_EQ(out.stop_token, -1);  // the model's own end is not a stop reason
  EXPECT_EQ(out.ids, ids);
  EXPECT_EQ(hidden.completion_tokens(), static_cast<int32_t>(ids.size()));
  // Not even where special tokens are shown, unless the stop is asked for.
  Reply shown(Demo(), {.skip_special_tokens = false});
  EXPECT_EQ(FeedAll(&shown, ids, Finish::kStop).text, "Hello");
  Reply kept(Demo(), {.include_stop_in_output = true, .skip_special_tokens = false});
  EXPECT_EQ(FeedAll(&kept, ids, Finish::kStop).text, "Hello<|im_end|>");
  Reply length(Demo(), {.skip_special_tokens = false});  // ignore_eos: the same id in the middle of a text
  EXPECT_EQ(FeedAll(&length, ids, Finish::kLength).text, "Hello<|im_end|>");
}

TEST(Reply, TheRequestsOwnStopIdIsTheReason) {
  Ids ids = Encode(Demo(), "Hello!");
  const int32_t last = ids.back();
  Reply plain(Demo(), {.stop_token_ids = {last}});
  Joined out = FeedAll(&plain, ids, Finish::kStop);
  EXPECT_EQ(out.text, "Hello");
  EXPECT_EQ(out.stop_token, last);
  Reply kept(Demo(), {.stop_token_ids = {last}, .include_stop_in_output = true});
  EXPECT_EQ(FeedAll(&kept, ids, Finish::kStop).text, "Hello!");
}

// Every stretch of the text as a stop string: it is found in whatever tokens it lies, and the count ends with its last byte's token.
TEST(Reply, StopStringsSpanTokens) {
  const std::string text = "one 日本 two, é three";
  for (const TokenizerPtr& tokenizer : {Demo(), Qwen()}) {
    const Ids ids = Encode(tokenizer, text);
    for (size_t begin = 0; begin < text.size(); ++begin) {
      if ((text[begin] & 0xC0) == 0x80) continue;
      for (size_t end = begin + 1; end <= text.size(); ++end) {
        if (end < text.size() && (text[end] & 0xC0) == 0x80) continue;
        const std::string stop = text.substr(begin, end - begin);
        const size_t found = text.find(stop);
        Ids until;  // the fewest ids whose text holds the stop
        for (const int32_t id : ids) {
          until.push_back(id);
          if (tokenizer->Decode(until, false).find(stop) != std::string::npos) break;
        }
        for (const bool include : {false, true}) {
          Reply reply(tokenizer, {.stop = {"never", stop}, .include_stop_in_output = include});
          const Joined out = FeedAll(&reply, ids, Finish::kLength);
          ASSERT_EQ(out.text, text.substr(0, found) + (include ? stop : "")) << stop;
          ASSERT_EQ(out.stop_string, stop);
          ASSERT_EQ(out.finish, Finish::kStop);
          ASSERT_EQ(out.finishes, 1);
          ASSERT_EQ(out.stop_token, -1);
          ASSERT_EQ(out.ids, until) << stop;
          ASSERT_EQ(reply.completion_tokens(), static_cast<int32_t>(until.size()));
          Reply at_once(tokenizer, {.stop = {"never", stop}, .include_stop_in_output = include});
          const Joined whole = FeedAll(&at_once, ids, Finish::kLength, {ids.size()});
          ASSERT_EQ(whole.text, out.text);
          ASSERT_EQ(whole.ids, out.ids);
        }
      }
    }
  }
}

TEST(Reply, StopStringsWaitForMinTokens) {
  const Ids ids = Encode(Demo(), "a b a b a b a b");
  for (int32_t least = 0; least <= static_cast<int32_t>(ids.size()); ++least) {
    Reply reply(Demo(), {.stop = {"b"}, .min_tokens = least});
    const Joined out = FeedAll(&reply, ids, Finish::kLength);
    if (least < static_cast<int32_t>(ids.size())) {
      EXPECT_EQ(out.finish, Finish::kStop) << least;
      EXPECT_GT(reply.completion_tokens(), least);
      EXPECT_EQ(out.text.back(), ' ');
    } else {
      EXPECT_EQ(out.finish, Finish::kLength);
      EXPECT_EQ(out.text, "a b a b a b a b");
    }
  }
}

TEST(Reply, HeldTextComesWithTheEnd) {
  // "</" may still become the stop, and the last character is not whole.
  Ids ids = Encode(Demo(), "x </");
  const Ids character = Encode(Demo(), "\U00024B62");
  ASSERT_GT(character.size(), 1u);
  Reply reply(Demo(), {.stop = {"</end>"}});
  Joined out = FeedAll(&reply, ids, Finish::kNone);
  EXPECT_EQ(out.text, "x ");
  out = Joined();
  Add(reply.Feed({.ids = {character[0]}}), &out);
  Add(reply.Feed({.ids = {}, .finish = Finish::kLength}), &out);
  EXPECT_EQ(out.text, "</\uFFFD");
  EXPECT_EQ(out.finish, Finish::kLength);
}

TEST(Reply, AStopThatOnlyTheEndCompletes) {
  const Ids character = Encode(Demo(), "\U00024B62");
  Reply reply(Demo(), {.stop = {"\uFFFD"}});
  const Joined out = FeedAll(&reply, {character[0]}, Finish::kLength);
  EXPECT_EQ(out.finish, Finish::kStop);
  EXPECT_EQ(out.stop_string, "\uFFFD");
  EXPECT_EQ(out.text, "");
}

TEST(Reply, NothingComesAfterTheEnd) {
  const Ids ids = Encode(Demo(), "a stop b c");
  Reply reply(Demo(), {.stop = {"stop"}});
  FeedAll(&reply, ids, Finish::kNone, {ids.size()});
  ASSERT_TRUE(reply.finished());
  const int32_t count = reply.completion_tokens();
  const ReplyPart part = reply.Feed({.ids = ids, .finish = Finish::kLength});
  EXPECT_TRUE(part.text.empty() && part.ids.empty() && part.reasoning.empty() && part.stop_string.empty());
  EXPECT_EQ(part.finish, Finish::kNone);
  EXPECT_EQ(reply.completion_tokens(), count);
}

TEST(Reply, EchoOnlyDropsTheWorkersToken) {
  Reply reply(Demo(), {.discard_output = true, .echo_text = "prompt"});
  reply.SetPromptScores({1, 2}, {{.id = 2, .logprob = -1.5f, .rank = 2}});
  const ReplyPart part = reply.Feed({.ids = {65}, .logprobs = {{.id = 65}}, .finish = Finish::kLength});
  EXPECT_EQ(part.echo_text, "prompt");
  EXPECT_EQ(part.text, "");
  EXPECT_TRUE(part.ids.empty() && part.logprobs.empty());
  ASSERT_EQ(part.prompt_logprobs.size(), 2u);
  EXPECT_FALSE(part.prompt_logprobs[0].has_logprob);
  EXPECT_EQ(part.prompt_logprobs[1].logprob, -1.5f);
  EXPECT_EQ(part.finish, Finish::kLength);
  EXPECT_EQ(reply.completion_tokens(), 0);
}

TEST(Reply, GeneratedTextKeepsItsFirstSpace) {
  const TokenizerPtr spm = Spm();
  const Ids ids = Encode(spm, "people live");
  ASSERT_EQ(spm->Decode(ids, true), "people live");
  Reply reply(spm, {});
  EXPECT_EQ(FeedAll(&reply, ids, Finish::kLength).text, " people live");  // it follows a prompt
}

std::vector<TokenScore> Scores(const Ids& ids) {
  std::vector<TokenScore> out;
  for (size_t i = 0; i < ids.size(); ++i) {
    out.push_back({.id = ids[i], .logprob = -0.25f * static_cast<float>(i), .rank = static_cast<int32_t>(i) + 1, .top = {{ids[i], -0.5f},
        {40, -1.0f}}});
  }
  return out;
}

TEST(Reply, LogprobsCarryBytesAndOffsetsInCharacters) {
  const std::string text = "é 日本 \U00024B62!";
  const Ids ids = Encode(Demo(), text);
  Reply reply(Demo(), {.logprobs = true, .echo_text = "né"});
  const ReplyPart part = reply.Feed({.ids = ids, .logprobs = Scores(ids), .finish = Finish::kLength});
  ASSERT_EQ(part.logprobs.size(), ids.size());
  std::string bytes;
  for (size_t i = 0; i < ids.size(); ++i) {
    const core::TokenLogprob& token = part.logprobs[i];
    const auto characters = std::count_if(bytes.begin(), bytes.end(), [](char c) { return (c & 0xC0) != 0x80; });
    EXPECT_EQ(token.text_offset, 2 + characters) << i;
    EXPECT_EQ(token.id, ids[i]);
    EXPECT_EQ(token.logprob, -0.25f * static_cast<float>(i));
    EXPECT_EQ(token.rank, static_cast<int32_t>(i) + 1);
    ASSERT_EQ(token.top.size(), 2u);
    EXPECT_EQ(token.top[1].id, 40);
    EXPECT_EQ(token.top[1].bytes, Demo()->TokenBytes(40));
    bytes += token.bytes;
  }
  EXPECT_EQ(bytes, text);
}

TEST(Reply, LogprobsOnlyWhenAskedFor) {
  const Ids ids = Encode(Demo(), "abc");
  Reply reply(Demo(), {});
  EXPECT_TRUE(reply.Feed({.ids = ids, .logprobs = Scores(ids)}).logprobs.empty());
}

TEST(Reply, OffsetsOfPromptAndOutputAreOneRow) {
  const Ids prompt = Encode(Demo(), "Prömpt ");
  const Ids ids = Encode(Demo(), "out");
  std::vector<TokenScore> scores = Scores(prompt);
  scores.erase(scores.begin());
  Reply reply(Demo(), {.logprobs = true, .echo_text = "Prömpt "});
  reply.SetPromptScores(prompt, scores);
  const ReplyPart part = reply.Feed({.ids = ids, .logprobs = Scores(ids)});
  ASSERT_EQ(part.prompt_logprobs.size(), prompt.size());
  EXPECT_FALSE(part.prompt_logprobs[0].has_logprob);
  EXPECT_EQ(part.prompt_logprobs[0].id, prompt[0]);
  EXPECT_EQ(part.prompt_logprobs[0].text_offset, 0);
  EXPECT_TRUE(part.prompt_logprobs[1].has_logprob);
  EXPECT_EQ(part.logprobs[0].text_offset, 7);
  EXPECT_TRUE(reply.Feed({.ids = ids, .logprobs = Scores(ids)}).prompt_logprobs.empty());
}

// The same answer with <think> as an ordinary and as a special token, in steps of any size.
TEST(Reply, ReasoningIsSplitOffAndCounted) {
  const std::string text = "<think>\nI think é.\n</think>\n\nThe answer.";
  for (const TokenizerPtr& tokenizer : {Demo(), SpecialThink()}) {
    const Ids ids = Encode(tokenizer, text);
    const auto inside = static_cast<int32_t>(Encode(tokenizer, "\nI think é.\n").size());
    for (size_t size = 1; size <= ids.size(); ++size) {
      Reply reply(tokenizer, {.reasoning = true});
      const Joined out = FeedAll(&reply, ids, Finish::kLength, {size});
      EXPECT_EQ(out.reasoning, "I think é.\n");
      EXPECT_EQ(out.text, "The answer.");
      EXPECT_EQ(reply.reasoning_tokens(), inside);
      EXPECT_EQ(reply.completion_tokens(), static_cast<int32_t>(ids.size()));
    }
    Reply dropped(tokenizer, {.reasoning = true, .include_reasoning = false});
    Joined out = FeedAll(&dropped, ids, Finish::kLength);
    EXPECT_EQ(out.reasoning, "");
    EXPECT_EQ(out.text, "The answer.");
    EXPECT_EQ(dropped.reasoning_tokens(), inside);
    // Completions are plain text.
    Reply plain(tokenizer, {.skip_special_tokens = false});
    EXPECT_EQ(FeedAll(&plain, ids, Finish::kLength).text, text);
    EXPECT_EQ(plain.reasoning_tokens(), 0);
  }
}

TEST(Reply, ReasoningThatThePromptOpened) {
  const Ids ids = Encode(Demo(), "why not</think>\nso");
  Reply reply(Demo(), {.reasoning = true, .starts_in_reasoning = true});
  Joined out = FeedAll(&reply, ids, Finish::kLength);
  EXPECT_EQ(out.reasoning, "why not");
  EXPECT_EQ(out.text, "so");
  EXPECT_EQ(reply.reasoning_tokens(), static_cast<int32_t>(Encode(Demo(), "why not").size()));
  // Cut off before the end of the thought: all of it is reasoning.
  Reply cut(Demo(), {.reasoning = true, .starts_in_reasoning = true});
  out = FeedAll(&cut, Encode(Demo(), "why not"), Finish::kLength);
  EXPECT_EQ(out.reasoning, "why not");
  EXPECT_EQ(out.text, "");
  // A template that closed the block at once.
  Reply outside(Demo(), {.reasoning = true});
  out = FeedAll(&outside, Encode(Demo(), "so</think>"), Finish::kLength);
  EXPECT_EQ(out.reasoning, "");
  EXPECT_EQ(out.text, "so</think>");
}

TEST(Reply, ModelsWithoutThinkTokensKeepTheText) {
  const TokenizerPtr spm = Spm();
  Reply reply(spm, {.reasoning = true});
  EXPECT_EQ(FeedAll(&reply, Encode(spm, "<think>x</think>"), Finish::kLength).text, " <think>x</think>");
}

TEST(Reply, AMarkerCutsAnUnfinishedCharacter) {
  const TokenizerPtr tokenizer = SpecialThink();
  Ids ids = Encode(tokenizer, "<think>why");
  ids.push_back(Encode(tokenizer, "\U00024B62")[0]);
  ids.push_back(*tokenizer->IdOf("</think>"));
  const Ids rest = Encode(tokenizer, "so");
  ids.insert(ids.end(), rest.begin(), rest.end());
  Reply reply(tokenizer, {.reasoning = true});
  const Joined out = FeedAll(&reply, ids, Finish::kLength);
  EXPECT_EQ(out.reasoning, "why\uFFFD");
  EXPECT_EQ(out.text, "so");
}

TEST(Reply, StopStringsApplyInsideReasoningToo) {
  const Ids ids = Encode(Demo(), "<think>a stop b</think>c");
  Reply reply(Demo(), {.stop = {" stop"}, .reasoning = true});
  const Joined out = FeedAll(&reply, ids, Finish::kLength);
  EXPECT_EQ(out.reasoning, "a");
  EXPECT_EQ(out.text, "");
  EXPECT_EQ(out.finish, Finish::kStop);
  EXPECT_EQ(out.stop_string, " stop");
}

TEST(Reply, PromptOpensReasoning) {
  EXPECT_TRUE(PromptOpensReasoning("<|im_start|>assistant\n<think>\n"));
  EXPECT_TRUE(PromptOpensReasoning("x<think>"));
  EXPECT_FALSE(PromptOpensReasoning("<think>\n\n</think>\n\n"));
  EXPECT_FALSE(PromptOpensReasoning("<think> already thinking"));
  EXPECT_FALSE(PromptOpensReasoning("</think>"));
  EXPECT_FALSE(PromptOpensReasoning("think>"));
  EXPECT_FALSE(PromptOpensReasoning(" \n"));
  EXPECT_FALSE(PromptOpensReasoning(""));
}

TEST(Reply, OptionsFollowTheRequest) {
  core::ValidRequest request;
  request.draft.kind = core::Kind::kChat;
  request.draft.include_reasoning = false;
  request.sampling.stop = {"s"};
  request.sampling.stop_token_ids = {4};
  request.sampling.min_tokens = 2;
  request.sampling.include_stop_in_output = true;
  request.sampling.skip_special_tokens = false;
  ReplyOptions options = OptionsFor(request, 6);
  EXPECT_EQ(options.index, 6);
  EXPECT_EQ(options.stop, (std::vector<std::string>{"s"}));
  EXPECT_EQ(options.stop_token_ids, (Ids{4}));
  EXPECT_EQ(options.min_tokens, 2);
  EXPECT_TRUE(options.include_stop_in_output && !options.skip_special_tokens && options.reasoning && !options.include_reasoning);
  EXPECT_FALSE(options.logprobs || options.discard_output || options.starts_in_reasoning);
  request.draft.kind = core::Kind::kCompletion;
  request.sampling.logprobs = 0;
  request.sampling.max_tokens = 0;
  options = OptionsFor(request, 0);
  EXPECT_TRUE(options.logprobs && options.discard_output);
  EXPECT_FALSE(options.reasoning);
}

}  // namespace
}  // namespace phalanx::router::reply
