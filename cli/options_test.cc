#include "cli/options.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <set>

#include <gtest/gtest.h>

namespace phalanx::cli {
namespace {

std::string ErrorOf(const std::vector<std::string>& words) {
  const auto options = ParseServe(words);
  return options.ok() ? "" : std::string(options.status().message());
}

// The values passed on under `name`; empty if it is not passed.
std::vector<std::string> Passed(const ServeOptions& options, std::string_view name) {
  for (const PassedFlag& passed : options.passed) {
    if (passed.flag->name == name) return passed.values;
  }
  return {};
}

TEST(ServeOptions, DefaultsAreVllms) {
  const auto options = ParseServe({"some/model"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->own.model, "some/model");
  EXPECT_EQ(options->own.served_model_name, (std::vector<std::string>{"some/model"}));
  EXPECT_EQ(options->own.port, 8000);
  EXPECT_EQ(options->own.host, "");
  EXPECT_EQ(options->own.gpu_memory_utilization, 0.92);
  EXPECT_TRUE(options->passed.empty());
  EXPECT_TRUE(options->notes.empty());
}

TEST(ServeOptions, TheGuidesWords) {
  const auto options = ParseServe({"/m", "--tensor-parallel-size", "1", "--max-model-len", "16384", "--port", "8102", "--enforce-eager"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->own.port, 8102);
  EXPECT_EQ(Passed(*options, "max-model-len"), (std::vector<std::string>{"16384"}));
  EXPECT_EQ(Passed(*options, "enforce-eager"), (std::vector<std::string>{"true"}));
  EXPECT_TRUE(Passed(*options, "tensor-parallel-size").empty());  // nothing to do for it
  ASSERT_EQ(options->notes.size(), 1u);
  EXPECT_NE(options->notes[0].find("not recorded as graphs"), std::string::npos);
}

TEST(ServeOptions, ModelAsFlagOrWord) {
  EXPECT_EQ(ParseServe({"--model", "a/b"})->own.model, "a/b");
  EXPECT_EQ(ParseServe({"a/b", "--model=a/b"})->own.model, "a/b");
  EXPECT_EQ(ErrorOf({"a/b", "--model=c"}), "two models are given: 'a/b', and 'c' as --model");
  EXPECT_EQ(ErrorOf({}).substr(0, 18), "no MODEL is given:");
}

TEST(ServeOptions, ValuesArePassedAsTheChildReadsThem) {
  const auto options = ParseServe({"m", "--max-model-len", "16k", "--kv-cache-memory-bytes", "1.5GiB", "--no-enable-prefix-caching",
                                   "--block-size", "32", "--allowed-origins", "a", "b", "-q", "none", "--seed=7"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(Passed(*options, "max-model-len"), (std::vector<std::string>{"16000"}));
  EXPECT_EQ(Passed(*options, "kv-cache-memory-bytes"), (std::vector<std::string>{"1610612736"}));
  EXPECT_EQ(Passed(*options, "enable-prefix-caching"), (std::vector<std::string>{"false"}));
  EXPECT_EQ(Passed(*options, "block-size"), (std::vector<std::string>{"32"}));
  EXPECT_EQ(Passed(*options, "allowed-origins"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(Passed(*options, "seed"), (std::vector<std::string>{"7"}));
  EXPECT_TRUE(Passed(*options, "quantization").empty());
}

TEST(ServeOptions, AutoLengthIsTheModels) {
  EXPECT_TRUE(Passed(*ParseServe({"m", "--max-model-len", "auto"}), "max-model-len").empty());
  EXPECT_TRUE(Passed(*ParseServe({"m", "--max-model-len", "-1"}), "max-model-len").empty());
  EXPECT_EQ(ErrorOf({"m", "--max-model-len", "1"}), "--max-model-len: '1' is not between 2 and 16777216");
  EXPECT_EQ(ErrorOf({"m", "--max-model-len", "long"}), "--max-model-len: 'long' is not a whole number");
}

TEST(ServeOptions, RefusalsNameTheFlagAndTheReason) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"-tp", "2", "--device", "cuda"},
       "--tensor-parallel-size '2' is not served yet with --device cuda: ranks are on the CPU so far (--device cpu)"},
      {{"-tp", "0"}, "--tensor-parallel-size: '0' is not between 1 and 64"},
      {{"-tp", "2", "--nnodes", "2", "--num-workers", "2"},
       "--num-workers is for one host: a group of ranks over several hosts is one worker"},
      {{"-pp=4"},
       "--pipeline-parallel-size '4' is not served yet: layers are not spread over ranks; see --tensor-parallel-size (accepted: 1)"},
      {{"--data-parallel-size", "2"}, "--data-parallel-size '2' is not served yet: --num-workers gives replicas on one host (accepted: 1)"},
      {{"--enable-lora"}, "--enable-lora is not served: LoRA adapters are not loaded"},
      {{"--scheduling-policy", "priority"},
       "--scheduling-policy 'priority' is not served: sequences are scheduled first come, first served (accepted: fcfs)"},
      {{"--hf-token", "hunter2"}, "--hf-token is not served: nothing is downloaded; MODEL must be on this machine"},
      {{"--no-enable-request-id-headers"}, "--no-enable-request-id-headers is not served: every reply carries x-request-id"},
      {{"--enable_lora"}, "--enable-lora is not served: LoRA adapters are not loaded"},
      {{"--max-modle-len", "5"}, "unknown flag --max-modle-len; did you mean --max-model-len?"},
      {{"--load-format", "pt"},
       "--load-format 'pt' is not served yet: weights are read from these containers, or made up "
       "(accepted: auto, safetensors, gguf, dummy)"},
      {{"--ssl-certfile", "c"}, "--ssl-certfile and --ssl-keyfile are needed together"},
      {{"--api-key", "a,,b"}, "--api-key: a key is empty"},
  };
  for (const auto& [flags, error] : cases) {
    std::vector<std::string> words = {"m"};
    words.insert(words.end(), flags.begin(), flags.end());
    EXPECT_EQ(ErrorOf(words), error);
  }
  EXPECT_NE(ErrorOf({"m", "-q", "bitsandbytes"}).find("--quantization 'bitsandbytes' is not served yet"), std::string::npos);
}

TEST(ServeOptions, AHostWhoseRanksFollowIsKnownByFlagOrByLeaderWorkerSet) {
  const std::vector<std::string> words = {"m", "-tp", "4", "--nnodes", "2", "--master-addr", "10.0.0.1", "--node-rank"};
  const auto with = [&](const std::string& rank) {
    std::vector<std::string> all = words;
    all.push_back(rank);
    return *ParseServe(all);
  };
  EXPECT_FALSE(with("0").follower_host);
  EXPECT_TRUE(with("1").follower_host);
  EXPECT_EQ(Passed(with("1"), "node-rank"), (std::vector<std::string>{"1"}));
  EXPECT_EQ(Passed(with("1"), "tensor-parallel-size"), (std::vector<std::string>{"4"}));
  setenv("LWS_GROUP_SIZE", "2", 1);
  setenv("LWS_WORKER_INDEX", "1", 1);
  EXPECT_TRUE(ParseServe({"m", "-tp", "2"})->follower_host);
  EXPECT_FALSE(with("0").follower_host);
  unsetenv("LWS_GROUP_SIZE");
  unsetenv("LWS_WORKER_INDEX");
}

TEST(ServeOptions, WhatIsAlwaysSoMayBeAskedFor) {
  for (const std::vector<std::string>& flags : std::vector<std::vector<std::string>>{
           {"--no-enable-lora"}, {"--disable-log-requests"}, {"--disable-log-stats"}, {"--enable-request-id-headers"},
           {"--stream-interval", "1"}, {"--scheduling-policy=fcfs"}, {"--trust-remote-code"}, {"--no-trust-remote-code"},
           {"--kv-cache-dtype", "auto"}, {"--swap-space", "0"}, {"--distributed-executor-backend", "mp"}, {"-dp", "1"},
           {"--reasoning-parser", "deepseek_r1"}, {"--uvicorn-log-level", "info"}}) {
    std::vector<std::string> words = {"m"};
    words.insert(words.end(), flags.begin(), flags.end());
    EXPECT_EQ(ErrorOf(words), "") << flags[0];
  }
  EXPECT_EQ(ParseServe({"m", "--trust-remote-code"})->notes.size(), 1u);
  EXPECT_EQ(ParseServe({"m", "--no-trust-remote-code"})->notes.size(), 0u);
}

TEST(ServeOptions, KeysComeFromFlagThenOurVariableThenVllms) {
  setenv("VLLM_API_KEY", "v", 1);
  EXPECT_EQ(ParseServe({"m"})->own.api_key, (std::vector<std::string>{"v"}));
  setenv("PHALANX_API_KEY", "p,q", 1);
  EXPECT_EQ(ParseServe({"m"})->own.api_key, (std::vector<std::string>{"p", "q"}));
  EXPECT_EQ(ParseServe({"m", "--api-key", "a", "b"})->own.api_key, (std::vector<std::string>{"a", "b"}));
  unsetenv("PHALANX_API_KEY");
  unsetenv("VLLM_API_KEY");
  EXPECT_TRUE(ParseServe({"m"})->own.api_key.empty());
}

TEST(ServeOptions, TheConfigFileGoesThroughTheSameChecks) {
  std::string path = ::testing::TempDir() + "cli_options_test_XXXXXX";
  const int fd = mkstemp(path.data());
  ASSERT_GE(fd, 0);
  close(fd);
  std::ofstream(path) << "model: org/name\nport: 8102\nmax_model_len: 4k\nserved-model-name: [a, b]\nenforce-eager: true\n";
  const auto options = ParseServe({"--config", path, "--port=1"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->own.model, "org/name");
  EXPECT_EQ(options->own.port, 1);
  EXPECT_EQ(options->own.served_model_name, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(Passed(*options, "max-model-len"), (std::vector<std::string>{"4000"}));
  std::ofstream(path) << "enable-lora: true\n";
  EXPECT_EQ(ErrorOf({"m", "--config", path}), "--enable-lora is not served: LoRA adapters are not loaded");
  unlink(path.c_str());
}

TEST(ServeOptions, HelpHidesKeysAndListsWhatIsRefused) {
  setenv("PHALANX_API_KEY", "hunter2", 1);
  const std::string help = ParseServe({"--help", "--nonsense"})->help;
  unsetenv("PHALANX_API_KEY");
  EXPECT_EQ(help.find("hunter2"), std::string::npos);
  for (const Flag& flag : Flags()) EXPECT_NE(help.find("\n  --" + std::string(flag.name)), std::string::npos) << flag.name;
  for (const Refusal& refusal : Refusals()) EXPECT_NE(help.find(" --" + std::string(refusal.name)), std::string::npos) << refusal.name;
}

TEST(Flags, EachRowIsWhole) {
  std::set<std::string_view> names;
  for (const Flag& flag : Flags()) {
    EXPECT_TRUE(names.insert(flag.name).second) << flag.name;
    EXPECT_FALSE(flag.group.empty() || flag.help.empty()) << flag.name;
    EXPECT_EQ((flag.owners & kLauncher) != 0, !std::holds_alternative<std::monostate>(flag.field)) << flag.name;
    EXPECT_TRUE(flag.owners != 0 || !flag.only.empty()) << flag.name;
    EXPECT_TRUE(!(flag.owners & (kWorker | kRouter | kGateway)) || !flag.shown_default.empty()) << flag.name;
  }
  for (const Refusal& refusal : Refusals()) {
    EXPECT_TRUE(names.insert(refusal.name).second) << refusal.name;
    EXPECT_FALSE(refusal.why.empty()) << refusal.name;
  }
}

}  // namespace
}  // namespace phalanx::cli
