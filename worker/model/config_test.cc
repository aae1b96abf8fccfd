#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "worker/model/model.h"

namespace phalanx::worker::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Source(const std::string& path) {
  const char* root = std::getenv("PHALANX_SOURCE_DIR");
  return std::string(root != nullptr ? root : ".") + "/" + path;
}

class ConfigTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "config.XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void Write(const std::string& name, const std::string& text) { std::ofstream(folder_ + "/" + name) << text; }
  // A small Llama with `extra` fields added (or overriding, as the last of two equal keys counts).
  absl::StatusOr<ModelConfig> Read(const std::string& extra, const std::string& architecture = "LlamaForCausalLM") {
    Write("config.json", R"({"architectures":[")" + architecture +
                             R"("],"hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,"intermediate_size":96,)"
                             R"("vocab_size":100,"max_position_embeddings":128)" + extra + "}");
    return ReadModelConfig(folder_);
  }
  std::string Error(const std::string& extra, const std::string& architecture = "LlamaForCausalLM") {
    const auto config = Read(extra, architecture);
    return config.ok() ? "no error" : std::string(config.status().message());
  }
  std::string folder_;
};

TEST_F(ConfigTest, FillsDefaults) {
  const auto config = Read("");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->rope_theta, 10000.0);
  EXPECT_FALSE(config->tied_is_known);
  EXPECT_FALSE(config->qkv_bias);
}

TEST_F(ConfigTest, BothDialectsOfRotaryParametersMeanTheSame) {
  const auto four = Read(R"(,"rope_theta":500000.0,"torch_dtype":"float32","rope_scaling":{"rope_type":"llama3","factor":8.0,)"
                         R"("low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192})");
  const auto five = Read(R"(,"dtype":"float32","rope_parameters":{"rope_theta":500000.0,"rope_type":"llama3","factor":8.0,)"
                         R"("low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192})");
  for (const auto& config : {four, five}) {
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope_theta, 500000.0);
    EXPECT_EQ(config->rope_scaling, RopeScaling::kLlama3);
    EXPECT_EQ(config->rope_factor, 8.0);
    EXPECT_EQ(config->rope_original_max_position, 8192);
    EXPECT_EQ(config->checkpoint_dtype, kernels::kF32);
  }
  const auto linear = Read(R"(,"rope_scaling":{"type":"linear","factor":2})");
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ(linear->rope_scaling, RopeScaling::kLinear);
}

TEST_F(ConfigTest, FamiliesDiffer) {
  EXPECT_TRUE(Read("", "Qwen2ForCausalLM")->qkv_bias);
  EXPECT_FALSE(Read("", "Qwen2ForCausalLM")->o_bias);
  EXPECT_TRUE(Read("", "Qwen3ForCausalLM")->qk_norm);
  EXPECT_TRUE(Read(R"(,"attention_bias":true)")->o_bias);
  EXPECT_THAT(Read(R"(,"sliding_window":32)", "MistralForCausalLM")->layer_windows, ElementsAre(32, 32));
  EXPECT_TRUE(Read(R"(,"sliding_window":null)", "MistralForCausalLM")->layer_windows.empty());
  EXPECT_TRUE(Read(R"(,"sliding_window":32)", "Qwen2ForCausalLM")->layer_windows.empty());
  EXPECT_THAT(Read(R"(,"sliding_window":32,"use_sliding_window":true,"max_window_layers":1)", "Qwen2ForCausalLM")->layer_windows,
              ElementsAre(0, 32));
  EXPECT_THAT(Read(R"(,"sliding_window":32,"use_sliding_window":true,"layer_types":["sliding_attention","full_attention"])",
                   "Qwen3ForCausalLM")->layer_windows,
              ElementsAre(32, 0));
}

TEST_F(ConfigTest, AModelTypeStandsInForMissingArchitectures) {
  Write("config.json", R"({"model_type":"qwen3","hidden_size":64,"num_hidden_layers":1,"num_attention_heads":4,"head_dim":32,)"
                       R"("intermediate_size":96,"vocab_size":100,"max_position_embeddings":128})");
  const auto config = ReadModelConfig(folder_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "Qwen3ForCausalLM");
  EXPECT_EQ(config->head_dim, 32);
}

TEST_F(ConfigTest, EndIdsAreTheUnionOfBothFiles) {
  Write("generation_config.json", R"({"eos_token_id":[7,9,5000]})");
  const auto config = Read(R"(,"eos_token_id":7,"bos_token_id":3)");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(7, 9));  // 5000 is outside the vocabulary
  EXPECT_EQ(config->bos_token_id, 3);
}

TEST_F(ConfigTest, RefusesWhatIsNotServedByName) {
  EXPECT_THAT(Error("", "GPT2LMHeadModel"), HasSubstr("architecture GPT2LMHeadModel is not supported; supported are LlamaForCausalLM"));
  EXPECT_THAT(Error(R"(,"rope_scaling":{"rope_type":"yarn","factor":4})"), HasSubstr("rope type yarn is not supported"));
  EXPECT_THAT(Error(R"(,"hidden_act":"gelu")"), HasSubstr("hidden_act gelu is not supported"));
  EXPECT_THAT(Error(R"(,"quantization_config":{"quant_method":"awq"})"), HasSubstr("quantization_config (awq) is not supported"));
  EXPECT_THAT(Error(R"(,"dtype":"float8_e4m3fn")"), HasSubstr("dtype float8_e4m3fn is not supported"));
  EXPECT_THAT(Error(R"(,"partial_rotary_factor":0.5)"), HasSubstr("partial_rotary_factor is not supported"));
  EXPECT_THAT(Error(R"(,"rope_parameters":{"full_attention":{"rope_theta":1}})"), HasSubstr("per layer type"));
  EXPECT_THAT(Error(R"(,"use_sliding_window":true,"sliding_window":8,"layer_types":["chunked_attention","full_attention"])", "Qwen2ForCausalLM"),
              HasSubstr("layer type chunked_attention is not supported"));
}

TEST_F(ConfigTest, RefusesWrongNumbersNamingTheField) {
  EXPECT_THAT(Error(R"(,"num_key_value_heads":3)"), HasSubstr("num_attention_heads 4 is not a multiple of num_key_value_heads 3"));
  EXPECT_THAT(Error(R"(,"head_dim":0)"), HasSubstr("head_dim is 0, it must be 1 to"));
  EXPECT_THAT(Error(R"(,"head_dim":17)"), HasSubstr("head_dim 17 is odd"));
  EXPECT_THAT(Error(R"(,"head_dim":"big")"), HasSubstr("head_dim is not a whole number"));
  EXPECT_THAT(Error(R"(,"num_key_value_heads":9223372036854775808)"), HasSubstr("num_key_value_heads is not a whole number"));
  EXPECT_THAT(Error(R"(,"rms_norm_eps":0)"), HasSubstr("rms_norm_eps is 0"));
  EXPECT_THAT(Error(R"(,"rope_theta":-1)"), HasSubstr("rope_theta is not above zero"));
  EXPECT_THAT(Error(R"(,"tie_word_embeddings":1)"), HasSubstr("tie_word_embeddings is not true or false"));
  EXPECT_THAT(Error(R"(,"eos_token_id":"</s>")"), HasSubstr("eos_token_id is not a token id"));
  EXPECT_THAT(Error(R"(,"rope_scaling":{"rope_type":"llama3","factor":8})"), HasSubstr("low_freq_factor is missing"));
  EXPECT_THAT(Error("") == "no error" ? "fine" : "bad", HasSubstr("fine"));
}

TEST_F(ConfigTest, MissingAndBrokenFilesAreNamed) {
  EXPECT_EQ(ReadModelConfig(folder_ + "/none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadModelConfig(folder_).status().code(), absl::StatusCode::kNotFound);
  Write("config.json", "{");
  EXPECT_THAT(std::string(ReadModelConfig(folder_).status().message()), HasSubstr("config.json: "));
  Write("config.json", R"({"architectures":["LlamaForCausalLM"]})");
  EXPECT_THAT(std::string(ReadModelConfig(folder_).status().message()), HasSubstr("config.json: hidden_size is missing"));
}

TEST(GgufConfigTest, ReadsMetadataAndRotaryDivisors) {
  const auto config = ReadModelConfig(Source("tests/fixtures/models/gguf_llama/model.gguf"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "LlamaForCausalLM");
  EXPECT_EQ(config->hidden_size, 96);
  EXPECT_EQ(config->num_heads, 6);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->vocab_size, 96);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->rope_freq_divisors.size(), 8u);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
  EXPECT_EQ(config->bos_token_id, 1);
}

TEST(GgufConfigTest, RefusesOtherArchitectures) {
  const auto config = ReadModelConfig(Source("tests/fixtures/models/blocks.gguf"));
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("architecture blocks is not supported"));
}

TEST(DemoConfigTest, TheCommittedModelIsRead) {
  const auto config = ReadModelConfig(Source("models/demo"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_THAT(config->eos_token_ids, ::testing::Contains(589));
}

}  // namespace
}  // namespace phalanx::worker::model
