#include "worker/engine.h"

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
  while (Drain()) {
    if (Step()) continue;
    if (failed_) return;
    inbox_.WaitFor(options_.idle_report);
    // Woken by time or by work: both are a good moment to say how things stand.
    Emit({}, 0, 0, 0);
  }
  AbortAll();
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
  if (!outcome.events.empty()) Emit(std::move(outcome), 0, 0, 0);
  return !items.stop;
}

bool Engine::Step() {
  const double started = Now();
  core::StepPlan plan = scheduler_.Plan(started);
  if (plan.slices.empty()) return false;
  const double planned = Now();
  absl::StatusOr<core::StepResult> result = executor_->Run(plan);
  if (!result.ok()) {
    Fail(result.status());
    return false;
  }
  const double ran = Now();
  plan::StepOutcome outcome = scheduler_.Commit(*result, ran);
  if (options_.check_invariants) CheckLaws(scheduler_);
  Emit(std::move(outcome), plan.num_tokens, planned - started, ran - planned);
  return true;
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
  if (!outcome.events.empty()) Emit(std::move(outcome), 0, 0, 0);
}

void Engine::Fail(const absl::Status& status) {
  failed_ = true;
  stopped_ = true;
  if (callbacks_.on_fatal) callbacks_.on_fatal(std::string(status.message()));
}

}  // namespace phalanx::worker
