#include "text/test_util.h"

namespace phalanx::text {
namespace {

using Json = nlohmann::ordered_json;

TemplateInput InputOf(const Json& conversation) {
  TemplateInput in;
  in.messages_json = conversation["messages"].dump();
  if (conversation.contains("tools")) in.tools_json = conversation["tools"].dump();
  if (conversation.contains("kwargs")) in.kwargs_json = conversation["kwargs"].dump();
  in.continue_final_message = conversation.value("continue", false);
  in.add_generation_prompt = conversation.value("generation_prompt", true) && !in.continue_final_message;
  return in;
}

absl::StatusOr<std::shared_ptr<const ChatTemplate>> FromText(const std::string& text, int64_t now = 0) {
  ChatTemplate::Options options;
  options.override_path = text;
  options.unix_time = [now] { return now; };
  return ChatTemplate::Load("", *LoadTokenizer("spm"), options);
}

// What jinja2 said against what we say.
void Compare(const absl::StatusOr<std::string>& got, const Json& expected, const std::string& what) {
  if (expected.contains("text")) {
    ASSERT_TRUE(got.ok()) << what << ": " << got.status();
    EXPECT_EQ(*got, expected["text"].get<std::string>()) << what;
  } else if (expected.contains("raised")) {
    ASSERT_FALSE(got.ok()) << what;
    EXPECT_EQ(got.status().code(), absl::StatusCode::kInvalidArgument) << what;
    EXPECT_EQ(got.status().message(), absl::string_view(expected["raised"].get<std::string>())) << what;
  } else {
    EXPECT_FALSE(got.ok()) << what << ": jinja2 says " << expected << ", we render " << *got;
  }
}

class GoldenTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    setenv("TZ", "UTC", 1);
    golden_ = new Json(Golden("templates.json"));
  }
  static Json* golden_;
};
Json* GoldenTest::golden_ = nullptr;

TEST_F(GoldenTest, RealTemplatesEqualJinja2) {
  int compared = 0;
  for (const auto& [name, expected] : (*golden_)["real"].items()) {
    const auto tokenizer = LoadTokenizer(name);
    ASSERT_NE(tokenizer, nullptr);
    const auto loaded = ChatTemplate::Load(ModelPath(name), *tokenizer, {});
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    for (size_t i = 0; i < expected.size(); ++i, ++compared) {
      const Json& conversation = (*golden_)["conversations"][i];
      Compare((*loaded)->Render(InputOf(conversation)), expected[i], name + ": " + conversation["name"].get<std::string>());
    }
  }
  EXPECT_GT(compared, 400);
}

TEST_F(GoldenTest, WrittenTemplatesEqualJinja2) {
  for (const Json& row : (*golden_)["written"]) {
    const auto loaded = FromText(row["template"], (*golden_)["unix_time"]);
    ASSERT_TRUE(loaded.ok()) << row["name"] << loaded.status();
    for (size_t i = 0; i < row["expected"].size(); ++i) {
      const Json& conversation = (*golden_)["conversations"][i];
      Compare((*loaded)->Render(InputOf(conversation)), row["expected"][i],
              row["name"].get<std::string>() + ": " + conversation["name"].get<std::string>());
    }
  }
}

TEST_F(GoldenTest, SnippetsEqualJinja2) {
  TemplateInput in;
  in.messages_json = (*golden_)["snippet_messages"].dump();
  in.kwargs_json = (*golden_)["snippet_kwargs"].dump();
  for (const Json& row : (*golden_)["snippets"]) {
    const auto loaded = FromText(row["template"], (*golden_)["unix_time"]);
    Compare(loaded.ok() ? (*loaded)->Render(in) : loaded.status(), row["expected"], row["template"]);
  }
}

// The list of what is not equal yet stays true in both directions.
TEST_F(GoldenTest, KnownDifferencesStillDiffer) {
  TemplateInput in;
  in.messages_json = (*golden_)["snippet_messages"].dump();
  in.kwargs_json = (*golden_)["snippet_kwargs"].dump();
  for (const Json& row : (*golden_)["different"]) {
    const auto loaded = FromText(row["template"]);
    const absl::StatusOr<std::string> got = loaded.ok() ? (*loaded)->Render(in) : loaded.status();
    const bool equal = row["expected"].contains("text") ? got.ok() && *got == row["expected"]["text"].get<std::string>() : !got.ok();
    EXPECT_FALSE(equal) << row["template"] << " now equals jinja2: move it to SNIPPETS";
  }
}

}  // namespace
}  // namespace phalanx::text
