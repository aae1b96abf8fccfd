// worker/core/executor.h: the one interface between the engine loop and whatever runs a step.
// Refuses to know: scheduling. Thread: all calls from the engine thread.
// Neighbours: worker/exec implements it on a kernel table, tests/fakes with a hash, worker/engine.cc calls it.
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
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ExecutorInfo& info() const = 0;
  // Runs one step to its end. An error is a device error: the rank must end. All or nothing.
  virtual absl::StatusOr<StepResult> Run(const StepPlan& plan) = 0;
};

}  // namespace phalanx::worker::core
