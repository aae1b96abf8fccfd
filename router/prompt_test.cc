#include "router/prompt.h"

#include <gmock/gmock.h>

#include "router/relay_test_util.h"

namespace phalanx::router {
namespace {

using testing::HasSubstr;
using Ids = std::vector<int32_t>;

constexpr char kRendered[] = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n";

PromptMaker DemoMaker() { return PromptMaker(DemoTokenizer(), DemoTemplate()); }
std::shared_ptr<const text::Tokenizer> SpmTokenizer() { return LoadTokenizer("tests/fixtures/text/spm"); }

Ids Encode(const text::Tokenizer& tokenizer, const std::string& text, text::SpecialTokens special) {
  auto ids = tokenizer.Encode(text, special);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : Ids{};
}

PreparedRequest Prepared(const PromptMaker& maker, core::Draft draft, PromptLimits limits = {kContext, kVocab}) {
  auto out = maker.Prepare(Valid(std::move(draft)), limits);
  EXPECT_TRUE(out.ok()) << out.status();
  return out.ok() ? *std::move(out) : PreparedRequest{};
}

TEST(Prompt, ChatIsRenderedAndEncodedWithoutSpecialTokens) {
  const PreparedRequest out = Prepared(DemoMaker(), Chat("Hi"));
  ASSERT_EQ(out.prompts.size(), 1u);
  EXPECT_EQ(*out.prompts[0].ids, Encode(*DemoTokenizer(), kRendered, text::SpecialTokens::kNone));
  EXPECT_TRUE(out.prompts[0].opens_reasoning);
  EXPECT_EQ(out.prompts[0].echo_text, "");
  EXPECT_EQ(out.prompts[0].max_tokens, kContext - static_cast<int32_t>(out.prompts[0].ids->size()));  // fills the context
  core::Draft draft = Chat("Hi");
  draft.add_generation_prompt = false;
  EXPECT_FALSE(Prepared(DemoMaker(), draft).prompts[0].opens_reasoning);
}

TEST(Prompt, AModelWithoutATemplateRefusesChats) {
  const PromptMaker maker(DemoTokenizer(), nullptr);
  const absl::Status status = maker.Prepare(Valid(Chat("Hi")), {kContext, kVocab}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(core::FieldOf(status), "chat_template");
  EXPECT_THAT(std::string(status.message()), HasSubstr("--chat-template"));
}

TEST(Prompt, ATemplatesOwnErrorNamesTheTemplate) {
  auto raising = text::ChatTemplate::Load(SourceDir() + "/models/demo", *DemoTokenizer(),
                                          {.override_path = "{{ raise_exception('roles must alternate') }}"});
  ASSERT_TRUE(raising.ok()) << raising.status();
  const absl::Status status = PromptMaker(DemoTokenizer(), *raising).Prepare(Valid(Chat("Hi")), {kContext, kVocab}).status();
  EXPECT_EQ(core::FieldOf(status), "chat_template");
  EXPECT_THAT(std::string(status.message()), HasSubstr("roles must alternate"));
}

TEST(Prompt, CompletionsGetSpecialTokensUnlessTheySayNo) {
  const auto spm = SpmTokenizer();
  const PromptMaker maker(spm, nullptr);
  const PromptLimits limits{kContext, 600};
  core::Draft draft = Completion({"hello"}, 4);
  const Ids with = *Prepared(maker, draft, limits).prompts[0].ids;
  EXPECT_EQ(with, Encode(*spm, "hello", text::SpecialTokens::kAdd));
  EXPECT_EQ(with.front(), *spm->bos_id());
  draft.add_special_tokens = false;
  EXPECT_EQ(*Prepared(maker, draft, limits).prompts[0].ids, Encode(*spm, "hello", text::SpecialTokens::kNone));
}

TEST(Prompt, SeveralPromptsOfTextAndIds) {
  const PreparedRequest out = Prepared(DemoMaker(), Completion({"Hello", std::vector<int64_t>{5, 6, 7}}, 4));
  ASSERT_EQ(out.prompts.size(), 2u);
  EXPECT_EQ(*out.prompts[0].ids, Encode(*DemoTokenizer(), "Hello", text::SpecialTokens::kAdd));
  EXPECT_EQ(*out.prompts[1].ids, (Ids{5, 6, 7}));
}

TEST(Prompt, TruncationKeepsTheEnd) {
  core::Draft draft = Completion({std::vector<int64_t>{1, 2, 3, 4, 5}}, 4);
  draft.truncate_prompt_tokens = 2;
  EXPECT_EQ(*Prepared(DemoMaker(), draft).prompts[0].ids, (Ids{4, 5}));
  draft.truncate_prompt_tokens = 9;
  EXPECT_EQ(*Prepared(DemoMaker(), draft).prompts[0].ids, (Ids{1, 2, 3, 4, 5}));
  // -1: whatever leaves room for the output.
  draft.truncate_prompt_tokens = -1;
  const PreparedRequest fit = Prepared(DemoMaker(), draft, {7, kVocab});
  EXPECT_EQ(*fit.prompts[0].ids, (Ids{3, 4, 5}));
  EXPECT_EQ(fit.prompts[0].max_tokens, 4);
}

TEST(Prompt, TruncationKeepsTheTokenizersOwnFirstToken) {
  const auto spm = SpmTokenizer();
  const PromptMaker maker(spm, nullptr);
  core::Draft draft = Completion({"hello world hello world"}, 4);
  draft.truncate_prompt_tokens = 3;
  const Ids whole = Encode(*spm, "hello world hello world", text::SpecialTokens::kAdd);
  ASSERT_GT(whole.size(), 4u);
  EXPECT_EQ(*Prepared(maker, draft, {kContext, 600}).prompts[0].ids, (Ids{*spm->bos_id(), whole[whole.size() - 2], whole.back()}));
}

TEST(Prompt, TooLongSaysBothLengths) {
  const std::vector<int64_t> ids(50, 3);
  const struct {
    int64_t max_tokens;
    int32_t context;
    const char* field;
    const char* words;
  } rows[] = {{4, 50, "prompt", "maximum context length is 50 tokens. However, your request has 50 input tokens"},
              {4, 53, "max_tokens",
               "maximum context length is 53 tokens. However, you requested 54 tokens (50 input tokens and 4 output tokens)"}};
  for (const auto& row : rows) {
    const absl::Status status = DemoMaker().Prepare(Valid(Completion({ids}, row.max_tokens)), {row.context, kVocab}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(core::ErrorCodeOf(status), "context_length_exceeded");
    EXPECT_EQ(core::FieldOf(status), row.field);
    EXPECT_THAT(std::string(status.message()), HasSubstr(row.words));
  }
  EXPECT_EQ(Prepared(DemoMaker(), Completion({ids}, 4), {54, kVocab}).prompts[0].max_tokens, 4);
}

TEST(Prompt, ADefaultLengthShrinksToTheRoom) {
  core::Draft draft = Completion({std::vector<int64_t>(50, 3)}, 0);
  draft.sampling.max_tokens.reset();
  EXPECT_EQ(Prepared(DemoMaker(), draft).prompts[0].max_tokens, 16);
  EXPECT_EQ(Prepared(DemoMaker(), draft, {60, kVocab}).prompts[0].max_tokens, 10);
  draft.sampling.min_tokens = 12;
  EXPECT_EQ(core::FieldOf(DemoMaker().Prepare(Valid(draft), {60, kVocab}).status()), "min_tokens");
}

TEST(Prompt, EchoIsThePromptsText) {
  core::Draft draft = Completion({"Hello world", std::vector<int64_t>{40, 41}}, 0);
  draft.echo = true;
  const PreparedRequest out = Prepared(DemoMaker(), draft);
  EXPECT_EQ(out.prompts[0].echo_text, "Hello world");
  EXPECT_EQ(out.prompts[1].echo_text, DemoTokenizer()->Decode({40, 41}, true));
  EXPECT_EQ(out.prompts[0].max_tokens, 1);  // max_tokens 0: the worker's one token is dropped later
  draft.prompts = {"Hello world"};
  draft.truncate_prompt_tokens = 1;
  const PreparedRequest cut = Prepared(DemoMaker(), draft);
  EXPECT_EQ(cut.prompts[0].echo_text, DemoTokenizer()->Decode(*cut.prompts[0].ids, true));
}

TEST(Prompt, BadInputNamesItsField) {
  const struct {
    core::Prompt prompt;
    const char* field;
  } rows[] = {{std::string(), "prompt"}, {std::string("\xff\xfe"), "prompt"}, {std::vector<int64_t>{1, 600}, "prompt"}};
  for (const auto& row : rows) {
    // As if no worker had been seen when the request was validated.
    const core::ValidRequest request = Valid(Completion({row.prompt}, 4), {.served_names = {"demo"}});
    const absl::Status status = DemoMaker().Prepare(request, {kContext, kVocab}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(core::FieldOf(status), row.field);
  }
}

TEST(Prompt, BadWordsWithAndWithoutASpace) {
  const auto words = LoadTokenizer("tests/fixtures/text/words");
  core::Draft draft = Completion({std::vector<int64_t>{3}}, 4);
  draft.sampling.bad_words = {"hello", "  world"};
  // A tokenizer that splits at white space: the space changes nothing.
  EXPECT_EQ(Prepared(PromptMaker(words, nullptr), draft, {kContext, 6}).bad_words, (std::vector<Ids>{{3}, {4}}));
  // A byte-level one: " the" is another token than "the", of the same length.
  draft.sampling.bad_words = {"the"};
  const Ids plain = Encode(*DemoTokenizer(), "the", text::SpecialTokens::kNone);
  const Ids spaced = Encode(*DemoTokenizer(), " the", text::SpecialTokens::kNone);
  std::vector<Ids> want = {plain};
  if (plain.size() == spaced.size() && plain.front() != spaced.front()) want.insert(want.begin(), spaced);
  EXPECT_EQ(Prepared(DemoMaker(), draft).bad_words, want);
  draft.sampling.bad_words = {"x"};
  EXPECT_EQ(Prepared(DemoMaker(), draft).bad_words.front(), Encode(*DemoTokenizer(), "x", text::SpecialTokens::kNone));
  draft.sampling.bad_words = {"  "};
  EXPECT_EQ(core::FieldOf(DemoMaker().Prepare(Valid(draft), {kContext, kVocab}).status()), "bad_words");
}

}  // namespace
}  // namespace phalanx::router
