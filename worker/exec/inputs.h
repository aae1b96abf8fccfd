// worker/exec/inputs.h: a plan's slices as the index arrays that a forward pass reads.
// Refuses to know: sampling options, weights. Thread: the engine thread.
// Neighbours: rows.h has the block tables, staging.h the memory, executor.cc hands the result to the model.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "worker/core/step.h"
#include "worker/exec/rows.h"
#include "worker/exec/staging.h"

namespace phalanx::worker::exec {

// A row of the step whose logits are wanted, and why. All sampled rows come first, then prompt rows, each in the plan's order.
struct WantedRow {
  int32_t slice = 0;          // index in StepPlan.slices
  int32_t position = 0;       // of the id that the logits speak about
  int32_t prompt_id = -1;     // that id, for a prompt logprob; -1 = it is to be drawn
};

struct StepInputs {
  int32_t* token_ids = nullptr;          // [num_tokens], device memory
  const int32_t* from = nullptr;         // [num_tokens], device memory: which draw of the launch before is the row's id; -1: it is there
  bool takes = false;                    // some row's id comes from that launch
  kernels::StepLayout layout{};
  const int32_t* logit_rows = nullptr;   // [wanted], device memory
};

// A decode step filled up to a shape that recurs: rows that write nowhere and whose results nobody reads, and a context that bounds the
// real ones. Then the arrays lie where they lay for the last step of this shape.
struct Padding {
  int32_t rows = 0;           // at least the plan's; 0 = none
  int32_t context = 0;        // tokens; at least the plan's longest sequence
};

class InputBuilder {
 public:
  InputBuilder(int32_t max_tokens, int32_t block_size);
  // What the arrays of the largest step take of a Staging. `max_blocks`: blocks of the longest sequence.
  static uint64_t StagingBytes(int32_t max_tokens, int32_t max_rows, int32_t max_blocks);

  // Places and fills the arrays of one step, to be uploaded by the caller. Padding is for plans of one row a sequence, or of none.
  StepInputs Build(const core::StepPlan& plan, const RowTable& rows, const Padding& padding, Staging* staging);
  const std::vector<WantedRow>& wanted() const { return wanted_; }
  int32_t num_sampled() const { return num_sampled_; }

 private:
  void FillTokens(const core::StepPlan& plan, const RowTable& rows, int32_t tokens, Staging* staging, StepInputs* inputs) const;
  void FillWanted(const core::StepPlan& plan, const RowTable& rows);

  const int32_t max_tokens_;
  const int32_t block_size_;
  std::vector<WantedRow> wanted_;
  std::vector<int32_t> logit_rows_;   // of `wanted_`
  int32_t num_sampled_ = 0;
};

}  // namespace phalanx::worker::exec
