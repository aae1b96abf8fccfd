#include "worker/exec/rows.h"

#include "services/check.h"

namespace phalanx::worker::exec {

RowTable::RowTable(int32_t max_rows, int32_t num_blocks, int32_t block_size)
    : rows_(max_rows), num_blocks_(num_blocks), block_size_(block_size) {}

void RowTable::Apply(const core::StepPlan& plan) {
  const auto in_range = [&](int32_t row) { return row >= 0 && row < max_rows(); };
  for (const int32_t row : plan.removed) {
    PHX_CHECK(in_range(row) && rows_[row].used);
    rows_[row].used = false;
    rows_[row].blocks.clear();
  }
  for (const core::AddedSequence& added : plan.added) {
    PHX_CHECK(in_range(added.row) && !rows_[added.row].used);
    Row& row = rows_[added.row];
    row.used = true;
    row.sequence = added;
    row.keeps_outputs = !added.sampling.bad_words.empty();
    row.owner = ++owners_;
    row.last_token = added.output_ids.empty() ? -1 : added.output_ids.back();
    row.drawn_in = 0;
  }
  for (const core::NewBlocks& fresh : plan.new_blocks) {
    PHX_CHECK(in_range(fresh.row) && rows_[fresh.row].used);
    for (const int32_t block : fresh.blocks) {
      PHX_CHECK(block >= 0 && block < num_blocks_);
      rows_[fresh.row].blocks.push_back(block);
    }
  }
  for (const core::Slice& slice : plan.slices) {
    PHX_CHECK(in_range(slice.row) && rows_[slice.row].used);
    PHX_CHECK(slice.count >= 1 && slice.start >= 0);
    PHX_CHECK(slice.token_offset >= 0 ? slice.token_offset + slice.count <= static_cast<int32_t>(plan.tokens.size()) : slice.count == 1);
    PHX_CHECK(slice.start + slice.count <= static_cast<int64_t>(rows_[slice.row].blocks.size()) * block_size_);
  }
}

void RowTable::MarkDrawn(int32_t row, uint64_t launch, int32_t at) {
  rows_[row].drawn_in = launch;
  rows_[row].drawn_at = at;
}

void RowTable::SetLastToken(int32_t index, uint64_t owner, uint64_t launch, int32_t id) {
  Row& row = rows_[index];
  if (!row.used || row.owner != owner) return;
  if (row.drawn_in == launch) row.drawn_in = 0;
  row.last_token = id;
  if (row.keeps_outputs) row.sequence.output_ids.push_back(id);
}

}  // namespace phalanx::worker::exec
