#include "worker/exec/inputs.h"

#include <algorithm>

#include "services/check.h"

namespace phalanx::worker::exec {

InputBuilder::InputBuilder(int32_t max_tokens, int32_t block_size) : max_tokens_(max_tokens), block_size_(block_size) {
  wanted_.reserve(max_tokens);
  logit_rows_.reserve(max_tokens);
}

uint64_t InputBuilder::StagingBytes(int32_t max_tokens, int32_t max_rows, int32_t max_blocks) {
  constexpr uint64_t kArrays = 8;
  // ids, positions, slots, from; query_start and context_length; the block table; at most every row and every sampled one is wanted.
  const uint64_t ints = uint64_t{4} * max_tokens + uint64_t{2} * max_rows + 1 + uint64_t(max_rows) * max_blocks + max_tokens + max_rows;
  return ints * sizeof(int32_t) + kArrays * Staging::kAlignment;
}

// Ids, positions, cache slots and the origin of every row's id; rows behind the plan's are padding.
void InputBuilder::FillTokens(const core::StepPlan& plan, const RowTable& rows, int32_t tokens, Staging* staging,
                              StepInputs* inputs) const {
  const auto ids = staging->Place<int32_t>(tokens), positions = staging->Place<int32_t>(tokens), slots = staging->Place<int32_t>(tokens),
             from = staging->Place<int32_t>(tokens);
  int32_t at = 0;
  for (const core::Slice& slice : plan.slices) {
    const Row& row = rows.at(slice.row);
    for (int32_t i = 0; i < slice.count; ++i, ++at) {
      const int32_t position = slice.start + i;
      const bool given = slice.token_offset >= 0;
      const bool on_device = !given && row.drawn_in != 0;
      ids.host[at] = given ? plan.tokens[slice.token_offset + i] : row.last_token;
      from.host[at] = on_device ? row.drawn_at : -1;
      inputs->takes |= on_device;
      positions.host[at] = position;
      slots.host[at] = row.blocks[position / block_size_] * block_size_ + position % block_size_;
    }
  }
  PHX_CHECK(at == plan.num_tokens);
  for (; at < tokens; ++at) ids.host[at] = 0, positions.host[at] = 0, slots.host[at] = -1, from.host[at] = -1;
  inputs->token_ids = ids.device;
  inputs->from = from.device;
  inputs->layout.positions = positions.device;
  inputs->layout.slots = slots.device;
}

void InputBuilder::FillWanted(const core::StepPlan& plan, const RowTable& rows) {
  wanted_.clear();
  logit_rows_.clear();
  int32_t first = 0;
  for (size_t s = 0; s < plan.slices.size(); ++s) {
    const core::Slice& slice = plan.slices[s];
    if (slice.sample) {
      logit_rows_.push_back(first + slice.count - 1);
      wanted_.push_back({static_cast<int32_t>(s), slice.start + slice.count, -1});
    }
    first += slice.count;
  }
  num_sampled_ = static_cast<int32_t>(wanted_.size());
  first = 0;
  for (size_t s = 0; s < plan.slices.size(); ++s) {
    const core::Slice& slice = plan.slices[s];
    const core::AddedSequence& sequence = rows.at(slice.row).sequence;
    for (int32_t i = 0; slice.prompt_logprobs && i < slice.count; ++i) {
      const int32_t next = slice.start + i + 1;
      if (next >= sequence.prompt_length) break;
      PHX_CHECK(next < static_cast<int32_t>(sequence.prompt_ids.size()));
      logit_rows_.push_back(first + i);
      wanted_.push_back({static_cast<int32_t>(s), next, sequence.prompt_ids[next]});
    }
    first += slice.count;
  }
}

StepInputs InputBuilder::Build(const core::StepPlan& plan, const RowTable& rows, const Padding& padding, Staging* staging) {
  const int32_t tokens = std::max(plan.num_tokens, padding.rows);
  const auto planned = static_cast<int32_t>(plan.slices.size());
  const int32_t sequences = std::max(planned, padding.rows);
  PHX_CHECK(tokens >= 1 && tokens <= max_tokens_ && (padding.rows == 0 || planned == plan.num_tokens));
  StepInputs inputs;
  kernels::StepLayout& layout = inputs.layout;
  layout.num_tokens = tokens;
  layout.num_sequences = sequences;
  layout.max_context_length = padding.context;
  FillTokens(plan, rows, tokens, staging, &inputs);

  const auto query_start = staging->Place<int32_t>(sequences + 1), context_length = staging->Place<int32_t>(sequences);
  query_start.host[0] = 0;
  for (int32_t s = 0; s < sequences; ++s) {
    const core::Slice slice = s < planned ? plan.slices[s] : core::Slice{.start = 0, .count = 1};
    context_length.host[s] = slice.start + slice.count;
    query_start.host[s + 1] = query_start.host[s] + slice.count;
    layout.max_query_length = std::max(layout.max_query_length, slice.count);
    layout.max_context_length = std::max(layout.max_context_length, context_length.host[s]);
  }
  layout.query_start = query_start.device;
  layout.context_length = context_length.device;

  layout.max_blocks = (layout.max_context_length + block_size_ - 1) / block_size_;
  const auto block_table = staging->Place<int32_t>(int64_t{sequences} * layout.max_blocks);
  int32_t* row_blocks = block_table.host;
  for (int32_t s = 0; s < sequences; ++s, row_blocks += layout.max_blocks) {
    int64_t held = 0;
    if (s < planned) {
      const std::vector<int32_t>& blocks = rows.at(plan.slices[s].row).blocks;
      held = std::min<int64_t>(layout.max_blocks, static_cast<int64_t>(blocks.size()));
      std::copy_n(blocks.begin(), held, row_blocks);
    }
    std::fill(row_blocks + held, row_blocks + layout.max_blocks, 0);
  }
  layout.block_table = block_table.device;

  FillWanted(plan, rows);
  const auto wanted = static_cast<int32_t>(wanted_.size());
  const auto logit_rows = staging->Place<int32_t>(std::max(wanted, padding.rows));
  std::copy_n(logit_rows_.begin(), wanted, logit_rows.host);
  for (int32_t i = wanted; i < padding.rows; ++i) logit_rows.host[i] = i;
  inputs.logit_rows = logit_rows.device;
  return inputs;
}

}  // namespace phalanx::worker::exec
