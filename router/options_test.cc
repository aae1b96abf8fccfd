#include "router/options.h"

#include <gmock/gmock.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "router/generation_config.h"

namespace phalanx::router {
namespace {

using testing::HasSubstr;

absl::StatusOr<RouterOptions> Parsed(const std::vector<std::string>& words) {
  RouterOptions options;
  services::OptionSet set("phalanx-router", "", "");
  BindOptions(set, options);
  PHX_RETURN_IF_ERROR(set.Parse(words));
  PHX_RETURN_IF_ERROR(Validate(options));
  return options;
}

TEST(RouterOptions, FillsInWhatFollowsFromTheModel) {
  const auto options = Parsed({"--model", "some/folder", "--workers", "unix:a", "unix:b", "--seed", "3"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->tokenizer, "some/folder");
  EXPECT_EQ(options->served_names, std::vector<std::string>{"some/folder"});
  EXPECT_EQ(options->workers, (std::vector<std::string>{"unix:a", "unix:b"}));
  EXPECT_EQ(options->seed, 3);
  EXPECT_EQ(options->max_logprobs, 20);
  EXPECT_EQ(options->reasoning_field, "reasoning_content");
}

TEST(RouterOptions, RefusesWhatCannotWork) {
  EXPECT_THAT(std::string(Parsed({"--workers", "a:1"}).status().message()), HasSubstr("--model"));
  EXPECT_THAT(std::string(Parsed({"--model", "m"}).status().message()), HasSubstr("--workers"));
  EXPECT_THAT(std::string(Parsed({"--model", "m", "--workers", "a:1", "--reasoning-field", "thoughts"}).status().message()),
              HasSubstr("reasoning-field"));
  EXPECT_FALSE(Parsed({"--model", "m", "--workers", "a:1", "--max-num-queued-reqs", "-1"}).ok());
}

class GenerationConfigTest : public testing::Test {
 protected:
  GenerationConfigTest() {
    std::string form = (std::filesystem::temp_directory_path() / "phalanx_router_XXXXXX").string();
    folder_ = mkdtemp(form.data());
  }
  ~GenerationConfigTest() override { std::filesystem::remove_all(folder_); }
  void Write(const std::string& text) { std::ofstream(folder_ + "/generation_config.json") << text; }
  std::string folder_;
};

TEST_F(GenerationConfigTest, TakesWhatVllmTakes) {
  Write(R"({"do_sample":true,"temperature":0.6,"top_p":0.95,"top_k":20,"repetition_penalty":1.05,"max_new_tokens":100,
            "eos_token_id":[1,2],"min_p":null})");
  const auto defaults = ReadGenerationDefaults("auto", folder_);
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 0.6);
  EXPECT_EQ(defaults->top_p, 0.95);
  EXPECT_EQ(defaults->top_k, 20);
  EXPECT_EQ(defaults->repetition_penalty, 1.05);
  EXPECT_EQ(defaults->max_tokens, 100);
  EXPECT_FALSE(defaults->min_p);
  EXPECT_FALSE(ReadGenerationDefaults("vllm", folder_)->temperature);
  EXPECT_EQ(ReadGenerationDefaults(folder_, "elsewhere")->temperature, 0.6);
}

TEST_F(GenerationConfigTest, AutoNeedsNoFileAFolderDoes) {
  EXPECT_TRUE(ReadGenerationDefaults("auto", folder_).ok());
  EXPECT_TRUE(ReadGenerationDefaults("auto", folder_ + "/model.gguf").ok());
  EXPECT_EQ(ReadGenerationDefaults(folder_, "elsewhere").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(GenerationConfigTest, BadFilesNameTheField) {
  for (const char* text : {R"({"temperature":"hot"})", R"({"temperature":-1})"}) {
    Write(text);
    const absl::Status status = ReadGenerationDefaults("auto", folder_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("temperature"));
  }
  for (const char* text : {"[]", "{", R"({"top_k":1.5})"}) {
    Write(text);
    EXPECT_EQ(ReadGenerationDefaults("auto", folder_).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace phalanx::router
