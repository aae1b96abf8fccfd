// services/metrics.h: a metrics registry and its Prometheus text, over prometheus-cpp.
// Refuses to know: any named metric. Thread: any; updates take no lock of ours.
// Neighbours: each process declares its metrics in one list (its own metrics.h) and updates them in one place.
// Only this file's source and admin_http.cc include prometheus-cpp.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
class Registry;
}  // namespace prometheus

namespace phalanx::services {

// Handles: cheap to copy, valid while the registry lives. A default-made one drops what it is given.
class Counter {
 public:
  Counter() = default;
  explicit Counter(prometheus::Counter* counter) : counter_(counter) {}
  void Add(double amount = 1);  // amount >= 0
  double value() const;

 private:
  prometheus::Counter* counter_ = nullptr;
};

class Gauge {
 public:
  Gauge() = default;
  explicit Gauge(prometheus::Gauge* gauge) : gauge_(gauge) {}
  void Set(double value);
  void Add(double amount);
  double value() const;

 private:
  prometheus::Gauge* gauge_ = nullptr;
};

class Histogram {
 public:
  Histogram() = default;
  explicit Histogram(prometheus::Histogram* histogram) : histogram_(histogram) {}
  void Observe(double value);

 private:
  prometheus::Histogram* histogram_ = nullptr;
};

using Labels = std::map<std::string, std::string>;

class MetricRegistry {
 public:
  // `common` labels stand on every metric.
  explicit MetricRegistry(Labels common = {});
  ~MetricRegistry();

  // Names are written as given: a counter's must end in _total. The same name with other labels is the same family.
  // A malformed name or label is our own bug and ends the process.
  Counter AddCounter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge AddGauge(const std::string& name, const std::string& help, const Labels& labels = {});
  // `bounds`: rising upper bounds of the buckets, without +Inf.
  Histogram AddHistogram(const std::string& name, const std::string& help, const std::vector<double>& bounds,
                         const Labels& labels = {});

  // Prometheus text exposition 0.0.4 of everything.
  std::string Text() const;

 private:
  Labels Join(const Labels& labels) const;
  const Labels common_;
  const std::unique_ptr<prometheus::Registry> registry_;
};

}  // namespace phalanx::services
