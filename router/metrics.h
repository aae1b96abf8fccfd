// router/metrics.h: every metric of the router in one list, under vLLM's names and labels where it has them: what clients see of requests.
// Refuses to know: how a figure came about. Thread: any. Neighbours: dispatch.h and relay.h report, metrics_merge.h joins the workers' own.
//
// As in vLLM the figures of a request are counted once for each of its choices, and `engine` is the worker's place in the fleet.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "services/metrics.h"

namespace phalanx::router {

enum class FinishedReason : uint8_t { kStop, kLength, kAbort, kError };
const char* FinishedReasonName(FinishedReason reason);

// One choice at its end.
struct FinishedChoice {
  FinishedReason reason = FinishedReason::kStop;
  int32_t prompt_tokens = 0;
  int32_t generation_tokens = 0;
  int32_t max_tokens = 0;                    // what the client asked for; 0 = nothing
  double e2e_seconds = 0;                    // since the request arrived
  double decode_seconds = 0;                 // first to last token
};

class RouterMetrics {
 public:
  RouterMetrics(const std::string& model_name, int engines);

  void Started(int engine, int32_t prompt_tokens, int32_t cached_tokens);
  void FirstToken(int engine, double seconds) { engines_[engine].ttft.Observe(seconds); }
  void NextTokens(int engine, double seconds) { engines_[engine].inter_token.Observe(seconds); }
  void Generated(int engine, size_t tokens) { engines_[engine].generation_tokens.Add(static_cast<double>(tokens)); }
  void Finished(int engine, const FinishedChoice& choice);
  // All choices of one prompt are over.
  void FinishedPrompt(int engine, int32_t n, int32_t max_generation_tokens);

  void Refused() { refused_.Add(); }         // by admission
  void WorkerLost() { losses_.Add(); }       // under one request
  void Resumed() { resumes_.Add(); }         // a sequence sent again after a loss
  void SetRequests(int64_t requests) { requests_.Set(static_cast<double>(requests)); }
  void SetReadyWorkers(int workers) { ready_workers_.Set(workers); }

  std::string Text() const { return registry_.Text(); }

 private:
  struct Engine {
    services::Histogram ttft, inter_token, per_output_token, e2e;
    services::Histogram request_prompt_tokens, request_generation_tokens, request_max_generation_tokens, params_max_tokens, params_n;
    services::Histogram prefill_computed;
    services::Counter prompt_tokens, prompt_tokens_cached, generation_tokens;
    services::Counter success[4];            // by FinishedReason
  };
  Engine AddEngine(int number);

  services::MetricRegistry registry_;
  std::vector<Engine> engines_;
  services::Counter refused_, losses_, resumes_;
  services::Gauge requests_, ready_workers_;
};

}  // namespace phalanx::router
