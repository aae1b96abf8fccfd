// worker/engine.h: the loop of a worker: Drain, Plan, Launch, Collect, Commit, Emit, on one thread of its own.
// Refuses to know: gRPC, who the clients are, how a step is computed. Thread: doors call the Mailbox part from any thread; the
// executor, the scheduler and both callbacks belong to the engine thread.
// Neighbours: worker/plan decides, an executor acts, main connects the reports to worker/rpc.
//
// Where the executor works by itself (info().steps_ahead = 1), step N + 1 is planned and launched while N runs; then N is collected,
// committed and emitted while N + 1 runs. So the device never waits for this thread, and a sequence's results are one step behind its
// work. A request that comes while N runs begins in N + 2; with `plan_late`, planning N + 1 is held back while N is expected to run for
// long, and requests which come meanwhile are in it.
//
// A device error ends the loop for good: `on_fatal` is told why, and the process has to end. The same for a broken law of the ledger,
// which aborts. A row without a valid token fails its own request only.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "services/status.h"
#include "worker/core/executor.h"
#include "worker/core/mailbox.h"
#include "worker/inbox.h"
#include "worker/lookahead.h"
#include "worker/plan/scheduler.h"
#include "worker/step_times.h"

namespace phalanx::worker {

// What one turn of the loop cost and brought, for the metrics.
struct EngineStep {
  core::LoadReport load;
  plan::SchedulerCounters counters;               // totals
  int32_t num_tokens = 0;                         // computed in this step; 0 = nothing ran
  const std::vector<plan::FinishedSequence>* finished = nullptr;
  double plan_seconds = 0;
  double run_seconds = 0;                         // from the launch, or from the end of the step before, to its results
};

struct EngineOptions {
  plan::SchedulerOptions scheduler;               // limits come from the executor
  std::chrono::milliseconds idle_report{1000};
  bool plan_late = false;                         // hold planning ahead back while the step in flight runs (worker/lookahead.h)
  bool check_invariants = false;                  // check the ledger's laws after every step; for tests
};

struct EngineCallbacks {
  std::function<void(core::StepReport&&)> on_report;     // must not block
  std::function<void(const EngineStep&)> on_step;        // may be null
  std::function<void(const std::string&)> on_fatal;      // the loop has ended with this device error
};

class Engine : public core::Mailbox {
 public:
  // `executor` is owned. Start() begins the loop.
  Engine(const EngineOptions& options, std::unique_ptr<core::Executor> executor, EngineCallbacks callbacks);
  ~Engine() override;  // Stop()

  void Start();
  // Ends the loop after the step in flight, aborting what is left, and waits for the thread. Idempotent.
  void Stop();

  absl::Status Submit(core::Request request) override;
  void Cancel(core::SequenceId id) override { inbox_.PushCancel(id); }
  void AddCredit(core::SequenceId id, uint32_t tokens) override { inbox_.PushCredit(id, tokens); }
  void BeginDrain() override;

  bool draining() const { return draining_.load(); }
  // Sequences submitted and not yet ended.
  int64_t live() const { return live_.load(); }
  const core::ExecutorInfo& info() const { return executor_->info(); }

 private:
  void Loop();
  bool Drain();                     // takes the inbox; false = stop
  bool Step();                      // plan and launch one step, collect one; false if neither could be done
  bool HoldBack();                  // waits for work while it is too early to plan ahead; false if it is time
  bool LaunchNext();                // false if nothing can run now, or the device failed
  bool CollectOldest();             // collect, commit, emit; false if the device failed
  bool Prepare();                   // false if nothing is left to prepare, or the device failed
  void Emit(plan::StepOutcome&& outcome, int32_t num_tokens = 0, double plan_seconds = 0, double run_seconds = 0);
  void AbortAll();
  void Fail(const absl::Status& status);

  const EngineOptions options_;
  std::unique_ptr<core::Executor> executor_;
  EngineCallbacks callbacks_;
  plan::Scheduler scheduler_;
  Inbox inbox_;
  std::atomic<bool> draining_{false};
  std::atomic<bool> stopped_{false};
  std::atomic<int64_t> live_{0};
  struct Launched {
    int32_t num_tokens = 0;
    double begun = 0, planned = 0, launched = 0;  // seconds
  };
  std::deque<Launched> in_flight_;  // oldest first
  double collected_ = 0;            // when the last step's results came, seconds
  StepTimes times_;
  Lookahead lookahead_;
  bool failed_ = false;
  std::thread thread_;
};

}  // namespace phalanx::worker
