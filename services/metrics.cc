#include "services/metrics.h"

#include <exception>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include "services/check.h"

namespace phalanx::services {

void Counter::Add(double amount) {
  if (counter_ != nullptr) counter_->Increment(amount);
}
double Counter::value() const { return counter_ == nullptr ? 0 : counter_->Value(); }

void Gauge::Set(double value) {
  if (gauge_ != nullptr) gauge_->Set(value);
}
void Gauge::Add(double amount) {
  if (gauge_ != nullptr) gauge_->Increment(amount);
}
double Gauge::value() const { return gauge_ == nullptr ? 0 : gauge_->Value(); }

void Histogram::Observe(double value) {
  if (histogram_ != nullptr) histogram_->Observe(value);
}

// Merge: a family asked for twice is the same family.
MetricRegistry::MetricRegistry(Labels common)
    : common_(std::move(common)), registry_(std::make_unique<prometheus::Registry>(prometheus::Registry::InsertBehavior::Merge)) {}
MetricRegistry::~MetricRegistry() = default;

Labels MetricRegistry::Join(const Labels& labels) const {
  Labels all = common_;
  for (const auto& [name, value] : labels) all[name] = value;
  return all;
}

Counter MetricRegistry::AddCounter(const std::string& name, const std::string& help, const Labels& labels) {
  try {
    return Counter(&prometheus::BuildCounter().Name(name).Help(help).Register(*registry_).Add(Join(labels)));
  } catch (const std::exception&) {
    CheckFailed(__FILE__, __LINE__, name.c_str());
  }
}

Gauge MetricRegistry::AddGauge(const std::string& name, const std::string& help, const Labels& labels) {
  try {
    return Gauge(&prometheus::BuildGauge().Name(name).Help(help).Register(*registry_).Add(Join(labels)));
  } catch (const std::exception&) {
    CheckFailed(__FILE__, __LINE__, name.c_str());
  }
}

Histogram MetricRegistry::AddHistogram(const std::string& name, const std::string& help, const std::vector<double>& bounds,
                                       const Labels& labels) {
  try {
    return Histogram(&prometheus::BuildHistogram().Name(name).Help(help).Register(*registry_).Add(Join(labels), bounds));
  } catch (const std::exception&) {
    CheckFailed(__FILE__, __LINE__, name.c_str());
  }
}

std::string MetricRegistry::Text() const { return prometheus::TextSerializer().Serialize(registry_->Collect()); }

}  // namespace phalanx::services
