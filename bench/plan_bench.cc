// What the scheduler costs a step at 256 running sequences: Plan and Commit over made-up results, no device.
//   phalanx-bench-plan [--benchmark_filter=...]
// "decode": all sequences decode, about one in sixteen fills a block in each step. "churn": in addition sequences end and others, which
// share half of their prompt, take their place, about one a step. "blocked": as decode, with a queue that finds no room. "ahead": the
// same with each step planned before the last is committed.
// Goal: below 50 us to plan, a twentieth of a step of a 1.5B model on one GPU.
#include <benchmark/benchmark.h>

#include <chrono>
#include <deque>
#include <random>
#include <vector>

#include "services/check.h"
#include "worker/plan/scheduler.h"

namespace phalanx::worker::plan {
namespace {

constexpr int32_t kRunning = 256;

struct Shape {
  int32_t prompt = 128;
  int32_t max_tokens_low = 0;    // output lengths, uniform
  int32_t max_tokens_high = 0;
  int32_t waiting = 0;           // sequences beyond those that fit
  int32_t steps = 0;             // after so many the scheduler is made anew, outside the timing
  int32_t ahead = 0;             // steps in flight beyond the one that is planned
};

class Load {
 public:
  explicit Load(const Shape& shape) : shape_(shape), scheduler_(Options(shape)) {
    for (int32_t i = 0; i < kRunning + shape.waiting; ++i) Submit();
    while (scheduler_.load().running < kRunning || prefilling_) {
      Plan();
      while (full()) Commit();
    }
  }
  bool worn() const { return steps_ >= shape_.steps; }

  void Plan() {
    core::StepPlan plan = scheduler_.Plan(now_ += 0.001);
    if (!plan.slices.empty()) plans_.push_back(std::move(plan));
  }
  // True if a step has to be committed before the next can be planned.
  bool full() const { return static_cast<int32_t>(plans_.size()) > shape_.ahead; }
  void MakeResult() {
    const core::StepPlan plan = std::move(plans_.front());
    plans_.pop_front();
    result_.step = plan.step;
    result_.slices.clear();
    prefilling_ = false;
    for (const core::Slice& slice : plan.slices) {
      prefilling_ |= !slice.sample;
      if (!slice.sample) continue;
      core::SliceResult& out = result_.slices.emplace_back();
      out.row = slice.row;
      out.sampled = true;
      out.token.id = static_cast<int32_t>(random_() % 50000);
    }
  }
  void Commit() {
    MakeResult();
    CommitOnly();
  }
  void CommitOnly() {
    outcome_ = scheduler_.Commit(result_, now_);
    ++steps_;
  }
  // Outside the timing: the requests that take the place of those that ended.
  void Refill() {
    for (size_t i = 0; i < outcome_.finished.size(); ++i) Submit();
    PHX_CHECK(scheduler_.counters().preemptions == 0);
  }

 private:
  static SchedulerOptions Options(const Shape& shape) {
    SchedulerOptions options;
    options.limits.block_size = 16;
    options.limits.max_rows = kRunning;
    options.limits.max_step_tokens = 2048;
    options.limits.max_model_len = 8192;
    options.limits.vocab_size = 50000;
    options.limits.steps_ahead = shape.ahead;
    options.limits.num_blocks = kRunning * BlocksFor(shape.prompt + shape.max_tokens_high, 16);
    return options;
  }
  void Submit() {
    core::Request request;
    request.id = ++next_id_;
    for (int32_t i = 0; i < shape_.prompt; ++i) {
      request.prompt_ids.push_back(i < shape_.prompt / 2 ? i : static_cast<int32_t>(random_() % 50000));
    }
    request.max_tokens = shape_.max_tokens_low + static_cast<int32_t>(random_() % (shape_.max_tokens_high - shape_.max_tokens_low + 1));
    request.stop_ids = {50001};
    PHX_CHECK(scheduler_.Submit(std::move(request), now_).ok());
  }

  const Shape shape_;
  std::mt19937_64 random_{1};
  Scheduler scheduler_;
  std::deque<core::StepPlan> plans_;   // not committed
  core::StepResult result_;
  StepOutcome outcome_;
  double now_ = 1;
  core::SequenceId next_id_ = 0;
  bool prefilling_ = false;
  int32_t steps_ = 0;
};

constexpr Shape kDecode{.prompt = 128, .max_tokens_low = 4000, .max_tokens_high = 4000, .steps = 3000};
constexpr Shape kChurn{.prompt = 256, .max_tokens_low = 64, .max_tokens_high = 448, .steps = 20000};
constexpr Shape kAhead{.prompt = 128, .max_tokens_low = 4000, .max_tokens_high = 4000, .steps = 3000, .ahead = 1};
constexpr Shape kChurnAhead{.prompt = 256, .max_tokens_low = 64, .max_tokens_high = 448, .steps = 20000, .ahead = 1};
constexpr Shape kBlocked{.prompt = 128, .max_tokens_low = 4000, .max_tokens_high = 4000, .waiting = 500, .steps = 3000};

enum class Part { kPlan, kCommit, kBoth };

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void Measure(benchmark::State& state, const Shape& shape, Part part) {
  auto load = std::make_unique<Load>(shape);
  for (auto _ : state) {
    if (load->worn()) load = std::make_unique<Load>(shape);
    const double begin = Seconds();
    load->Plan();
    const double planned = Seconds();
    load->MakeResult();
    const double made = Seconds();
    load->CommitOnly();
    const double committed = Seconds();
    load->Refill();
    const double plan = planned - begin, commit = committed - made;
    state.SetIterationTime(part == Part::kPlan ? plan : part == Part::kCommit ? commit : plan + commit);
  }
  state.SetItemsProcessed(state.iterations() * kRunning);
}

BENCHMARK_CAPTURE(Measure, decode_plan, kDecode, Part::kPlan)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Measure, decode_commit, kDecode, Part::kCommit)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Measure, decode_both, kDecode, Part::kBoth)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Measure, churn_plan, kChurn, Part::kPlan)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Measure, churn_commit, kChurn, Part::kCommit)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Measure, ahead_plan, kAhead, Part::kPlan)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Measure, ahead_commit, kAhead, Part::kCommit)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Measure, churn_ahead_plan, kChurnAhead, Part::kPlan)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Measure, churn_ahead_commit, kChurnAhead, Part::kCommit)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(Measure, blocked_plan, kBlocked, Part::kPlan)->UseManualTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace phalanx::worker::plan

BENCHMARK_MAIN();
