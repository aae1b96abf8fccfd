#include "router/metrics.h"

#include <gmock/gmock.h>

#include <set>
#include <sstream>

#include "router/metrics_merge.h"

namespace phalanx::router {
namespace {

using testing::HasSubstr;

std::set<std::string> Families(const std::string& text) {
  std::set<std::string> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("# TYPE ", 0) != 0) continue;
    EXPECT_TRUE(out.insert(line.substr(7)).second) << "twice: " << line;
  }
  return out;
}

// Dashboards and autoscalers are built on these names: a change here is a change of the interface.
TEST(RouterMetrics, Names) {
  const RouterMetrics metrics("demo", 2);
  const std::set<std::string> want = {
      "phalanx_router_ready_workers gauge",
      "phalanx_router_requests gauge",
      "phalanx_router_resumes_total counter",
      "phalanx_router_worker_losses_total counter",
      "vllm:admission_rejections_total counter",
      "vllm:e2e_request_latency_seconds histogram",
      "vllm:generation_tokens_total counter",
      "vllm:inter_token_latency_seconds histogram",
      "vllm:prompt_tokens_cached_total counter",
      "vllm:prompt_tokens_total counter",
      "vllm:request_generation_tokens histogram",
      "vllm:request_max_num_generation_tokens histogram",
      "vllm:request_params_max_tokens histogram",
      "vllm:request_params_n histogram",
      "vllm:request_prefill_kv_computed_tokens histogram",
      "vllm:request_prompt_tokens histogram",
      "vllm:request_success_total counter",
      "vllm:request_time_per_output_token_seconds histogram",
      "vllm:time_to_first_token_seconds histogram",
  };
  EXPECT_EQ(Families(metrics.Text()), want);
}

TEST(RouterMetrics, KeepsVllmsBucketsAndAddsFinerOnes) {
  const std::string text = RouterMetrics("demo", 1).Text();
  const std::string labels = "engine=\"0\",model_name=\"demo\",le=\"";
  for (const char* le : {"0.001", "0.002", "0.005", "0.0075", "0.01", "0.02", "0.04", "0.06", "0.08", "0.1", "0.25", "0.5", "0.75", "1",
                         "2.5", "5", "7.5", "10", "20", "40", "80", "160", "640", "2560", "+Inf"}) {
    EXPECT_THAT(text, HasSubstr("vllm:time_to_first_token_seconds_bucket{" + labels + le + "\"} 0"));
  }
  for (const char* le : {"0.001", "0.002", "0.003", "0.005", "0.0075", "0.01", "0.025", "0.05", "0.075", "0.1", "0.15", "0.2", "0.3", "0.4",
                         "0.5", "0.75", "1", "2.5", "5", "7.5", "10", "20", "40", "80"}) {
    EXPECT_THAT(text, HasSubstr("vllm:inter_token_latency_seconds_bucket{" + labels + le + "\"} 0"));
    EXPECT_THAT(text, HasSubstr("vllm:request_time_per_output_token_seconds_bucket{" + labels + le + "\"} 0"));
  }
  for (const char* le : {"0.3", "0.5", "0.8", "1", "1.5", "2", "2.5", "5", "10", "15", "20", "30", "40", "50", "60", "120", "240", "480",
                         "960", "1920", "7680"}) {
    EXPECT_THAT(text, HasSubstr("vllm:e2e_request_latency_seconds_bucket{" + labels + le + "\"} 0"));
  }
}

TEST(RouterMetrics, CountsAChoice) {
  RouterMetrics metrics("demo", 2);
  metrics.Started(1, 100, 64);
  metrics.FirstToken(1, 0.004);
  metrics.Generated(1, 3);
  metrics.Finished(1, {.reason = FinishedReason::kStop, .prompt_tokens = 100, .generation_tokens = 3, .max_tokens = 20, .e2e_seconds = 0.4,
                       .decode_seconds = 0.008});
  metrics.FinishedPrompt(1, 2, 3);
  const std::string text = metrics.Text();
  const std::string labels = "{engine=\"1\",model_name=\"demo\"} ";
  for (const std::string& line :
       {"vllm:prompt_tokens_total" + labels + "100", "vllm:prompt_tokens_cached_total" + labels + "64",
        "vllm:generation_tokens_total" + labels + "3",
        "vllm:request_prefill_kv_computed_tokens_sum" + labels + "36", "vllm:request_params_max_tokens_sum" + labels + "20",
        "vllm:request_params_n_sum" + labels + "2", "vllm:request_max_num_generation_tokens_sum" + labels + "3",
        "vllm:request_time_per_output_token_seconds_sum" + labels + "0.004", "vllm:e2e_request_latency_seconds_sum" + labels + "0.4",
        std::string("vllm:request_success_total{engine=\"1\",finished_reason=\"stop\",model_name=\"demo\"} 1"),
        std::string("vllm:request_success_total{engine=\"0\",finished_reason=\"stop\",model_name=\"demo\"} 0")}) {
    EXPECT_THAT(text, HasSubstr(line + "\n"));
  }
}

TEST(MergeMetrics, OneHeadAFamilyAndSamplesTogether) {
  const std::string a =
      "# HELP x X.\n# TYPE x gauge\nx{engine=\"0\"} 1\n"
      "# HELP h H.\n# TYPE h histogram\nh_bucket{engine=\"0\",le=\"1\"} 0\nh_count{engine=\"0\"} 0\n";
  EXPECT_EQ(MergeMetrics({{"# TYPE own counter\nown 7\n", ""}, {a, "0"}, {a, "1"}}),
            "# TYPE own counter\nown 7\n"
            "# HELP x X.\n# TYPE x gauge\nx{engine=\"0\"} 1\nx{engine=\"1\"} 1\n"
            "# HELP h H.\n# TYPE h histogram\nh_bucket{engine=\"0\",le=\"1\"} 0\nh_count{engine=\"0\"} 0\n"
            "h_bucket{engine=\"1\",le=\"1\"} 0\nh_count{engine=\"1\"} 0\n");
}

TEST(MergeMetrics, SetsTheLabelWhereverItStands) {
  EXPECT_EQ(WithEngine("x{engine=\"0\",a=\"b\"} 1", "2"), "x{engine=\"2\",a=\"b\"} 1");
  EXPECT_EQ(WithEngine("x{a=\"b\",engine=\"0\"} 1", "2"), "x{a=\"b\",engine=\"2\"} 1");
  EXPECT_EQ(WithEngine("x{a=\"b\"} 1", "2"), "x{engine=\"2\",a=\"b\"} 1");
  EXPECT_EQ(WithEngine("x 1", "2"), "x{engine=\"2\"} 1");
  EXPECT_EQ(WithEngine("x{} 1", "2"), "x{engine=\"2\"} 1");
  // A model name that looks like the label.
  EXPECT_EQ(WithEngine(R"(x{a=",engine=\"9\"",engine="0"} 1)", "2"), R"(x{a=",engine=\"9\"",engine="2"} 1)");
}

}  // namespace
}  // namespace phalanx::router
