#include "worker/metrics.h"

#include <cinttypes>
#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"

namespace phalanx::worker {
namespace {

// vLLM's buckets for request times, with finer ones below: a small model answers in milliseconds.
const std::vector<double> kRequestSeconds = {0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                             0.2,    0.3,   0.5,   0.8,   1,     1.5,   2,    2.5,  5,    10,   15,   20,
                                             30,     40,    50,    60,    120,   240,   480,  960,  1920, 7680};
const std::vector<double> kStepSeconds = {0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015,
                                          0.02,   0.03,   0.05,   0.075, 0.1,   0.15,  0.25,  0.5,   1,     2.5,  5};
const std::vector<double> kPlanSeconds = {0.000005, 0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.01};
const std::vector<double> kIterationTokens = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};

double Usage(const core::LoadReport& load) {
  return load.blocks_total == 0 ? 0 : 1.0 - static_cast<double>(load.blocks_free) / load.blocks_total;
}

}  // namespace

WorkerMetrics::WorkerMetrics(const std::string& model_name, const CacheConfig& cache)
    : registry_({{"model_name", model_name}, {"engine", "0"}}) {
  auto& r = registry_;
  running_ = r.AddGauge("vllm:num_requests_running", "Number of requests in model execution batches.");
  waiting_ = r.AddGauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.");
  kv_usage_ = r.AddGauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.");
  prefix_queries_ = r.AddCounter("vllm:prefix_cache_queries_total", "Prefix cache queries, in terms of number of queried tokens.");
  prefix_hits_ = r.AddCounter("vllm:prefix_cache_hits_total", "Prefix cache hits, in terms of number of cached tokens.");
  preemptions_ = r.AddCounter("vllm:num_preemptions_total", "Cumulative number of preemptions by the engine.");
  iteration_tokens_ = r.AddHistogram("vllm:iteration_tokens_total", "Number of tokens per engine step.", kIterationTokens);
  queue_seconds_ = r.AddHistogram("vllm:request_queue_time_seconds", "Time spent in the WAITING phase.", kRequestSeconds);
  prefill_seconds_ = r.AddHistogram("vllm:request_prefill_time_seconds", "Time spent in the PREFILL phase.", kRequestSeconds);
  decode_seconds_ = r.AddHistogram("vllm:request_decode_time_seconds", "Time spent in the DECODE phase.", kRequestSeconds);
  inference_seconds_ = r.AddHistogram("vllm:request_inference_time_seconds", "Time spent in the RUNNING phase.", kRequestSeconds);
  r.AddGauge("vllm:cache_config_info", "Information of the engine's cache configuration.",
             {{"block_size", absl::StrCat(cache.block_size)},
              {"num_gpu_blocks", absl::StrCat(cache.num_blocks)},
              {"enable_prefix_caching", cache.prefix_caching ? "True" : "False"},
              {"gpu_memory_utilization", absl::StrCat(cache.gpu_memory_utilization)}})
      .Set(1);
  rejections_ = r.AddCounter("phalanx_worker_rejections_total", "Sequences refused after they had passed the door.");
  steps_ = r.AddCounter("phalanx_worker_steps_total", "Engine steps: the progress counter.");
  plan_seconds_ = r.AddHistogram("phalanx_worker_plan_seconds", "Time to plan one step.", kPlanSeconds);
  step_seconds_ = r.AddHistogram("phalanx_worker_step_seconds", "Time the device took for one step.", kStepSeconds);
}

void WorkerMetrics::Record(const EngineStep& step) {
  running_.Set(step.load.running);
  waiting_.Set(step.load.waiting);
  kv_usage_.Set(Usage(step.load));
  prefix_queries_.Add(static_cast<double>(step.counters.prefix_queries - last_.prefix_queries));
  prefix_hits_.Add(static_cast<double>(step.counters.prefix_hits - last_.prefix_hits));
  preemptions_.Add(static_cast<double>(step.counters.preemptions - last_.preemptions));
  rejections_.Add(static_cast<double>(step.counters.rejected - last_.rejected));
  steps_.Add(static_cast<double>(step.counters.steps - last_.steps));
  last_ = step.counters;
  if (step.num_tokens > 0) {
    iteration_tokens_.Observe(step.num_tokens);
    plan_seconds_.Observe(step.plan_seconds);
    step_seconds_.Observe(step.run_seconds);
  }
  if (step.finished == nullptr) return;
  for (const plan::FinishedSequence& done : *step.finished) {
    if (!done.produced) continue;
    queue_seconds_.Observe(done.queue_seconds);
    prefill_seconds_.Observe(done.prefill_seconds);
    decode_seconds_.Observe(done.decode_seconds);
    inference_seconds_.Observe(done.inference_seconds);
  }
}

std::string ThroughputLog::Line(const EngineStep& step, double now_seconds) {
  constexpr double kInterval = 10;
  if (last_seconds_ == 0) last_seconds_ = now_seconds;
  const double span = now_seconds - last_seconds_;
  if (span < kInterval) return "";
  const double prompt = static_cast<double>(step.counters.prompt_tokens - last_.prompt_tokens) / span;
  const double generation = static_cast<double>(step.counters.generation_tokens - last_.generation_tokens) / span;
  const double hit_rate = step.counters.prefix_queries == 0
                              ? 0
                              : 100.0 * static_cast<double>(step.counters.prefix_hits) / static_cast<double>(step.counters.prefix_queries);
  last_ = step.counters;
  last_seconds_ = now_seconds;
  const bool idle = prompt == 0 && generation == 0 && step.load.running == 0 && step.load.waiting == 0;
  const bool was_idle = was_idle_;
  was_idle_ = idle;
  if (idle && was_idle) return "";
  char line[320];
  std::snprintf(line, sizeof line,
                "Engine 000: Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, Running: %d reqs, "
                "Waiting: %d reqs, GPU KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%",
                prompt, generation, step.load.running, step.load.waiting, 100.0 * Usage(step.load), hit_rate);
  return line;
}

}  // namespace phalanx::worker
