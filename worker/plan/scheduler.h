// worker/plan/scheduler.h: decides what each step computes: continuous batching over a token budget, on a ledger of KV blocks.
// Refuses to know: bytes, devices, clocks, threads, gRPC. Thread: the engine thread; time is an argument.
// Neighbours: worker/engine calls Plan and Commit in turn, worker/exec runs what was planned.
//
//   Submit(request, now);
//   while (has_work) { plan = Plan(now); if (plan.slices is empty) wait; else Commit(Run(plan), now) -> events }
//
// Where the device works by itself (limits.steps_ahead), Plan may be called once more before the Commit of the last plan. Sequences then
// decode on from tokens that only the device knows. A sequence known to end with its draw in flight is left out; one that turns out to
// have ended (an end id, an abort, no valid token) may have a slice in the next step, whose result Commit drops.
//
// A block that is given back may be given out by the very next Plan, also while a step in flight still reads or writes it for its former
// holder: steps run in the order of their plans (core/executor.h), so the new holder comes later. For the prefix cache that is no
// argument: it names contents, so a block gets its key only in Commit, when all its tokens are known and computed, and what a dropped
// slice writes lies behind the last computed token, in a block without a key.
//
// Order of a step: running sequences that decode, then running prefills (chunked), then the waiting ones, first come first served.
// A decode that finds no block preempts: first a sequence without credit, else the latest one; it is recomputed later, usually from
// the prefix cache. After such a preemption nobody is admitted in that step. A sequence without credit is not decoded; it keeps its
// blocks until somebody else needs them.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "services/status.h"
#include "worker/core/executor.h"
#include "worker/core/request.h"
#include "worker/core/step.h"
#include "worker/plan/block_pool.h"
#include "worker/plan/sequence.h"

namespace phalanx::worker::plan {

struct SchedulerOptions {
  core::ExecutorInfo limits;       // pool, rows, step tokens, model length
  bool prefix_caching = true;      // look prompts up in the cache and keep full blocks in it
  bool chunked_prefill = true;     // false: a prompt is computed in one step (needs max_step_tokens >= max_model_len)
  int32_t max_waiting = 4096;      // waiting sequences; more are refused
};

// Times of one sequence that ended, in seconds.
struct FinishedSequence {
  core::FinishReason reason = core::FinishReason::kStop;
  int32_t prompt_tokens = 0;
  int32_t output_tokens = 0;
  bool produced = false;           // at least one token was drawn: the four times below are set
  double queue_seconds = 0;        // submitted -> first scheduled
  double prefill_seconds = 0;      // first scheduled -> first token
  double decode_seconds = 0;       // first token -> last token
  double inference_seconds = 0;    // first scheduled -> last token
};

struct StepOutcome {
  std::vector<core::SequenceEvent> events;
  std::vector<FinishedSequence> finished;
};

// Totals since the start; only grow.
struct SchedulerCounters {
  uint64_t steps = 0;
  uint64_t preemptions = 0;
  uint64_t prefix_queries = 0;     // tokens looked up
  uint64_t prefix_hits = 0;        // tokens found
  uint64_t prompt_tokens = 0;      // prompt tokens of sequences that started, hits included
  uint64_t generation_tokens = 0;
  uint64_t rejected = 0;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Can this request ever run here? kInvalidArgument says what does not fit. Depends on the options alone.
  absl::Status CanRun(const core::Request& request) const;
  // Queues a request whose fields were checked at the door. Errors: CanRun's; kResourceExhausted when the queue is full.
  absl::Status Submit(core::Request request, double now);
  // Ends a sequence in any state; frees its blocks at once. What a step in flight brings for it is dropped. False if unknown.
  bool Abort(core::SequenceId id, double now, StepOutcome& outcome);
  void AddCredit(core::SequenceId id, uint32_t tokens);

  // Plans one step; at most `limits.steps_ahead` others are in flight. No slices: nothing can run now, and no Commit is due for it.
  core::StepPlan Plan(double now);
  // Takes the result of the oldest plan in flight.
  StepOutcome Commit(const core::StepResult& result, double now);
  int32_t steps_in_flight() const { return static_cast<int32_t>(in_flight_.size()); }

  core::LoadReport load() const;
  const SchedulerCounters& counters() const { return counters_; }
  bool empty() const { return sequences_.empty(); }
  int32_t last_step_tokens() const { return last_step_tokens_; }
  void ClearPrefixCache() { pool_.ClearKeys(); }
  std::vector<core::SequenceId> ids() const;

 private:
  friend struct Invariants;
  using WaitingList = std::list<Sequence*>;
  struct Flying {                            // a slice of a step in flight
    core::Slice slice;
    Sequence* sequence = nullptr;            // null: it has ended, the result is dropped
    bool on_device = true;                   // false: preempted since; the draw counts, the computed rows do not
  };
  struct FlyingStep {
    uint64_t step = 0;
    std::vector<Flying> slices;
  };

  void PlanRunning(core::StepPlan& plan, bool decodes);
  bool CanPlan(const Sequence& s) const;
  bool AnyEnding() const;
  void PlanWaiting(core::StepPlan& plan, double now);
  bool Admit(Sequence& s, core::StepPlan& plan, double now);
  int32_t FindPrefix(Sequence& s);
  int32_t Reserved() const;
  int32_t ChunkFor(const Sequence& s) const;
  bool MakeRoom(Sequence& s, int32_t tokens);
  Sequence* PickVictim(bool stalled_only);
  void Preempt(Sequence& s);
  void AddSlice(Sequence& s, int32_t count, core::StepPlan& plan);
  void GiveBlocks(Sequence& s, int32_t tokens, core::StepPlan& plan);
  void ReleaseDevice(Sequence& s);
  template <typename Change>
  void ForFlying(Sequence& s, Change change);
  void CompactRunning();
  void CommitSlice(const Flying& flying, const core::SliceResult* result, double now, StepOutcome& outcome);
  void KeepFullBlocks(Sequence& s);
  bool TakeToken(Sequence& s, const core::SliceResult& result, core::SequenceEvent& event, double now);
  void TakePromptLogprobs(Sequence& s, const core::Slice& slice, const core::SliceResult& result, core::SequenceEvent& event);
  void Finish(Sequence& s, core::FinishReason reason, double now, StepOutcome& outcome);
  void SetWaitingTokens(Sequence& s, int64_t tokens);
  core::SequenceEvent StartEvent(Sequence& s);

  const SchedulerOptions options_;
  const int32_t block_size_;
  BlockHasher hasher_;
  BlockPool pool_;
  absl::flat_hash_map<core::SequenceId, std::unique_ptr<Sequence>> sequences_;
  WaitingList waiting_;
  std::vector<Sequence*> running_;           // by admission
  std::vector<Sequence*> row_owner_;         // [max_rows]
  std::vector<int32_t> free_rows_;           // stack
  std::vector<int32_t> removed_rows_;        // given back since the last plan with slices
  std::vector<FlyingStep> in_flight_;        // oldest first, at most 1 + steps_ahead
  uint64_t planning_ = 0;                    // number of the step being planned
  int32_t budget_ = 0;                       // tokens left in the step being planned
  bool preempted_ = false;                   // for want of a block, in the step being planned
  int64_t waiting_tokens_ = 0;
  int32_t last_step_tokens_ = 0;
  SchedulerCounters counters_;
};

}  // namespace phalanx::worker::plan
