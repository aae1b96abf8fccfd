#include "worker/engine.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include "services/check.h"
#include "worker/plan/invariants.h"

namespace phalanx::worker {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

plan::SchedulerOptions WithLimits(plan::SchedulerOptions options, const core::ExecutorInfo& limits) {
  options.limits = limits;
  return options;
}

// A broken law is our own bug: the process must not go on serving with a ledger that lies.
void CheckLaws(const plan::Scheduler& scheduler) {
  const std::string broken = plan::Invariants::Check(scheduler);
  if (!broken.empty()) std::fprintf(stderr, "ledger: %s\n", broken.c_str());
  PHX_CHECK(broken.empty());
}

core::SequenceEvent Ended(core::SequenceId id, core::FinishReason reason, std::string error) {
  core::SequenceEvent event;
  event.id = id;
  event.finished = true;
  event.reason = reason;
  event.error = std::move(error);
  return event;
}

}  // namespace

Engine::Engine(const EngineOptions& options, std::unique_ptr<core::Executor> executor, EngineCallbacks callbacks)
    : options_(options),
      executor_(std::move(executor)),
      callbacks_(std::move(callbacks)),
      scheduler_(WithLimits(options.scheduler, executor_->info())),
      inbox_(static_cast<size_t>(options.scheduler.max_waiting)) {}

Engine::~Engine() { Stop(); }

void Engine::Start() {
  PHX_CHECK(!thread_.joinable());
  thread_ = std::thread([this] { Loop(); });
}

void Engine::Stop() {
  stopped_ = true;
  inbox_.PushStop();
  if (thread_.joinable()) thread_.join();
}

void Engine::BeginDrain() {
  draining_ = true;
  inbox_.Wake();
}

absl::Status Engine::Submit(core::Request request) {
  if (draining_ || stopped_) return absl::UnavailableError("the worker is draining");
  PHX_RETURN_IF_ERROR(scheduler_.CanRun(request));  // reads constants only
  const int64_t limit = int64_t{options_.scheduler.max_waiting} + executor_->info().max_rows;
  if (live_.fetch_add(1) >= limit) {
    live_.fetch_sub(1);
    return absl::ResourceExhaustedError("the worker's queue is full");
  }
  absl::Status pushed = inbox_.PushRequest(std::move(request));
  if (!pushed.ok()) live_.fetch_sub(1);
  return pushed;
}

void Engine::Loop() {
  bool quiet = false;  // a whole wait has brought no work
  while (Drain()) {
    if (HoldBack()) continue;
    if (Step()) {
      quiet = false;
      continue;
    }
    if (failed_) return;
    // Preparing may keep a request waiting for some milliseconds, so it begins once nobody seems to come.
    if (quiet && Prepare()) continue;
    if (failed_) return;
    inbox_.WaitFor(options_.idle_report);
    quiet = true;
    // Woken by time or by work: both are a good moment to say how things stand.
    Emit({});
  }
  while (!in_flight_.empty() && CollectOldest()) continue;
  if (!failed_) AbortAll();
}

bool Engine::Drain() {
  InboxItems items = inbox_.Take();
  if (items.empty()) return true;
  const double now = Now();
  plan::StepOutcome outcome;
  for (core::Request& request : items.requests) {
    const core::SequenceId id = request.id;
    absl::Status accepted = scheduler_.Submit(std::move(request), now);
    if (!accepted.ok()) {
      outcome.events.push_back(Ended(id, core::FinishReason::kError, std::string(accepted.message())));
      outcome.events.back().reject_code = static_cast<int32_t>(accepted.code());
    }
  }
  for (const auto& [id, tokens] : items.credit) scheduler_.AddCredit(id, tokens);
  for (core::SequenceId id : items.cancels) scheduler_.Abort(id, now, outcome);
  if (!outcome.events.empty()) Emit(std::move(outcome));
  return !items.stop;
}

bool Engine::Step() {
  const bool launched = LaunchNext();
  if (failed_) return false;
  if (launched && static_cast<int32_t>(in_flight_.size()) <= executor_->info().steps_ahead) return true;
  return !in_flight_.empty() && CollectOldest();
}

bool Engine::HoldBack() {
  if (!options_.plan_late || in_flight_.size() != 1 || executor_->info().steps_ahead == 0) return false;
  const Launched& step = in_flight_.front();
  const double wait = std::max(step.launched, collected_) + lookahead_.Delay(step.num_tokens) - Now();
  if (wait <= 0) return false;
  inbox_.WaitFor(std::chrono::nanoseconds(static_cast<int64_t>(wait * 1e9)));
  return true;
}

bool Engine::LaunchNext() {
  Launched step;
  step.begun = Now();
  core::StepPlan plan;
  {
    core::Range range(*executor_, "plan");
    plan = scheduler_.Plan(step.begun);
  }
  if (options_.check_invariants) CheckLaws(scheduler_);
  if (plan.slices.empty()) return false;
  step.planned = Now();
  step.num_tokens = plan.num_tokens;
  core::Range range(*executor_, "launch");
  if (const absl::Status launched = executor_->Launch(plan); !launched.ok()) {
    Fail(launched);
    return false;
  }
  step.launched = Now();
  in_flight_.push_back(step);
  return true;
}

bool Engine::CollectOldest() {
  const Launched step = in_flight_.front();
  in_flight_.pop_front();
  const double begun = Now();
  absl::StatusOr<core::StepResult> result;
  {
    core::Range range(*executor_, "collect");
    result = executor_->Collect();
  }
  if (!result.ok()) {
    Fail(result.status());
    return false;
  }
  const double collected = Now();
  core::Range range(*executor_, "commit and emit");
  plan::StepOutcome outcome = scheduler_.Commit(*result, collected);
  if (options_.check_invariants) CheckLaws(scheduler_);
  const double committed = Now();
  const double run_seconds = collected - std::max(step.planned, collected_);
  Emit(std::move(outcome), step.num_tokens, step.planned - step.begun, run_seconds);
  lookahead_.Add(step.num_tokens, run_seconds, step.launched - step.begun);
  collected_ = collected;
  if (times_.wanted()) {
    times_.Add({step.num_tokens, step.planned - step.begun, step.launched - step.planned, collected - begun, committed - collected,
                Now() - committed, result->device_ms * 1e-3, result->sample_ms * 1e-3});
  }
  return true;
}

bool Engine::Prepare() {
  const absl::StatusOr<bool> more = executor_->Prepare();
  if (!more.ok()) Fail(more.status());
  return more.ok() && *more;
}

void Engine::Emit(plan::StepOutcome&& outcome, int32_t num_tokens, double plan_seconds, double run_seconds) {
  core::StepReport report;
  report.load = scheduler_.load();
  report.load.draining = draining_;
  report.step = report.load.steps;
  report.events = std::move(outcome.events);
  int64_t ended = 0;
  for (const core::SequenceEvent& event : report.events) ended += event.finished;
  if (callbacks_.on_step) {
    EngineStep step{report.load, scheduler_.counters(), num_tokens, &outcome.finished, plan_seconds, run_seconds};
    callbacks_.on_step(step);
  }
  if (callbacks_.on_report) callbacks_.on_report(std::move(report));
  live_.fetch_sub(ended);
}

void Engine::AbortAll() {
  plan::StepOutcome outcome;
  for (core::SequenceId id : scheduler_.ids()) scheduler_.Abort(id, Now(), outcome);
  // Requests that came after the last look never ran.
  for (const core::Request& request : inbox_.Take().requests) {
    outcome.events.push_back(Ended(request.id, core::FinishReason::kAbort, ""));
  }
  if (!outcome.events.empty()) Emit(std::move(outcome));
}

void Engine::Fail(const absl::Status& status) {
  failed_ = true;
  stopped_ = true;
  if (callbacks_.on_fatal) callbacks_.on_fatal(std::string(status.message()));
}

}  // namespace phalanx::worker
