#include "router/metrics.h"

#include "absl/strings/str_cat.h"

namespace phalanx::router {
namespace {

// vLLM's buckets, with finer ones below: small models answer in a few milliseconds.
const std::vector<double> kFirstToken = {0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,
                                         0.75,  1,     2.5,   5,     7.5,    10,   20,   40,   80,   160,  640, 2560};
const std::vector<double> kTokenGap = {0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
                                       0.3,   0.4,   0.5,   0.75,  1,      2.5,  5,     7.5,  10,    20,  40,   80};
const std::vector<double> kRequestSeconds = {0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1,   1.5, 2,   2.5,  5,
                                             10,   15,    20,   30,  40,  50,  60,  120, 240, 480, 960, 1920, 7680};
const std::vector<double> kChoices = {1, 2, 5, 10, 20};
// vLLM ends its 1-2-5 row at the model's context; ours is the same for every model.
const std::vector<double> kTokens = {1,    2,    5,     10,    20,    50,     100,    200,    500,
                                     1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};

constexpr FinishedReason kReasons[] = {FinishedReason::kStop, FinishedReason::kLength, FinishedReason::kAbort, FinishedReason::kError};

}  // namespace

const char* FinishedReasonName(FinishedReason reason) {
  switch (reason) {
    case FinishedReason::kStop: return "stop";
    case FinishedReason::kLength: return "length";
    case FinishedReason::kAbort: return "abort";
    case FinishedReason::kError: return "error";
  }
  return "error";
}

RouterMetrics::RouterMetrics(const std::string& model_name, int engines) : registry_({{"model_name", model_name}}) {
  for (int i = 0; i < engines; ++i) engines_.push_back(AddEngine(i));
  refused_ =
      registry_.AddCounter("vllm:admission_rejections_total", "Requests refused before any work was spent on them.", {{"engine", "0"}});
  losses_ = registry_.AddCounter("phalanx_router_worker_losses_total", "Times that a worker was lost under a request.");
  resumes_ = registry_.AddCounter("phalanx_router_resumes_total", "Sequences sent to a worker again after a loss.");
  requests_ = registry_.AddGauge("phalanx_router_requests", "Requests in the router: being encoded, waiting or running.");
  ready_workers_ = registry_.AddGauge("phalanx_router_ready_workers", "Workers that take sequences now.");
}

RouterMetrics::Engine RouterMetrics::AddEngine(int number) {
  auto& r = registry_;
  const services::Labels on = {{"engine", absl::StrCat(number)}};
  Engine e;
  e.ttft = r.AddHistogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", kFirstToken, on);
  e.inter_token = r.AddHistogram("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", kTokenGap, on);
  e.per_output_token = r.AddHistogram("vllm:request_time_per_output_token_seconds",
                                      "Histogram of time per output token of a request, after its first, in seconds.", kTokenGap, on);
  e.e2e = r.AddHistogram("vllm:e2e_request_latency_seconds", "Histogram of end-to-end request latency in seconds.", kRequestSeconds, on);
  e.request_prompt_tokens = r.AddHistogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.", kTokens, on);
  e.request_generation_tokens = r.AddHistogram("vllm:request_generation_tokens", "Number of generation tokens processed.", kTokens, on);
  e.request_max_generation_tokens = r.AddHistogram("vllm:request_max_num_generation_tokens",
                                                   "Histogram of the most tokens generated over a request's choices.", kTokens, on);
  e.params_max_tokens = r.AddHistogram("vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", kTokens, on);
  e.params_n = r.AddHistogram("vllm:request_params_n", "Histogram of the n request parameter.", kChoices, on);
  e.prefill_computed = r.AddHistogram("vllm:request_prefill_kv_computed_tokens",
                                      "Histogram of prompt tokens computed, those found in the prefix cache not counted.", kTokens, on);
  e.prompt_tokens = r.AddCounter("vllm:prompt_tokens_total", "Number of prefill tokens processed.", on);
  e.prompt_tokens_cached = r.AddCounter("vllm:prompt_tokens_cached_total", "Number of prompt tokens found in the prefix cache.", on);
  e.generation_tokens = r.AddCounter("vllm:generation_tokens_total", "Number of generation tokens processed.", on);
  for (const FinishedReason reason : kReasons) {
    services::Labels labels = on;
    labels["finished_reason"] = FinishedReasonName(reason);
    e.success[static_cast<size_t>(reason)] =
        r.AddCounter("vllm:request_success_total", "Count of successfully processed requests.", labels);
  }
  return e;
}

void RouterMetrics::Started(int engine, int32_t prompt_tokens, int32_t cached_tokens) {
  Engine& e = engines_[engine];
  e.prompt_tokens.Add(prompt_tokens);
  e.prompt_tokens_cached.Add(cached_tokens);
  e.prefill_computed.Observe(prompt_tokens - cached_tokens);
}

void RouterMetrics::Finished(int engine, const FinishedChoice& choice) {
  Engine& e = engines_[engine];
  e.success[static_cast<size_t>(choice.reason)].Add();
  e.e2e.Observe(choice.e2e_seconds);
  e.request_prompt_tokens.Observe(choice.prompt_tokens);
  e.request_generation_tokens.Observe(choice.generation_tokens);
  if (choice.max_tokens > 0) e.params_max_tokens.Observe(choice.max_tokens);
  if (choice.generation_tokens > 1) e.per_output_token.Observe(choice.decode_seconds / (choice.generation_tokens - 1));
}

void RouterMetrics::FinishedPrompt(int engine, int32_t n, int32_t max_generation_tokens) {
  engines_[engine].params_n.Observe(n);
  engines_[engine].request_max_generation_tokens.Observe(max_generation_tokens);
}

}  // namespace phalanx::router
