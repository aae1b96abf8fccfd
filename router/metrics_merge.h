// router/metrics_merge.h: several processes' Prometheus texts as one: each family's HELP and TYPE once, samples told apart by `engine`.
// Refuses to know: any metric. Thread: pure functions. Neighbours: relay.h joins its own text with the workers'.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace phalanx::router {

struct MetricsText {
  std::string text;
  std::string engine;                        // what the `engine` label of every sample becomes; "" = labels stay as they are
};

// Families in the order they are first met; a family's HELP and TYPE are those of the first text that has it.
std::string MergeMetrics(const std::vector<MetricsText>& texts);

// One sample line with its `engine` label set.
std::string WithEngine(std::string_view sample, std::string_view engine);

}  // namespace phalanx::router
