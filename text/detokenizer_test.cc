// Chunks of every kind of tokenizer join to the whole decode: real text, random and gap ids, characters cut in two.
#include <gtest/gtest.h>

#include <random>

#include "text/test_util.h"

namespace phalanx::text {
namespace {

using Json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

const char* const kNames[] = {"qwen3", "llama3", "llama3_1", "smollm2", "spm", "metaspace", "words", "demo"};

bool IsWholeUtf8(const std::string& text) {
  try {
    (void)Json(text).dump();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// Every chunk is whole characters, and all but the last few bytes are out at any time.
std::string Join(const std::shared_ptr<const Tokenizer>& tokenizer, const Ids& ids, bool skip) {
  Detokenizer detokenizer(tokenizer, {.skip_special = skip});
  std::string joined;
  for (const int32_t id : ids) {
    const std::string chunk = detokenizer.Append(id);
    EXPECT_TRUE(IsWholeUtf8(chunk));
    joined += chunk;
  }
  const std::string last = detokenizer.Flush();
  EXPECT_TRUE(IsWholeUtf8(last));
  EXPECT_LE(last.size(), 9u);  // three held bytes are three U+FFFD at most
  EXPECT_EQ(detokenizer.Flush(), "");
  return joined + last;
}

void ExpectJoined(const std::shared_ptr<const Tokenizer>& tokenizer, const Ids& ids, const std::string& what) {
  for (const bool skip : {true, false}) EXPECT_EQ(Join(tokenizer, ids, skip), tokenizer->Decode(ids, skip)) << what;
}

class EveryTokenizer : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    tokenizer_ = LoadTokenizer(GetParam());
    ASSERT_NE(tokenizer_, nullptr);
  }
  std::shared_ptr<const Tokenizer> tokenizer_;
};

INSTANTIATE_TEST_SUITE_P(Detokenizer, EveryTokenizer, testing::ValuesIn(kNames), [](const auto& info) { return std::string(info.param); });

TEST_P(EveryTokenizer, GoldenTextsAndIds) {
  const Json golden = Golden("tokenizers.json");
  for (const Json& row : golden["tokenizers"][GetParam()]["decodes"]) {
    const auto ids = row["ids"].get<Ids>();
    EXPECT_EQ(Join(tokenizer_, ids, false), row["keep"].get<std::string>()) << row["ids"];
    EXPECT_EQ(Join(tokenizer_, ids, true), row["skip"].get<std::string>()) << row["ids"];
  }
  for (const Json& row : golden["tokenizers"][GetParam()]["ids"]) ExpectJoined(tokenizer_, row.get<Ids>(), row.dump());
}

TEST_P(EveryTokenizer, RandomAndGapIds) {
  std::mt19937 random(12);
  const int32_t size = tokenizer_->vocab_size();
  for (int round = 0; round < 1000; ++round) {
    Ids ids(random() % 30);
    for (int32_t& id : ids) {
      const uint32_t kind = random() % 16;
      id = static_cast<int32_t>(kind == 0 ? size + random() % 500 : kind < 8 ? random() % std::min(size, 280) : random() % size);
      if (kind == 1) id = -1 - static_cast<int32_t>(random() % 5);
    }
    ExpectJoined(tokenizer_, ids, Json(ids).dump());
  }
}

TEST_P(EveryTokenizer, CharactersCutAtEveryByte) {
  // Ids of single bytes, where the vocabulary has them.
  std::vector<int32_t> byte_ids(256, -1);
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    const std::string_view bytes = tokenizer_->TokenBytes(id);
    if (bytes.size() == 1 && !tokenizer_->IsSpecial(id)
        && byte_ids[static_cast<uint8_t>(bytes[0])] < 0) byte_ids[static_cast<uint8_t>(bytes[0])] = id;
  }
  if (byte_ids[0xF0] < 0) GTEST_SKIP() << "no byte tokens";
  const std::string text = "aé日\U0001F600z";
  for (size_t drop = 0; drop <= text.size(); ++drop) {
    Ids ids;
    for (size_t i = 0; i < text.size(); ++i) {
      const int32_t id = byte_ids[static_cast<uint8_t>(text[i])];
      if (i != drop && id >= 0) ids.push_back(id);
    }
    ExpectJoined(tokenizer_, ids, std::to_string(drop));
    for (size_t keep = 0; keep < ids.size(); ++keep) ExpectJoined(tokenizer_, Ids(ids.begin(), ids.begin() + keep), std::to_string(drop));
  }
}

// A stream that moved: a new detokenizer fed with what was made before goes on exactly.
TEST_P(EveryTokenizer, StateComesFromATokenListAlone) {
  std::mt19937 random(13);
  for (int round = 0; round < 100; ++round) {
    Ids ids(20);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % std::min(tokenizer_->vocab_size(), 400));
    const size_t cut = random() % ids.size();
    Detokenizer first(tokenizer_, {.skip_special = false, .after_prompt = round % 2 == 0});
    Detokenizer second(tokenizer_, {.skip_special = false, .after_prompt = round % 2 == 0});
    for (size_t i = 0; i < cut; ++i) EXPECT_EQ(first.Append(ids[i]), second.Append(ids[i]));
    Detokenizer moved = std::move(second);
    for (size_t i = cut; i < ids.size(); ++i) EXPECT_EQ(first.Append(ids[i]), moved.Append(ids[i]));
    EXPECT_EQ(first.Flush(), moved.Flush());
  }
}

TEST(Detokenizer, TextAfterAPromptKeepsItsFirstSpace) {
  for (const char* name : {"spm", "metaspace"}) {
    const auto tokenizer = LoadTokenizer(name);
    ASSERT_NE(tokenizer, nullptr);
    const auto ids = tokenizer->Encode("people live", SpecialTokens::kNone);
    ASSERT_TRUE(ids.ok());
    Detokenizer whole(tokenizer, {});
    Detokenizer after(tokenizer, {.after_prompt = true});
    std::string alone, continued;
    for (const int32_t id : *ids) {
      alone += whole.Append(id);
      continued += after.Append(id);
    }
    EXPECT_EQ(alone, "people live") << name;
    EXPECT_EQ(continued, " people live") << name;
  }
}

// A replacement character that the model wrote itself is text, not a reason to wait.
TEST(Detokenizer, ARealReplacementCharacterIsNotHeld) {
  const auto tokenizer = LoadTokenizer("llama3");
  ASSERT_NE(tokenizer, nullptr);
  const auto ids = tokenizer->Encode("\uFFFD", SpecialTokens::kNone);
  ASSERT_TRUE(ids.ok());
  Detokenizer detokenizer(tokenizer, {});
  std::string text;
  for (const int32_t id : *ids) text += detokenizer.Append(id);
  EXPECT_EQ(text, "\uFFFD");
}

TEST(Detokenizer, FlushEndsACharacterAndStartsAnew) {
  const auto tokenizer = LoadTokenizer("demo");
  ASSERT_NE(tokenizer, nullptr);
  const auto ids = tokenizer->Encode("\U00024B62", SpecialTokens::kNone);
  ASSERT_TRUE(ids.ok());
  ASSERT_GT(ids->size(), 1u);
  Detokenizer detokenizer(tokenizer, {});
  EXPECT_EQ(detokenizer.Append(ids->front()), "");
  EXPECT_EQ(detokenizer.Flush(), "\uFFFD");
  std::string text;
  for (const int32_t id : *ids) text += detokenizer.Append(id);
  EXPECT_EQ(text, "\U00024B62");
}

}  // namespace
}  // namespace phalanx::text
