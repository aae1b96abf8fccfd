// worker/engine.h: the loop of a worker: Drain, Plan, Run, Commit, Emit, on one thread of its own.
// Refuses to know: gRPC, who the clients are, how a step is computed. Thread: doors call the Mailbox part from any thread; the
// executor, the scheduler and both callbacks belong to the engine thread.
// Neighbours: worker/plan decides, an executor acts, main connects the reports to worker/rpc.
//
// A device error ends the loop for good: `on_fatal` is told why, and the process has to end. The same for a broken law of the ledger,
// which aborts. A row without a valid token fails its own request only.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "services/status.h"
#include "worker/core/executor.h"
#include "worker/core/mailbox.h"
#include "worker/inbox.h"
#include "worker/plan/scheduler.h"

namespace phalanx::worker {

// What one turn of the loop cost and brought, for the metrics.
struct EngineStep {
  core::LoadReport load;
  plan::SchedulerCounters counters;               // totals
  int32_t num_tokens = 0;                         // computed in this step; 0 = nothing ran
  const std::vector<plan::FinishedSequence>* finished = nullptr;
  double plan_seconds = 0;
  double run_seconds = 0;
};

struct EngineOptions {
  plan::SchedulerOptions scheduler;               // limits come from the executor
  std::chrono::milliseconds idle_report{1000};
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
  bool Step();                      // plan, run, commit, emit; false if nothing could run
  void Emit(plan::StepOutcome&& outcome, int32_t num_tokens, double plan_seconds, double run_seconds);
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
  bool failed_ = false;
  std::thread thread_;
};

}  // namespace phalanx::worker
