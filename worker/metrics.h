// worker/metrics.h: every metric of the worker in one list, under vLLM's names and labels where it has them.
// Refuses to know: how a figure came about. Thread: Record from the engine thread; Text from any.
// Neighbours: services/metrics keeps the registry, worker/engine reports one EngineStep a turn, rpc's GetMetrics serves the text.
//
// What a client sees of a request (TTFT, latency, tokens, success) is counted by the router, which knows requests.
#pragma once

#include <chrono>
#include <string>

#include "services/metrics.h"
#include "worker/engine.h"

namespace phalanx::worker {

struct CacheConfig {
  int32_t block_size = 0;
  int32_t num_blocks = 0;
  bool prefix_caching = true;
  double gpu_memory_utilization = 0;
};

class WorkerMetrics {
 public:
  WorkerMetrics(const std::string& model_name, const CacheConfig& cache);

  void Record(const EngineStep& step);
  std::string Text() const { return registry_.Text(); }

 private:
  services::MetricRegistry registry_;
  services::Gauge running_, waiting_, kv_usage_;
  services::Counter prefix_queries_, prefix_hits_, preemptions_, rejections_, steps_;
  services::Histogram iteration_tokens_, queue_seconds_, prefill_seconds_, decode_seconds_, inference_seconds_, plan_seconds_, step_seconds_;
  plan::SchedulerCounters last_;
};

// One line every ten seconds while there is something to say, in vLLM's words.
class ThroughputLog {
 public:
  // The line to log now, empty if none is due.
  std::string Line(const EngineStep& step, double now_seconds);

 private:
  double last_seconds_ = 0;
  bool was_idle_ = true;
  plan::SchedulerCounters last_;
};

}  // namespace phalanx::worker
