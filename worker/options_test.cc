#include "worker/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace phalanx::worker {
namespace {

using ::testing::HasSubstr;

model::ModelConfig Config() {
  model::ModelConfig config;
  config.architecture = "LlamaForCausalLM";
  config.max_position = 4096;
  config.eos_token_ids = {2, 7};
  return config;
}

std::string ErrorOf(const WorkerOptions& options) {
  const auto out = ResolveExecutor(options, Config(), {});
  return out.ok() ? "" : std::string(out.status().message());
}

TEST(ResolveExecutor, TakesTheContextFromTheModelAndModestStepsOnACpu) {
  WorkerOptions options;
  options.model = "m";
  const auto out = ResolveExecutor(options, Config(), {});
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->max_model_len, 4096);
  EXPECT_EQ(out->max_num_batched_tokens, kCpuStepTokens);
  EXPECT_EQ(out->dtype, kernels::kBF16);
  EXPECT_EQ(out->kv_cache_bytes, 0u);
}

TEST(ResolveExecutor, AStepHoldsOneTokenOfEverySequenceAndWithoutChunksTheWholeContext) {
  WorkerOptions options;
  options.max_num_seqs = 700;
  EXPECT_EQ(ResolveExecutor(options, Config(), {})->max_num_batched_tokens, 700);
  options.enable_chunked_prefill = false;
  EXPECT_EQ(ResolveExecutor(options, Config(), {})->max_num_batched_tokens, 4096);
  options.max_num_batched_tokens = 4095;
  EXPECT_THAT(ErrorOf(options), HasSubstr("--no-enable-chunked-prefill"));
  options.enable_chunked_prefill = true;
  options.max_num_batched_tokens = 699;
  EXPECT_THAT(ErrorOf(options), HasSubstr("--max-num-seqs 700"));
}

TEST(ResolveExecutor, TakesVllmsDefaultsByTheSizeOfTheGpu) {
  const WorkerOptions options;
  const auto small = ResolveExecutor(options, Config(), {true, uint64_t{16} << 30});
  EXPECT_EQ(small->max_num_seqs, 256);
  EXPECT_EQ(small->max_num_batched_tokens, 2048);
  const auto large = ResolveExecutor(options, Config(), {true, uint64_t{79} << 30});
  EXPECT_EQ(large->max_num_seqs, 1024);
  EXPECT_EQ(large->max_num_batched_tokens, 8192);
}

TEST(ResolveExecutor, RefusesMoreContextThanTheModelHasAndSaysBoth) {
  WorkerOptions options;
  options.max_model_len = 4096;
  EXPECT_EQ(ErrorOf(options), "");
  options.max_model_len = 4097;
  EXPECT_THAT(ErrorOf(options), ::testing::AllOf(HasSubstr("--max-model-len 4097"), HasSubstr("4096")));
}

TEST(ResolveExecutor, NamesADtypeThatIsNotServed) {
  WorkerOptions options;
  for (const char* served : {"auto", "bfloat16", "float32", "float"}) {
    options.dtype = served;
    EXPECT_EQ(ErrorOf(options), "") << served;
  }
  options.dtype = "float16";
  EXPECT_THAT(ErrorOf(options), HasSubstr("--dtype float16"));
}

TEST(ResolveExecutor, NamesTheLoadFormat) {
  WorkerOptions options;
  EXPECT_EQ(ResolveExecutor(options, Config(), {})->load_format, model::LoadFormat::kAuto);
  for (const auto& [name, format] : {std::pair{"safetensors", model::LoadFormat::kSafetensors}, std::pair{"gguf", model::LoadFormat::kGguf},
                                     std::pair{"dummy", model::LoadFormat::kDummy}}) {
    options.load_format = name;
    EXPECT_EQ(ResolveExecutor(options, Config(), {})->load_format, format) << name;
  }
}

TEST(ResolveServe, NamesTheModelAsTypedAndCapsLogprobsAtTheTable) {
  WorkerOptions options;
  options.model = "/models/x";
  const exec::ExecutorOptions executor;
  EXPECT_EQ(ResolveServe(options, Config(), executor).model_name, "/models/x");
  options.served_model_name = "x";
  EXPECT_EQ(ResolveServe(options, Config(), executor).model_name, "x");
  EXPECT_EQ(ResolveServe(options, Config(), executor).eos_ids, (std::vector<int32_t>{2, 7}));
  options.max_logprobs = -1;
  EXPECT_EQ(ResolveServe(options, Config(), executor).max_logprobs, kernels::kMaxTopLogprobs);
  options.max_logprobs = 5;
  EXPECT_EQ(ResolveServe(options, Config(), executor).max_logprobs, 5);
}

TEST(BindOptions, ReadsEveryFlag) {
  WorkerOptions options;
  services::OptionSet set("t", "", "");
  BindOptions(set, options);
  ASSERT_TRUE(set.Parse({"--model", "m", "--max-model-len", "32k", "--kv-cache-memory-bytes", "1G", "--no-enable-prefix-caching", "--threads",
                         "3", "--cpu-isa", "avx2", "--block-size", "32"})
                  .ok());
  EXPECT_EQ(options.max_model_len, 32000);
  EXPECT_EQ(options.kv_cache_memory_bytes, int64_t{1} << 30);
  EXPECT_FALSE(options.enable_prefix_caching);
  EXPECT_EQ(options.block_size, 32);
  EXPECT_EQ(ResolveDevice(options).num_threads, 3);
  EXPECT_EQ(ResolveDevice(options).isa_cap, kernels::kIsaAvx2);
  services::OptionSet other("t", "", "");
  BindOptions(other, options);
  EXPECT_FALSE(other.Parse({"--block-size", "17"}).ok());
}

}  // namespace
}  // namespace phalanx::worker
