// worker/core/executor.h: the one interface between the engine loop and whatever runs a step.
// Refuses to know: scheduling. Thread: all calls from the engine thread.
// Neighbours: worker/exec implements it on a kernel table, tests/fakes with a hash, worker/engine.cc calls it.
//
// Steps run in the order of their launches, each after all work of the one before. So a block that changed hands between two plans is
// written by its new owner after the last access of the old one, and a token drawn in one step is there for the next.
#pragma once

#include "services/status.h"
#include "worker/core/step.h"

namespace phalanx::worker::core {

// What the scheduler must know about the model and the memory behind an executor.
struct ExecutorInfo {
  int32_t num_blocks = 0;        // KV blocks in the pool
  int32_t block_size = 16;       // tokens a block
  int32_t max_rows = 0;          // sequences at once (max_num_seqs)
  int32_t max_step_tokens = 0;   // largest num_tokens of a plan (max_num_batched_tokens)
  int32_t max_model_len = 0;     // prompt + output tokens of one sequence
  int32_t vocab_size = 0;        // ids that may be sent or drawn: the logits' width
  int32_t steps_ahead = 0;       // steps that may be launched before the oldest is collected: 0, or 1 where the device works by itself
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ExecutorInfo& info() const = 0;
  // Starts one step. At most `steps_ahead` others are launched and not collected. Does not wait for the device. An error is a device
  // error, here and in Collect: the rank must end. All or nothing.
  virtual absl::Status Launch(const StepPlan& plan) = 0;
  // Waits for the oldest step that was launched and gives its result. There must be one.
  virtual absl::StatusOr<StepResult> Collect() = 0;
  // A piece of work that makes later steps quicker, some milliseconds long; false = nothing is left to prepare. With no step in flight.
  virtual absl::StatusOr<bool> Prepare() { return false; }
  // Named ranges for a profiler, nested; nothing where there is none.
  virtual void RangePush(const char* /*name*/) {}
  virtual void RangePop() {}

  // One step from its start to its end, with none in flight.
  absl::StatusOr<StepResult> Run(const StepPlan& plan) {
    PHX_RETURN_IF_ERROR(Launch(plan));
    return Collect();
  }
};

// A profiler's range as long as a scope.
class Range {
 public:
  Range(Executor& executor, const char* name) : executor_(executor) { executor_.RangePush(name); }
  ~Range() { executor_.RangePop(); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  Executor& executor_;
};

}  // namespace phalanx::worker::core
