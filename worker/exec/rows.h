// worker/exec/rows.h: what exec remembers of each sequence between steps: its block table, where its last token is, sampling options.
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
  uint64_t owner = 0;                 // counts additions: tells this sequence from others on the same row
  int32_t last_token = -1;            // the last sampled id that the host knows; -1 before the first
  uint64_t drawn_in = 0;              // launch in flight that drew the row's last token; 0 = none, `last_token` is the last
  int32_t drawn_at = 0;               // that token's place among the launch's draws
  std::vector<int32_t> blocks;        // block ids, in order of position
};

class RowTable {
 public:
  RowTable(int32_t max_rows, int32_t num_blocks, int32_t block_size);
  // Takes `removed`, `added` and `new_blocks` in, in this order. Breaking the plan's laws is our bug and dies here.
  void Apply(const core::StepPlan& plan);
  // Launch `launch` draws the next token of `row`, as its draw number `at`.
  void MarkDrawn(int32_t row, uint64_t launch, int32_t at);
  // The id that `launch` drew on `row`. Ignored if `owner` has left the row since.
  void SetLastToken(int32_t row, uint64_t owner, uint64_t launch, int32_t id);
  const Row& at(int32_t row) const { return rows_[row]; }
  int32_t max_rows() const { return static_cast<int32_t>(rows_.size()); }

 private:
  std::vector<Row> rows_;
  uint64_t owners_ = 0;
  const int32_t num_blocks_;
  const int32_t block_size_;
};

}  // namespace phalanx::worker::exec
