// Tokenizers and templates out of GGUF files: SentencePiece's own ids, the real SmolLM2 file, and files that lack something.
#include "text/gguf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "text/test_util.h"

namespace phalanx::text {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

// A GGUF file of metadata only.
class File {
 public:
  File& Text(const std::string& key, const std::string& value) { return Key(key, 8).String(value); }
  File& Int(const std::string& key, uint32_t value) { return Key(key, 4).Put(value); }
  File& Bool(const std::string& key, bool value) { return Key(key, 7).Put(static_cast<uint8_t>(value)); }
  File& Texts(const std::string& key, const std::vector<std::string>& values) {
    Key(key, 9).Put<uint32_t>(8).Put<uint64_t>(values.size());
    for (const std::string& value : values) String(value);
    return *this;
  }
  File& Ints(const std::string& key, const std::vector<int32_t>& values) {
    Key(key, 9).Put<uint32_t>(5).Put<uint64_t>(values.size());
    for (const int32_t value : values) Put(value);
    return *this;
  }
  File& Floats(const std::string& key, const std::vector<float>& values) {
    Key(key, 9).Put<uint32_t>(6).Put<uint64_t>(values.size());
    for (const float value : values) Put(value);
    return *this;
  }
  std::string bytes() const {
    File head;
    head.body_ = "GGUF";
    head.Put<uint32_t>(3).Put<uint64_t>(0).Put<uint64_t>(keys_);
    return head.body_ + body_;
  }

 private:
  template <typename T>
  File& Put(T value) {
    body_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  File& String(const std::string& value) {
    Put<uint64_t>(value.size());
    body_ += value;
    return *this;
  }
  File& Key(const std::string& key, uint32_t type) {
    ++keys_;
    return String(key).Put(type);
  }
  std::string body_;
  uint64_t keys_ = 0;
};

absl::StatusOr<std::shared_ptr<const Tokenizer>> Load(const TempDir& folder, const File& file) {
  return Tokenizer::Load(folder.Write("m.gguf", file.bytes()));
}

Ids Encode(const Tokenizer& tokenizer, std::string_view text, SpecialTokens special = SpecialTokens::kNone) {
  auto ids = tokenizer.Encode(text, special);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : Ids();
}

// SentencePiece's own merges are by score; ours are written from the scores. Its ids are the judge.
TEST(GgufTokenizer, SentencePieceIdsAndTexts) {
  const Json golden = Golden("tokenizers.json")["sentencepiece"];
  const TempDir folder;
  File file;
  file.Text("tokenizer.ggml.model", "llama").Texts("tokenizer.ggml.tokens", golden["tokens"].get<std::vector<std::string>>());
  file.Floats("tokenizer.ggml.scores", golden["scores"].get<std::vector<float>>()).Ints("tokenizer.ggml.token_type",
      golden["types"].get<std::vector<int32_t>>());
  file.Int("tokenizer.ggml.bos_token_id", 1).Int("tokenizer.ggml.eos_token_id", 2).Int("tokenizer.ggml.unknown_token_id", 0);
  const auto tokenizer = Load(folder, file);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (size_t i = 0; i < golden["texts"].size(); ++i) {
    const auto text = golden["texts"][i].get<std::string>();
    const auto ids = golden["ids"][i].get<Ids>();
    EXPECT_EQ(Encode(**tokenizer, text), ids) << text;
    EXPECT_EQ((*tokenizer)->Decode(ids, true), golden["decoded"][i].get<std::string>()) << text;
  }
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
  EXPECT_EQ((*tokenizer)->eos_token(), "</s>");
  EXPECT_EQ(Encode(**tokenizer, "people", SpecialTokens::kAdd).front(), 1);  // this kind adds it unless told not to
}

TEST(GgufTokenizer, SmolHasItsTokensTemplateAndEnds) {
  const auto tokenizer = LoadTokenizer("smollm2");
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->vocab_size(), 49152);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->bos_token(), "<|im_start|>");
  EXPECT_TRUE(tokenizer->IsSpecial(1));
  const auto chat = ChatTemplateOfGguf(SmolPath());
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_THAT(*chat, HasSubstr("<|im_start|>"));
  EXPECT_EQ(Encode(*tokenizer, "12").size(), 2u);  // digits singly
}

// A byte-level file over a hand-made vocabulary: bytes a and b, the merge ab, digits.
File Bpe(const std::string& pre) {
  File file;
  file.Text("tokenizer.ggml.model", "gpt2");
  if (!pre.empty()) file.Text("tokenizer.ggml.pre", pre);
  file.Texts("tokenizer.ggml.tokens", {"a", "b", "ab", "1", "2", "12", "<|end|>", "<tool>", "Ġ"}).Ints("tokenizer.ggml.token_type", {1, 1,
      1, 1, 1, 1, 3, 4, 1});
  file.Texts("tokenizer.ggml.merges", {"a b", "1 2"});
  return file;
}

TEST(GgufTokenizer, PreTokenizersByName) {
  const TempDir folder;
  const std::vector<std::pair<std::string, Ids>> rows = {{"gpt-2", {2, 5, 8}}, {"smollm", {2, 3, 4, 8}}, {"starcoder", {2, 3, 4, 8}},
      {"refact", {2, 3, 4, 8}},
                                                         {"qwen2", {2, 3, 4, 8}}, {"llama-bpe", {2, 5, 8}}, {"llama3", {2, 5, 8}},
                                                             {"llama-v3", {2, 5, 8}}};
  for (const auto& [pre, ids] : rows) {
    const auto tokenizer = Load(folder, Bpe(pre));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ(Encode(**tokenizer, "ab12 "), ids) << pre;
    EXPECT_EQ(Encode(**tokenizer, "ab<|end|><tool>"), (Ids{2, 6, 7})) << pre;
    EXPECT_TRUE((*tokenizer)->IsSpecial(6));   // control
    EXPECT_FALSE((*tokenizer)->IsSpecial(7));  // user-defined
  }
}

TEST(GgufTokenizer, BosIsAddedWhenTheFileSaysSo) {
  const TempDir folder;
  for (const bool add : {true, false}) {
    File file = Bpe("gpt-2");
    file.Int("tokenizer.ggml.bos_token_id", 6).Int("tokenizer.ggml.eos_token_id", 6).Bool("tokenizer.ggml.add_bos_token",
        add).Bool("tokenizer.ggml.add_eos_token", true);
    const auto tokenizer = Load(folder, file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ(Encode(**tokenizer, "ab", SpecialTokens::kAdd), add ? (Ids{6, 2, 6}) : (Ids{2, 6}));
  }
  File unsaid = Bpe("llama-bpe");
  unsaid.Int("tokenizer.ggml.bos_token_id", 6);
  EXPECT_EQ(Encode(**Load(folder, unsaid), "ab", SpecialTokens::kAdd), (Ids{6, 2}));
}

TEST(GgufTokenizer, WhatIsMissingOrWrongIsNamed) {
  const TempDir folder;
  const std::vector<std::string> tokens = {"a", "b"};
  struct Row {
    absl::StatusCode code;
    const char* named;
    std::function<void(File*)> fill;
  };
  const auto bpe = [&](File* f) { f->Text("tokenizer.ggml.model", "gpt2").Texts("tokenizer.ggml.tokens", tokens); };
  const auto spm = [&](File* f) { f->Text("tokenizer.ggml.model", "llama").Texts("tokenizer.ggml.tokens", tokens); };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const std::vector<Row> rows = {
      {absl::StatusCode::kNotFound, "tokenizer.ggml.model", [&](File* f) { f->Texts("tokenizer.ggml.tokens", tokens); }},
      {kInvalid, "tokenizer.ggml.tokens", [&](File* f) { f->Text("tokenizer.ggml.model", "gpt2"); }},
      {kInvalid, "tokenizer.ggml.tokens", [&](File* f) { f->Text("tokenizer.ggml.model", "gpt2").Texts("tokenizer.ggml.tokens", {}); }},
      {kInvalid, "tokenizer.ggml.tokens", [&](File* f) { f->Text("tokenizer.ggml.model", "gpt2").Ints("tokenizer.ggml.tokens", {1}); }},
      {absl::StatusCode::kUnimplemented, "bert", [&](File* f) { f->Text("tokenizer.ggml.model", "bert").Texts("tokenizer.ggml.tokens",
          tokens); }},
      {kInvalid, "tokenizer.ggml.pre", bpe},
      {absl::StatusCode::kUnimplemented, "mystery", [&](File* f) { bpe(f); f->Text("tokenizer.ggml.pre", "mystery"); }},
      {kInvalid, "tokenizer.ggml.merges", [&](File* f) { bpe(f); f->Text("tokenizer.ggml.pre", "gpt-2"); }},
      {kInvalid, "m.gguf", [&](File* f) { bpe(f); f->Text("tokenizer.ggml.pre", "gpt-2").Texts("tokenizer.ggml.merges", {"a x"}); }},
      {kInvalid, "m.gguf", [&](File* f) { bpe(f); f->Text("tokenizer.ggml.pre", "gpt-2").Texts("tokenizer.ggml.merges", {"ab"}); }},
      {kInvalid, "tokenizer.ggml.token_type", [&](File* f) { bpe(f); f->Ints("tokenizer.ggml.token_type", {1}); }},
      {kInvalid, "tokenizer.ggml.scores", spm},
      {kInvalid, "tokenizer.ggml.scores", [&](File* f) { spm(f); f->Floats("tokenizer.ggml.scores", {1}); }},
      {kInvalid, "tokenizer.ggml.scores", [&](File* f) { spm(f); f->Floats("tokenizer.ggml.scores", {1,
          std::numeric_limits<float>::quiet_NaN()}); }},
      {kInvalid, "tokenizer.ggml.bos_token_id", [&](File* f) { spm(f); f->Floats("tokenizer.ggml.scores", {1,
          1}).Int("tokenizer.ggml.bos_token_id", 2); }},
      {kInvalid, "tokenizer.ggml.unknown_token_id", [&](File* f) { spm(f); f->Floats("tokenizer.ggml.scores", {1,
          1}).Int("tokenizer.ggml.unknown_token_id", 4000000000u); }},
      {kInvalid, "tokenizer.ggml.eos_token_id", [&](File* f) { spm(f); f->Floats("tokenizer.ggml.scores", {1,
          1}).Text("tokenizer.ggml.eos_token_id", "x"); }},
      {kInvalid, "m.gguf", [&](File* f) { f->Text("tokenizer.ggml.model", "llama").Texts("tokenizer.ggml.tokens", {"\xff",
          "b"}).Floats("tokenizer.ggml.scores", {1, 1}); }}};
  for (size_t i = 0; i < rows.size(); ++i) {
    File file;
    rows[i].fill(&file);
    const absl::Status status = Load(folder, file).status();
    EXPECT_EQ(status.code(), rows[i].code) << "row " << i << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(rows[i].named)) << "row " << i;
    EXPECT_THAT(std::string(status.message()), HasSubstr("m.gguf")) << "row " << i;
  }
}

TEST(GgufTokenizer, TemplatesAreOptional) {
  const TempDir folder;
  const std::string path = folder.Write("m.gguf", Bpe("gpt-2").bytes());
  EXPECT_EQ(*ChatTemplateOfGguf(path), "");
  const auto tokenizer = Tokenizer::Load(path);
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ(ChatTemplate::Load(path, **tokenizer, {}).status().code(), absl::StatusCode::kNotFound);
  folder.Write("m.gguf", Bpe("gpt-2").Int("tokenizer.chat_template", 1).bytes());
  EXPECT_EQ(ChatTemplate::Load(path, **tokenizer, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace phalanx::text
