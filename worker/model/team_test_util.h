// worker/model/team_test_util.h: ranks that are threads of a test, with a group and a device each.
// Refuses to know: what is being proved. Thread: the test's makes it; each rank's group and device are then used by one thread.
// Neighbours: tests of worker/model and worker/exec; worker/tp/tp_test_util.h lets the ranks meet.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "worker/model/model_test_util.h"
#include "worker/tp/gloo_group.h"
#include "worker/tp/tp_test_util.h"

namespace phalanx::worker::model {

class Team {
 public:
  // The limit of a sum is long: a test machine may be busy.
  explicit Team(int size, const kernels::Table& table = *kernels::CpuTable(), int collective_timeout_ms = 30000)
      : controls_(tp::MakeControls(size)), groups_(size) {
    OnAll([&](int rank) {
      auto group = tp::MakeGlooGroup(*controls_[rank], {.collective_timeout_ms = collective_timeout_ms});
      EXPECT_TRUE(group.ok()) << group.status();
      if (group.ok()) groups_[rank] = *std::move(group);
    });
    for (int rank = 0; rank < size; ++rank) {
      devices_.push_back(std::make_unique<TestDevice>(table, kernels::DeviceOptions{.num_threads = 1}));
    }
  }
  int size() const { return static_cast<int>(groups_.size()); }
  tp::Group* group(int rank) const { return groups_[rank].get(); }
  const TestDevice& device(int rank) const { return *devices_[rank]; }
  // Runs `action(rank)` on a thread a rank and waits for all.
  void OnAll(const std::function<void(int)>& action) const { tp::OnAllRanks(size(), action); }

 private:
  std::vector<std::unique_ptr<tp::Control>> controls_;
  std::vector<std::unique_ptr<tp::Group>> groups_;
  std::vector<std::unique_ptr<TestDevice>> devices_;
};

}  // namespace phalanx::worker::model
