// Broken models: each is a fixture with one thing wrong, and the refusal must name the file and what is wrong in it. Nothing of the
// device may stay taken.
#include "worker/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "worker/model/model.h"
#include "worker/model/model_test_util.h"

namespace phalanx::worker::model {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// The CPU table with its memory counted, and the alloc that is to fail. Function pointers carry no state, so it lies here.
struct Counted {
  int64_t taken = 0;
  int64_t fail_in = -1;   // this many allocations succeed; -1 = all
};
Counted counted;

kernels::Code CountedAlloc(kernels::Device* device, size_t bytes, void** out) {
  if (counted.fail_in == 0) return kernels::kOutOfMemory;
  if (counted.fail_in > 0) --counted.fail_in;
  const kernels::Code code = kernels::CpuTable()->alloc(device, bytes, out);
  counted.taken += code == kernels::kOk;
  return code;
}
void CountedFree(kernels::Device* device, void* memory) {
  counted.taken -= memory != nullptr;
  kernels::CpuTable()->free(device, memory);
}

kernels::Table CountedTable() {
  counted = {};
  kernels::Table table = *kernels::CpuTable();
  table.alloc = CountedAlloc;
  table.free = CountedFree;
  return table;
}

class BrokenModelTest : public ::testing::Test {
 protected:
  // A copy of a fixture that may be broken.
  void Copy(const std::string& fixture) {
    std::filesystem::remove_all(folder_.path());
    std::filesystem::copy(FixtureFolder(fixture), folder_.path());
    path_ = folder_.path() + (fixture.starts_with("gguf_") ? "/model.gguf" : "");
  }
  // Replaces `from`, which must be there, in a file. Equal lengths keep a header's offsets right.
  void Replace(const std::string& file, const std::string& from, const std::string& to) {
    std::string bytes = ReadFile(folder_ / file);
    const size_t at = bytes.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    WriteFile(folder_ / file, bytes.replace(at, from.size(), to));
  }
  void Truncate(const std::string& file, size_t bytes) { std::filesystem::resize_file(folder_ / file, bytes); }

  absl::Status Load() {
    return LoadModel(table_, device_.get(), {path_, kernels::kF32, 64, 64, 64, nullptr}).status();
  }
  // The refusal, which must leave no memory behind.
  std::string Error() {
    const absl::Status status = Load();
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(counted.taken, 0) << status;
    return std::string(status.message());
  }

  const kernels::Table table_ = CountedTable();
  const TestDevice device_{table_};
  ScratchFolder folder_;
  std::string path_;
};

TEST_F(BrokenModelTest, AnUnbrokenCopyLoads) {
  for (const std::string& name : FixtureNames()) {
    Copy(name);
    const absl::Status status = Load();
    EXPECT_TRUE(status.ok()) << name << ": " << status;
    EXPECT_EQ(counted.taken, 0) << "a model gives everything back when it dies";
  }
}

// ---- containers -----------------------------------------------------------------------------------------------------

TEST_F(BrokenModelTest, ATruncatedFileIsNamedWhereverItEnds) {
  for (const auto& [fixture, file] : {std::pair{"llama_mha", "model.safetensors"}, std::pair{"gguf_qwen2", "model.gguf"}}) {
    Copy(fixture);
    const size_t size = std::filesystem::file_size(folder_ / file);
    std::vector<size_t> cuts = {0, 1, 4, 7, 8, 9, 24, size / 2, size - 1};
    for (size_t i = 1; i < 20; ++i) cuts.push_back(size * i / 20);
    for (const size_t cut : cuts) {
      Copy(fixture);
      Truncate(file, cut);
      EXPECT_THAT(Error(), HasSubstr(folder_ / file)) << "cut at " << cut;
    }
  }
}

TEST_F(BrokenModelTest, AMissingFileIsNamed) {
  Copy("llama_mha");
  std::filesystem::remove(folder_ / "model.safetensors");
  EXPECT_THAT(Error(), HasSubstr(folder_.path()));
  Copy("qwen2_g7");
  std::filesystem::remove(folder_ / "model-00002-of-00003.safetensors");
  EXPECT_THAT(Error(), HasSubstr("model-00002-of-00003.safetensors"));
  path_ = folder_ / "none";
  EXPECT_EQ(Load().code(), absl::StatusCode::kNotFound);
  path_ = folder_ / "none.gguf";
  EXPECT_EQ(Load().code(), absl::StatusCode::kNotFound);
}

TEST_F(BrokenModelTest, AnIndexThatDisagreesWithItsShardsIsRefused) {
  Copy("qwen2_g7");
  Replace("model.safetensors.index.json", "model.norm.weight", "model.nerm.weight");
  EXPECT_THAT(Error(), AllOf(HasSubstr(folder_.path()), HasSubstr("model.n")));
}

TEST_F(BrokenModelTest, AFileThatIsNoContainerIsRefused) {
  Copy("llama_mha");
  WriteFile(folder_ / "model.safetensors", std::string(4096, 'x'));
  EXPECT_THAT(Error(), HasSubstr("model.safetensors"));
  Copy("gguf_qwen2");
  WriteFile(path_, "GGML and nothing else of any use");
  EXPECT_THAT(Error(), HasSubstr("model.gguf"));
}

// ---- tensors --------------------------------------------------------------------------------------------------------

TEST_F(BrokenModelTest, AMissingTensorIsNamed) {
  Copy("llama_mha");
  Replace("model.safetensors", "model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.x_proj.weight");
  EXPECT_THAT(Error(), AllOf(HasSubstr(folder_.path()), HasSubstr("tensor model.layers.1.self_attn.k_proj.weight is missing")));
  Copy("gguf_llama");
  Replace("model.gguf", "blk.1.ffn_up.weight", "blk.1.ffn_xx.weight");
  EXPECT_THAT(Error(), AllOf(HasSubstr("model.gguf"), HasSubstr("model.layers.1.mlp.up_proj.weight is missing")));
}

TEST_F(BrokenModelTest, ATensorThatNobodyExpectsIsNamed) {
  Copy("llama_linear");
  Replace("config.json", R"("attention_bias": true)", R"("attention_bias": false)");
  EXPECT_THAT(Error(), AllOf(HasSubstr("model.safetensors: tensor model.layers."), HasSubstr(".bias is not part of this architecture")));
}

TEST_F(BrokenModelTest, AWrongShapeIsNamedWithBothShapes) {
  Copy("llama_mha");
  Replace("config.json", R"("intermediate_size": 96)", R"("intermediate_size": 80)");
  EXPECT_THAT(Error(), HasSubstr("model.safetensors: tensor model.layers.0.mlp.gate_proj.weight has shape [96, 64], the configuration "
                                 "needs [80, 64]"));
  Copy("llama_mha");
  Replace("config.json", R"("vocab_size": 96)", R"("vocab_size": 97)");
  EXPECT_THAT(Error(), HasSubstr("tensor model.embed_tokens.weight has shape [96, 64], the configuration needs [97, 64]"));
}

TEST_F(BrokenModelTest, AnIntegerTensorIsNoWeight) {
  Copy("llama_mha");
  // The dtype that follows the name in the JSON header.
  std::string bytes = ReadFile(folder_ / "model.safetensors");
  const size_t name = bytes.find("\"model.norm.weight\"");
  ASSERT_NE(name, std::string::npos);
  const size_t dtype = bytes.find("\"F32\"", name);
  ASSERT_NE(dtype, std::string::npos);
  WriteFile(folder_ / "model.safetensors", bytes.replace(dtype, 5, "\"I32\""));
  EXPECT_THAT(Error(), HasSubstr("model.safetensors: tensor model.norm.weight is stored as I32, which is no weight"));
}

TEST_F(BrokenModelTest, AnUntiedModelNeedsItsHead) {
  Copy("llama3_rope");
  Replace("config.json", R"("tie_word_embeddings": true)", R"("tie_word_embeddings": false)");
  EXPECT_THAT(Error(), HasSubstr("tensor lm_head.weight is missing"));
}

// ---- configuration --------------------------------------------------------------------------------------------------

TEST_F(BrokenModelTest, AnUnknownArchitectureIsNamedBesideTheKnownOnes) {
  Copy("qwen3");
  Replace("config.json", "Qwen3ForCausalLM", "Qwen9ForCausalLM");
  EXPECT_EQ(Load().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(Error(), AllOf(HasSubstr("config.json: architecture Qwen9ForCausalLM is not supported"), HasSubstr("Qwen3ForCausalLM")));
  Copy("gguf_qwen3");
  // The key, the number of the type "string", the length, the value.
  const std::string key("general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0", 32);
  Replace("model.gguf", key + "qwen3", key + "qwen9");
  EXPECT_THAT(Error(), AllOf(HasSubstr("model.gguf"), HasSubstr("qwen9")));
}

TEST_F(BrokenModelTest, BadNumbersAreNamedByFileAndField) {
  const std::vector<std::array<std::string, 3>> cases = {
      {R"("hidden_size": 64)", R"("hidden_size": 0)", "config.json: hidden_size is 0"},
      {R"("hidden_size": 64)", R"("hidden_size": -64)", "config.json: hidden_size is -64"},
      {R"("hidden_size": 64)", R"("hidden_size": 9223372036854775808)", "config.json: hidden_size is not a whole number"},
      {R"("hidden_size": 64)", R"("hidden_size": "64")", "config.json: hidden_size is not a whole number"},
      {R"("hidden_size": 64)", R"("hidden_syze": 64)", "config.json: hidden_size is missing"},
      {R"("num_hidden_layers": 2)", R"("num_hidden_layers": 100000)", "config.json: num_hidden_layers is 100000"},
      {R"("num_hidden_layers": 2)", R"("num_hidden_layers": 3)", "tensor model.layers.2.input_layernorm.weight is missing"},
      {R"("num_hidden_layers": 2)", R"("num_hidden_layers": 1)", "tensor model.layers.1."},
      {R"("num_attention_heads": 4)", R"("num_attention_heads": 3)", "config.json: "},
      {R"("num_key_value_heads": 4)", R"("num_key_value_heads": 3)", "is not a multiple of num_key_value_heads 3"},
      {R"("rms_norm_eps": 1e-05)", R"("rms_norm_eps": -1)", "config.json: rms_norm_eps is -1"},
      {R"("rms_norm_eps": 1e-05)", R"("rms_norm_eps": 1e999)", "config.json: "},
      {R"("rope_theta": 5000.0)", R"("rope_theta": 0)", "config.json: rope_theta is not above zero"},
      {R"("max_position_embeddings": 256)", R"("max_position_embeddings": 0)", "config.json: max_position_embeddings is 0"},
      {R"("hidden_act": "silu")", R"("hidden_act": "gelu")", "config.json: hidden_act gelu is not supported"},
  };
  for (const auto& [from, to, message] : cases) {
    Copy("llama_mha");
    Replace("config.json", from, to);
    EXPECT_THAT(Error(), HasSubstr(message)) << to;
  }
}

TEST_F(BrokenModelTest, HugeNumbersAreFoundOutBeforeMemoryIsTaken) {
  Copy("llama_mha");
  Replace("config.json", R"("hidden_size": 64)", R"("hidden_size": 65536)");
  Replace("config.json", R"("intermediate_size": 96)", R"("intermediate_size": 1048576)");
  EXPECT_THAT(Error(), HasSubstr("has shape"));
}

// One byte of a header changed: any answer but a crash, and no memory left. A sanitizer sees more.
TEST_F(BrokenModelTest, AnyByteOfAHeaderMayBeWrong) {
  std::mt19937_64 random(3);
  for (const auto& [fixture, file, header] :
       {std::tuple{"llama_mha", "model.safetensors", 2200}, std::tuple{"gguf_llama", "model.gguf", 3000}}) {
    Copy(fixture);
    const std::string whole = ReadFile(folder_ / file);
    ASSERT_GT(whole.size(), static_cast<size_t>(header));
    int refused = 0;
    for (int i = 0; i < 200; ++i) {
      std::string bytes = whole;
      bytes[random() % header] ^= static_cast<char>(1 + random() % 255);
      WriteFile(folder_ / file, bytes);
      refused += !Load().ok();
      ASSERT_EQ(counted.taken, 0);
    }
    EXPECT_GT(refused, 100) << fixture;
  }
}

// ---- devices --------------------------------------------------------------------------------------------------------

TEST_F(BrokenModelTest, AnyAllocationMayFail) {
  Copy("llama_linear");
  for (int64_t fail_in = 0;; ++fail_in) {
    ASSERT_LT(fail_in, 1000) << "never loads";
    counted.fail_in = fail_in;
    const absl::Status status = Load();
    EXPECT_EQ(counted.taken, 0);
    if (status.ok()) {
      EXPECT_GT(fail_in, 10);
      break;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_FALSE(status.message().empty());
  }
}

TEST_F(BrokenModelTest, ATableWithoutAnOperationIsRefusedAtLoad) {
  Copy("llama_mha");
  kernels::Table table = table_;
  table.attention = nullptr;
  const absl::Status status = LoadModel(table, device_.get(), {path_, kernels::kF32, 64, 64, 64, nullptr}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cpu lacks the operation attention"));
}

TEST_F(BrokenModelTest, OtherModelTypesAreRefused) {
  Copy("llama_mha");
  const absl::Status status = LoadModel(table_, device_.get(), {path_, kernels::kF16, 64, 64, 64, nullptr}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("float16"));
}

TEST_F(BrokenModelTest, ProgressRisesToOne) {
  Copy("llama_mha");
  std::vector<double> seen;
  LoadOptions options{path_, kernels::kBF16, 64, 64, 64, [&](double share) { seen.push_back(share); }};
  ASSERT_TRUE(LoadModel(table_, device_.get(), options).ok());
  ASSERT_FALSE(seen.empty());
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), 1.0);
}

}  // namespace
}  // namespace phalanx::worker::model
