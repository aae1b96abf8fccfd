// worker/exec/inputs.h: a plan's slices as the index arrays that a forward pass reads, in one upload.
// Refuses to know: sampling options, weights. Thread: the engine thread.
// Neighbours: rows.h has the block tables, executor.cc hands the result to the model.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "services/status.h"
#include "worker/core/step.h"
#include "worker/exec/rows.h"
#include "worker/model/device.h"

namespace phalanx::worker::exec {

// A row of the step whose logits are wanted, and why. All sampled rows come first, then prompt rows, each in the plan's order.
struct WantedRow {
  int32_t slice = 0;          // index in StepPlan.slices
  int32_t position = 0;       // of the id that the logits speak about
  int32_t prompt_id = -1;     // that id, for a prompt logprob; -1 = it is to be drawn
};

struct StepInputs {
  const int32_t* token_ids = nullptr;    // [num_tokens], device memory
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
  // All memory is taken here. `max_blocks`: blocks of the longest sequence.
  static absl::StatusOr<InputBuilder> Create(const kernels::Table& table, kernels::Device* device, int32_t max_tokens, int32_t max_rows,
                                             int32_t max_blocks, int32_t block_size, model::DeviceMemory* memory);

  // Fills and uploads the arrays of one step. Valid until the next call. Padding is for plans of one row a sequence.
  absl::StatusOr<StepInputs> Build(const core::StepPlan& plan, const RowTable& rows, const Padding& padding = {});
  const std::vector<WantedRow>& wanted() const { return wanted_; }
  int32_t num_sampled() const { return num_sampled_; }

 private:
  InputBuilder(const kernels::Table& table, kernels::Device* device, int32_t block_size)
      : table_(&table), device_(device), block_size_(block_size) {}
  void FillTokens(const core::StepPlan& plan, const RowTable& rows, int32_t tokens);
  void FillWanted(const core::StepPlan& plan, const RowTable& rows, int32_t* logit_rows);

  const kernels::Table* table_;
  kernels::Device* device_;
  int32_t block_size_;
  int32_t max_tokens_ = 0;
  int32_t* host_ = nullptr;     // staging of the arrays below, one after another
  int32_t* on_device_ = nullptr;
  std::vector<WantedRow> wanted_;
  int32_t num_sampled_ = 0;
};

}  // namespace phalanx::worker::exec
