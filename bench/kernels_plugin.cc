#include "bench/kernels_plugin.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/status.h"

namespace phalanx::bench {
namespace {

using kernels::Code;
using kernels::Device;
using kernels::Table;

constexpr double kBatchSeconds = 2e-3;  // long enough for the events' half microsecond not to matter
constexpr int kMostRepeats = 512;       // nodes of one graph

// Two events and, for kGraph, the recorded repeats.
class Watch {
 public:
  Watch(const Table& table, Device* device) : table_(table), device_(device) {}
  ~Watch() {
    if (graph_ != nullptr) table_.graph_destroy(device_, graph_);
    table_.event_destroy(device_, begin_);
    table_.event_destroy(device_, end_);
  }
  Watch(const Watch&) = delete;

  Code Open() {
    if (const Code code = table_.event_create(device_, &begin_); code != kernels::kOk) return code;
    return table_.event_create(device_, &end_);
  }

  Code Record(int repeats, const std::function<Code(int)>& call) {
    Code code = table_.graph_begin(device_, nullptr);
    for (int i = 0; i < repeats && code == kernels::kOk; ++i) code = call(i);
    const Code ended = table_.graph_end(device_, nullptr, &graph_);
    return code != kernels::kOk ? code : ended;
  }

  // Seconds of the recorded graph, or of `repeats` calls.
  Code Time(int repeats, const std::function<Code(int)>& call, double* seconds) {
    Code code = table_.event_record(device_, begin_, nullptr);
    if (graph_ != nullptr) {
      if (code == kernels::kOk) code = table_.graph_launch(device_, graph_, nullptr);
    } else {
      for (int i = 0; i < repeats && code == kernels::kOk; ++i) code = call(i);
    }
    if (code == kernels::kOk) code = table_.event_record(device_, end_, nullptr);
    if (code == kernels::kOk) code = table_.event_wait(device_, end_);
    float ms = 0;
    if (code == kernels::kOk) code = table_.event_elapsed(device_, begin_, end_, &ms);
    *seconds = ms * 1e-3;
    return code;
  }

 private:
  const Table& table_;
  Device* const device_;
  kernels::Event begin_ = nullptr, end_ = nullptr;
  kernels::Graph graph_ = nullptr;
};

}  // namespace

absl::StatusOr<Timing> MeasureOnDevice(const Table& table, Device* device, Launch launch, double budget_s,
                                       const std::function<Code(int)>& call) {
  const auto check = [&](Code code) {
    return code == kernels::kOk ? absl::OkStatus() : absl::InternalError(absl::StrCat("error ", code, ": ", table.last_error(device)));
  };
  if (table.event_elapsed == nullptr) return absl::UnimplementedError(absl::StrCat(table.name, " cannot tell the time between two events"));
  if (launch == Launch::kGraph && table.graph_begin == nullptr) return absl::UnimplementedError(absl::StrCat(table.name, " has no graphs"));
  Watch watch(table, device);
  PHX_RETURN_IF_ERROR(check(watch.Open()));
  double seconds = 0;
  for (int i = 0; i < 2; ++i) PHX_RETURN_IF_ERROR(check(watch.Time(3, call, &seconds)));
  const int repeats = static_cast<int>(std::clamp(std::ceil(kBatchSeconds / (seconds / 3)), 3.0, double{kMostRepeats}));
  if (launch == Launch::kGraph) PHX_RETURN_IF_ERROR(check(watch.Record(repeats, call)));
  std::vector<double> times;
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(budget_s);
  for (int i = 0; i <= 5 || std::chrono::steady_clock::now() < until; ++i) {
    PHX_RETURN_IF_ERROR(check(watch.Time(repeats, call, &seconds)));
    if (i > 0) times.push_back(seconds / repeats);
  }
  std::sort(times.begin(), times.end());
  const size_t last = times.size() - 1;
  return Timing{times[times.size() / 2], times[last / 10], times[last - last / 10], static_cast<int>(times.size()) * repeats};
}

CardRoof FindCardRoof(const std::string& name) {
  if (absl::StrContains(name, "H100 80GB HBM3")) return {3.0e12, 790e12};
  if (absl::StrContains(name, "H200")) return {4.3e12, 790e12};
  return {};
}

}  // namespace phalanx::bench
