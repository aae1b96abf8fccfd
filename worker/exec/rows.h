// worker/exec/rows.h: what exec remembers of each sequence between steps: its block table, last token and sampling options.
// Refuses to know: why a sequence was chosen; the bytes of a block. Thread: the engine thread.
// Neighbours: executor.cc applies plans, inputs.cc and sampler.cc read rows.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/core/step.h"

namespace phalanx::worker::exec {

struct Row {
  bool used = false;
  core::AddedSequence sequence;       // `output_ids` grows with every sampled token while `keeps_outputs`
  bool keeps_outputs = false;         // bad words look back at outputs
  int32_t last_token = -1;            // the last sampled id; -1 before the first
  std::vector<int32_t> blocks;        // block ids, in order of position
};

class RowTable {
 public:
  RowTable(int32_t max_rows, int32_t num_blocks, int32_t block_size);
  // Takes `removed`, `added` and `new_blocks` in, in this order. Breaking the plan's laws is our bug and dies here.
  void Apply(const core::StepPlan& plan);
  void SetLastToken(int32_t row, int32_t id);
  const Row& at(int32_t row) const { return rows_[row]; }
  int32_t max_rows() const { return static_cast<int32_t>(rows_.size()); }

 private:
  std::vector<Row> rows_;
  const int32_t num_blocks_;
  const int32_t block_size_;
};

}  // namespace phalanx::worker::exec
