#include "worker/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace phalanx::worker {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr CacheConfig kCache{.block_size = 16, .num_blocks = 1000, .prefix_caching = true, .gpu_memory_utilization = 0.9};

EngineStep Step() {
  EngineStep step;
  step.load.running = 3;
  step.load.waiting = 2;
  step.load.blocks_total = 1000;
  step.load.blocks_free = 750;
  step.counters.steps = 10;
  step.counters.preemptions = 4;
  step.counters.prefix_queries = 200;
  step.counters.prefix_hits = 50;
  step.counters.rejected = 1;
  step.num_tokens = 64;
  step.plan_seconds = 0.00002;
  step.run_seconds = 0.012;
  return step;
}

// Name -> type of every metric in the text.
std::map<std::string, std::string> Types(const std::string& text) {
  std::map<std::string, std::string> types;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, word, name, type;
    words >> hash >> word >> name >> type;
    if (hash == "#" && word == "TYPE") types[name] = type;
  }
  return types;
}

// The value of the line that starts with `metric` and holds every one of `labels`; fails if there is none.
double Value(const std::string& text, const std::string& metric, const std::vector<std::string>& labels = {}) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(metric + "{")) continue;
    bool all = true;
    for (const std::string& label : labels) all &= line.find(label) != std::string::npos;
    if (all) return std::stod(line.substr(line.rfind(' ') + 1));
  }
  ADD_FAILURE() << metric << " is not in the text";
  return -1;
}

TEST(WorkerMetricsTest, HasVllmsNamesAndTypes) {
  WorkerMetrics metrics("demo", kCache);
  const std::map<std::string, std::string> expected = {
      {"vllm:num_requests_running", "gauge"},
      {"vllm:num_requests_waiting", "gauge"},
      {"vllm:kv_cache_usage_perc", "gauge"},
      {"vllm:prefix_cache_queries_total", "counter"},
      {"vllm:prefix_cache_hits_total", "counter"},
      {"vllm:num_preemptions_total", "counter"},
      {"vllm:iteration_tokens_total", "histogram"},
      {"vllm:request_queue_time_seconds", "histogram"},
      {"vllm:request_prefill_time_seconds", "histogram"},
      {"vllm:request_decode_time_seconds", "histogram"},
      {"vllm:request_inference_time_seconds", "histogram"},
      {"vllm:cache_config_info", "gauge"},
      {"phalanx_worker_rejections_total", "counter"},
      {"phalanx_worker_steps_total", "counter"},
      {"phalanx_worker_plan_seconds", "histogram"},
      {"phalanx_worker_step_seconds", "histogram"},
  };
  EXPECT_EQ(Types(metrics.Text()), expected);
}

TEST(WorkerMetricsTest, EveryLineCarriesModelAndEngine) {
  WorkerMetrics metrics("demo \"quoted\"", kCache);
  metrics.Record(Step());
  std::istringstream lines(metrics.Text());
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#') continue;
    EXPECT_THAT(line, HasSubstr(R"(model_name="demo \"quoted\"")"));
    EXPECT_THAT(line, HasSubstr(R"(engine="0")"));
  }
}

TEST(WorkerMetricsTest, TheCacheConfigurationIsInLabels) {
  const std::string text = WorkerMetrics("demo", kCache).Text();
  EXPECT_EQ(Value(text, "vllm:cache_config_info", {R"(block_size="16")", R"(num_gpu_blocks="1000")", R"(enable_prefix_caching="True")",
                                                   R"(gpu_memory_utilization="0.9")"}),
            1);
}

TEST(WorkerMetricsTest, GaugesFollowTheLoadAndCountersGrowByDifferences) {
  WorkerMetrics metrics("demo", kCache);
  EngineStep step = Step();
  metrics.Record(step);
  step.counters.steps = 11;
  step.counters.prefix_queries = 260;
  step.load.running = 1;
  step.load.blocks_free = 1000;
  metrics.Record(step);
  const std::string text = metrics.Text();
  EXPECT_EQ(Value(text, "vllm:num_requests_running"), 1);
  EXPECT_EQ(Value(text, "vllm:num_requests_waiting"), 2);
  EXPECT_EQ(Value(text, "vllm:kv_cache_usage_perc"), 0);
  EXPECT_EQ(Value(text, "vllm:prefix_cache_queries_total"), 260);
  EXPECT_EQ(Value(text, "vllm:prefix_cache_hits_total"), 50);
  EXPECT_EQ(Value(text, "vllm:num_preemptions_total"), 4);
  EXPECT_EQ(Value(text, "phalanx_worker_rejections_total"), 1);
  EXPECT_EQ(Value(text, "phalanx_worker_steps_total"), 11);
}

TEST(WorkerMetricsTest, KvUsageIsAShareBetweenZeroAndOne) {
  WorkerMetrics metrics("demo", kCache);
  metrics.Record(Step());
  EXPECT_EQ(Value(metrics.Text(), "vllm:kv_cache_usage_perc"), 0.25);
}

TEST(WorkerMetricsTest, OnlyStepsThatRanAreObserved) {
  WorkerMetrics metrics("demo", kCache);
  EngineStep idle = Step();
  idle.num_tokens = 0;
  metrics.Record(idle);
  EXPECT_EQ(Value(metrics.Text(), "vllm:iteration_tokens_total_count"), 0);
  metrics.Record(Step());
  const std::string text = metrics.Text();
  EXPECT_EQ(Value(text, "vllm:iteration_tokens_total_count"), 1);
  EXPECT_EQ(Value(text, "vllm:iteration_tokens_total_sum"), 64);
  EXPECT_EQ(Value(text, "vllm:iteration_tokens_total_bucket", {R"(le="64")"}), 1);
  EXPECT_EQ(Value(text, "vllm:iteration_tokens_total_bucket", {R"(le="32")"}), 0);
  EXPECT_DOUBLE_EQ(Value(text, "phalanx_worker_step_seconds_sum"), 0.012);
}

TEST(WorkerMetricsTest, TimesOfSequencesThatProducedSomething) {
  WorkerMetrics metrics("demo", kCache);
  const std::vector<plan::FinishedSequence> finished = {
      {.produced = true, .queue_seconds = 0.5, .prefill_seconds = 0.25, .decode_seconds = 2, .inference_seconds = 2.25},
      {.reason = core::FinishReason::kAbort, .produced = false},
  };
  EngineStep step = Step();
  step.finished = &finished;
  metrics.Record(step);
  const std::string text = metrics.Text();
  const std::map<std::string, double> sums = {{"queue", 0.5}, {"prefill", 0.25}, {"decode", 2}, {"inference", 2.25}};
  for (const auto& [name, sum] : sums) {
    EXPECT_EQ(Value(text, "vllm:request_" + name + "_time_seconds_count"), 1) << name;
    EXPECT_EQ(Value(text, "vllm:request_" + name + "_time_seconds_sum"), sum) << name;
  }
}

// Boards made for vLLM draw by its bucket edges; ours come in addition.
TEST(WorkerMetricsTest, KeepsEveryBucketEdgeOfVllm) {
  const std::string text = WorkerMetrics("demo", kCache).Text();
  for (const char* edge : {"0.3", "0.5", "0.8", "1", "1.5", "2", "2.5", "5", "10", "15", "20", "30", "40", "50", "60", "120", "240", "480",
                           "960", "1920", "7680"}) {
    EXPECT_EQ(Value(text, "vllm:request_queue_time_seconds_bucket", {std::string("le=\"") + edge + "\""}), 0);
  }
  for (const char* edge : {"1", "8", "16", "32", "64", "128", "256", "512", "1024", "2048", "4096", "8192", "16384"}) {
    EXPECT_EQ(Value(text, "vllm:iteration_tokens_total_bucket", {std::string("le=\"") + edge + "\""}), 0);
  }
}

// ---- the line that people search their logs for ---------------------------------------------------------------------

TEST(ThroughputLogTest, SaysWhatVllmSaysEveryTenSeconds) {
  ThroughputLog log;
  EngineStep step = Step();
  EXPECT_EQ(log.Line(step, 1000), "");
  step.counters.prompt_tokens = 1005;
  step.counters.generation_tokens = 500;
  EXPECT_EQ(log.Line(step, 1009.9), "") << "not due yet";
  EXPECT_EQ(log.Line(step, 1010),
            "Engine 000: Avg prompt throughput: 100.5 tokens/s, Avg generation throughput: 50.0 tokens/s, Running: 3 reqs, "
            "Waiting: 2 reqs, GPU KV cache usage: 25.0%, Prefix cache hit rate: 25.0%");
  step.counters.generation_tokens = 600;
  EXPECT_THAT(log.Line(step, 1020), HasSubstr("Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 10.0 tokens/s"));
}

TEST(ThroughputLogTest, IsQuietWhenIdleAfterOneLastLine) {
  ThroughputLog log;
  EngineStep idle = Step();
  idle.load.running = idle.load.waiting = 0;
  EXPECT_EQ(log.Line(idle, 1000), "");
  EXPECT_EQ(log.Line(idle, 1010), "") << "idle since the start";
  EngineStep busy = Step();
  EXPECT_THAT(log.Line(busy, 1020), Not(""));
  EXPECT_THAT(log.Line(idle, 1030), HasSubstr("Running: 0 reqs")) << "the end of the work is worth a line";
  EXPECT_EQ(log.Line(idle, 1040), "");
}

}  // namespace
}  // namespace phalanx::worker
