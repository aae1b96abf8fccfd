// The registry's text, as Prometheus reads it.
#include "services/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace phalanx::services {
namespace {

using ::testing::HasSubstr;

TEST(Metrics, TextOfEveryKind) {
  MetricRegistry registry(Labels{{"model_name", "org/m"}});
  Counter counter = registry.AddCounter("app:things_total", "Things.", {{"kind", "a"}});
  counter.Add();
  counter.Add(2);
  EXPECT_EQ(counter.value(), 3);
  Gauge gauge = registry.AddGauge("app:level", "Level.");
  gauge.Set(5);
  gauge.Add(-1.5);
  EXPECT_EQ(gauge.value(), 3.5);
  Histogram histogram = registry.AddHistogram("app:seconds", "Seconds.", {0.1, 1});
  for (const double x : {0.05, 0.1, 0.5, 7.0}) histogram.Observe(x);
  const std::string text = registry.Text();
  EXPECT_THAT(text, HasSubstr("# HELP app:things_total Things.\n# TYPE app:things_total counter\n"));
  EXPECT_THAT(text, HasSubstr("app:things_total{kind=\"a\",model_name=\"org/m\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE app:level gauge\napp:level{model_name=\"org/m\"} 3.5\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE app:seconds histogram\n"));
  EXPECT_THAT(text, HasSubstr("app:seconds_count{model_name=\"org/m\"} 4\n"));
  EXPECT_THAT(text, HasSubstr("app:seconds_sum{model_name=\"org/m\"} 7.65"));
  EXPECT_THAT(text, HasSubstr("app:seconds_bucket{model_name=\"org/m\",le=\"0.1\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("app:seconds_bucket{model_name=\"org/m\",le=\"1\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("app:seconds_bucket{model_name=\"org/m\",le=\"+Inf\"} 4\n"));
}

TEST(Metrics, OneFamilyManyLabels) {
  MetricRegistry registry;
  Counter a = registry.AddCounter("x_total", "X.", {{"reason", "stop"}});
  Counter b = registry.AddCounter("x_total", "X.", {{"reason", "le\"ng\\th\n"}});
  a.Add();
  b.Add(2);
  const std::string text = registry.Text();
  EXPECT_EQ(text.find("# TYPE x_total"), text.rfind("# TYPE x_total"));
  EXPECT_THAT(text, HasSubstr("x_total{reason=\"stop\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("x_total{reason=\"le\\\"ng\\\\th\\n\"} 2\n"));
  // The same metric asked for again is the same metric.
  registry.AddCounter("x_total", "X.", {{"reason", "stop"}}).Add();
  EXPECT_EQ(a.value(), 2);
}

TEST(Metrics, DefaultHandlesDropWhatTheyGet) {
  Counter counter;
  Gauge gauge;
  Histogram histogram;
  counter.Add();
  gauge.Set(1);
  histogram.Observe(1);
  EXPECT_EQ(counter.value() + gauge.value(), 0);
}

TEST(Metrics, UpdatesFromManyThreadsAddUp) {
  MetricRegistry registry;
  Counter counter = registry.AddCounter("n_total", "N.");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([counter]() mutable {
      for (int i = 0; i < 10000; ++i) counter.Add();
    });
  }
  for (int i = 0; i < 20; ++i) (void)registry.Text();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter.value(), 40000);
}

TEST(MetricsDeathTest, MalformedNamesAreOurOwnBug) {
  MetricRegistry registry;
  EXPECT_DEATH(registry.AddCounter("not a name", "X."), "not a name");
  EXPECT_DEATH(registry.AddGauge("g", "X.", {{"1bad", "x"}}), "check failed");
}

}  // namespace
}  // namespace phalanx::services
