// Ids and texts against other implementations (tests/tools/make_tokenizer_goldens.py), hostile input, and many threads on one handle.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "text/test_util.h"

namespace phalanx::text {
namespace {

using Json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

const Json& Goldens() {
  static const auto& golden = *new Json(Golden("tokenizers.json"));
  return golden;
}

Ids Encode(const Tokenizer& tokenizer, std::string_view text, SpecialTokens special = SpecialTokens::kNone) {
  auto ids = tokenizer.Encode(text, special);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : Ids();
}

TEST(Goldens, IdsOfEveryTextAndTokenizer) {
  int compared = 0;
  for (const auto& [name, golden] : Goldens()["tokenizers"].items()) {
    const auto tokenizer = LoadTokenizer(name);
    ASSERT_NE(tokenizer, nullptr);
    for (size_t i = 0; i < golden["ids"].size(); ++i, ++compared) {
      const auto text = Goldens()["texts"][i].get<std::string>();
      EXPECT_EQ(Encode(*tokenizer, text), golden["ids"][i].get<Ids>()) << name << ": " << text;
    }
    for (size_t i = 0; i < golden["special"].size(); ++i, ++compared) {
      const auto text = Goldens()["texts"][i].get<std::string>();
      EXPECT_EQ(Encode(*tokenizer, text, SpecialTokens::kAdd), golden["special"][i].get<Ids>()) << name << ": " << text;
    }
  }
  EXPECT_GT(compared, 800);
}

TEST(Goldens, TextsOfEveryIdList) {
  int compared = 0;
  for (const auto& [name, golden] : Goldens()["tokenizers"].items()) {
    const auto tokenizer = LoadTokenizer(name);
    ASSERT_NE(tokenizer, nullptr);
    for (const Json& row : golden["decodes"]) {
      const auto ids = row["ids"].get<Ids>();
      EXPECT_EQ(tokenizer->Decode(ids, false), row["keep"].get<std::string>()) << name << ": " << row["ids"];
      EXPECT_EQ(tokenizer->Decode(ids, true), row["skip"].get<std::string>()) << name << ": " << row["ids"];
      ++compared;
    }
  }
  EXPECT_GT(compared, 200);
}

// No normaliser and a token for every byte: nothing of a text is lost.
TEST(Goldens, ByteLevelTextsComeBackWhole) {
  for (const char* name : {"llama3", "llama3_1"}) {
    const auto tokenizer = LoadTokenizer(name);
    ASSERT_NE(tokenizer, nullptr);
    for (const Json& row : Goldens()["texts"]) {
      const auto text = row.get<std::string>();
      EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, text), false), text) << name;
    }
  }
}

TEST(Goldens, SmolOraclesTextsEncodeToItsIds) {
  const auto tokenizer = LoadTokenizer("smollm2");
  ASSERT_NE(tokenizer, nullptr);
  for (const Json& row : Json::parse(Slurp(SourceDir() + "/tests/fixtures/models/smollm2_oracle.json"))) {
    const auto ids = row["ids"].get<Ids>();
    const std::string text = tokenizer->Decode(ids, false);
    EXPECT_EQ(Encode(*tokenizer, text), ids) << text;
  }
}

TEST(Tokenizer, SpecialAndAddedTokens) {
  const auto qwen = LoadTokenizer("qwen3");
  ASSERT_NE(qwen, nullptr);
  EXPECT_EQ(qwen->vocab_size(), 151669);
  EXPECT_EQ(qwen->IdOf("<think>"), 151667);
  EXPECT_FALSE(qwen->IsSpecial(151667));
  EXPECT_EQ(qwen->IdOf("<|im_end|>"), 151645);
  EXPECT_TRUE(qwen->IsSpecial(151645));
  EXPECT_EQ(qwen->eos_id(), 151645);
  EXPECT_EQ(qwen->eos_token(), "<|im_end|>");
  EXPECT_EQ(qwen->bos_id(), std::nullopt);
  EXPECT_EQ(qwen->bos_token(), "");
  EXPECT_EQ(qwen->IdOf("no such token"), std::nullopt);
  const Ids ids = Encode(*qwen, "a<|im_end|>b<think>c");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 151645), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 151667), 1);
  EXPECT_EQ(qwen->Decode(ids, true), "ab<think>c");
  EXPECT_EQ(qwen->Decode(ids, false), "a<|im_end|>b<think>c");
  // Between the vocabulary and the padded logits there is nothing.
  for (const int32_t gap : {151669, 151935, std::numeric_limits<int32_t>::max(), -1, std::numeric_limits<int32_t>::min()}) {
    EXPECT_EQ(qwen->TokenBytes(gap), "") << gap;
    EXPECT_EQ(qwen->TokenText(gap), "") << gap;
    EXPECT_FALSE(qwen->IsSpecial(gap)) << gap;
    EXPECT_EQ(qwen->Decode({gap}, false), "") << gap;
  }
  const auto llama = LoadTokenizer("llama3_1");
  ASSERT_NE(llama, nullptr);
  EXPECT_EQ(llama->bos_id(), 128000);
  EXPECT_EQ(Encode(*llama, "hi", SpecialTokens::kAdd).front(), 128000);
  EXPECT_NE(Encode(*llama, "hi").front(), 128000);
}

TEST(Tokenizer, TokenBytesAreRawAndTokenTextIsUtf8) {
  const auto demo = LoadTokenizer("demo");
  ASSERT_NE(demo, nullptr);
  const std::string text = "日本 \U00024B62";
  std::string bytes;
  for (const int32_t id : Encode(*demo, text)) {
    bytes += demo->TokenBytes(id);
    EXPECT_NO_THROW((void)Json(demo->TokenText(id)).dump());  // throws on invalid UTF-8
  }
  EXPECT_EQ(bytes, text);
}

TEST(Tokenizer, BosAndEosOfTheConfiguration) {
  const auto spm = LoadTokenizer("spm");
  ASSERT_NE(spm, nullptr);
  Ids with = Encode(*spm, "hello", SpecialTokens::kAdd);
  const Ids without = Encode(*spm, "hello");
  ASSERT_EQ(with.front(), *spm->bos_id());
  EXPECT_EQ(Ids(with.begin() + 1, with.end()), without);
  // What the file does not add, add_bos_token and add_eos_token add; what it adds, they remove.
  const TempDir folder;
  const std::string json = Slurp(ModelPath("spm") + "/tokenizer.json");
  folder.Write("tokenizer.json", json);
  folder.Write("tokenizer_config.json", R"({"bos_token":"<s>","eos_token":"</s>","add_bos_token":false,"add_eos_token":true})");
  const auto swapped = Tokenizer::Load(folder.path());
  ASSERT_TRUE(swapped.ok()) << swapped.status();
  with = Encode(**swapped, "hello", SpecialTokens::kAdd);
  EXPECT_EQ(with.back(), *spm->IdOf("</s>"));
  EXPECT_EQ(Ids(with.begin(), with.end() - 1), without);
  const TempDir stripped;
  stripped.Write("tokenizer.json", Slurp(ModelPath("llama3") + "/tokenizer.json"));
  stripped.Write("tokenizer_config.json", R"({"bos_token":"<|begin_of_text|>","add_bos_token":false})");
  const auto bare = Tokenizer::Load(stripped.path());
  ASSERT_TRUE(bare.ok()) << bare.status();
  EXPECT_EQ(Encode(**bare, "hi", SpecialTokens::kAdd), Encode(**bare, "hi"));
}

TEST(Tokenizer, TokensThatOnlyTheConfigurationKnows) {
  const TempDir folder;
  folder.Write("tokenizer.json", Slurp(ModelPath("words") + "/tokenizer.json"));
  const auto load = [&](const std::string& config) {
    folder.Write("tokenizer_config.json", config);
    return Tokenizer::Load(folder.path());
  };
  const auto words = LoadTokenizer("words");
  const std::string next = std::to_string(words->vocab_size());
  const auto good = load(R"({"added_tokens_decoder":{"0":{"content":"<unk>","special":true},")" + next +
      R"(":{"content":"<|image_pad|>","special":true}}})");
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ((*good)->IdOf("<|image_pad|>"), words->vocab_size());
  EXPECT_TRUE((*good)->IsSpecial(words->vocab_size()));
  EXPECT_EQ(Encode(**good, "hello<|image_pad|>"), (Ids{3, words->vocab_size()}));
  // An id that the library would not give is refused, not guessed.
  EXPECT_EQ(load(R"({"added_tokens_decoder":{"77":{"content":"<|x|>"}}})").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(load(R"({"added_tokens_decoder":{"a":{"content":"<|x|>"}}})").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(load(R"({"bos_token":5})").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(load("{").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Tokenizer, LoadErrorsNameTheFile) {
  const TempDir folder;
  EXPECT_EQ(Tokenizer::Load(folder.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Tokenizer::Load(folder.path() + "/none.json").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Tokenizer::Load(folder.path() + "/none.gguf").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Tokenizer::Load("").status().code(), absl::StatusCode::kNotFound);
  for (const std::string& content : {std::string(), std::string("{}"), std::string("nonsense"), std::string("[]"), std::string("\0\xff",
      2), std::string(10000, '['),
                                     std::string(R"({"version":"1.0","model":{"type":"BPE","vocab":{"a":99999999},"merges":[]}})"),
                                     std::string(R"({"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}})")}) {
    const std::string path = folder.Write("tokenizer.json", content);
    const absl::Status status = Tokenizer::Load(folder.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << content.substr(0, 80);
    EXPECT_NE(status.message().find(path), absl::string_view::npos) << status;
  }
}

TEST(Tokenizer, MutatedFilesNeverCrash) {
  const TempDir folder;
  const std::string seed = Slurp(ModelPath("words") + "/tokenizer.json");
  std::mt19937 random(9);
  int loaded = 0;
  for (int round = 0; round < 800; ++round) {
    std::string json = seed;
    for (int edits = 1 + random() % 4 / 3; edits > 0; --edits) {
      const size_t at = random() % json.size();
      switch (random() % 3) {
        case 0: json[at] = "{}[]\",:0129truefalsn\xff\0"[random() % 22]; break;
        case 1: json.erase(at, 1 + random() % 12); break;
        default: json.insert(at, json.substr(random() % json.size(), random() % 30));
      }
    }
    folder.Write("tokenizer.json", json);
    const auto tokenizer = Tokenizer::Load(folder.path());
    if (!tokenizer.ok()) continue;
    ++loaded;
    const auto ids = (*tokenizer)->Encode("hello <s> wörld \U0001F600", SpecialTokens::kAdd);
    if (ids.ok()) (void)(*tokenizer)->Decode(*ids, false);
  }
  EXPECT_GT(loaded, 10);
}

TEST(Tokenizer, AnyBytesAreEncodedOrRefused) {
  std::mt19937 random(4);
  for (const char* name : {"qwen3", "llama3", "spm", "demo", "words"}) {
    const auto tokenizer = LoadTokenizer(name);
    ASSERT_NE(tokenizer, nullptr);
    int refused = 0;
    for (int round = 0; round < 300; ++round) {
      std::string bytes(1 + random() % 60, '\0');
      for (char& c : bytes) c = static_cast<char>(random());
      const auto ids = tokenizer->Encode(bytes, SpecialTokens::kNone);
      if (!ids.ok()) {
        ++refused;
        EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
        continue;
      }
      for (const int32_t id : *ids) EXPECT_TRUE(id >= 0 && id < tokenizer->vocab_size());
    }
    EXPECT_GT(refused, 200);
  }
  const auto llama = LoadTokenizer("llama3");
  const std::string nul("a\0b\0", 4);
  EXPECT_EQ(llama->Decode(Encode(*llama, nul), false), nul);
  EXPECT_FALSE(llama->Encode("\xed\xa0\x80", SpecialTokens::kNone).ok());  // a surrogate
}

TEST(Tokenizer, LongPrompts) {
  const auto llama = LoadTokenizer("llama3");
  ASSERT_NE(llama, nullptr);
  std::string text;
  for (int i = 0; text.size() < 600000; ++i) text += "Line " + std::to_string(i) + ": the quick brown fox, 日本, x" + std::string(i % 40,
      ' ') + "\n";
  const Ids ids = Encode(*llama, text);
  EXPECT_GT(ids.size(), 128000u);
  EXPECT_EQ(llama->Decode(ids, false), text);
}

TEST(Tokenizer, SixteenThreadsOnOneHandle) {
  for (const char* name : {"qwen3", "spm"}) {
    const auto tokenizer = LoadTokenizer(name);
    ASSERT_NE(tokenizer, nullptr);
    const Json& golden = Goldens()["tokenizers"][name];
    std::atomic<int> wrong = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 16; ++t) {
      threads.emplace_back([&, t] {
        for (size_t i = 0; i < golden["ids"].size(); ++i) {
          const size_t at = (i + t * 7) % golden["ids"].size();
          const auto ids = tokenizer->Encode(Goldens()["texts"][at].get<std::string>(), SpecialTokens::kNone);
          if (!ids.ok() || *ids != golden["ids"][at].get<Ids>()) ++wrong;
        }
        for (const Json& row : golden["decodes"]) {
          if (tokenizer->Decode(row["ids"].get<Ids>(), true) != row["skip"].get<std::string>()) ++wrong;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong.load(), 0) << name;
  }
}

}  // namespace
}  // namespace phalanx::text
