#include "worker/exec/inputs.h"

#include <algorithm>

#include "services/check.h"

namespace phalanx::worker::exec {

absl::StatusOr<InputBuilder> InputBuilder::Create(const kernels::Table& table, kernels::Device* device, int32_t max_tokens,
                                                  int32_t max_rows, int32_t max_blocks, int32_t block_size,
                                                  model::DeviceMemory* memory) {
  InputBuilder builder(table, device, block_size);
  const uint64_t ints = uint64_t{4} * max_tokens + uint64_t{2} * max_rows + 1 + uint64_t(max_rows) * max_blocks;
  PHX_ASSIGN_OR_RETURN(void* host, memory->TakeHost(ints * sizeof(int32_t), "step inputs"));
  PHX_ASSIGN_OR_RETURN(void* on_device, memory->Take(ints * sizeof(int32_t), "step inputs"));
  builder.host_ = static_cast<int32_t*>(host);
  builder.on_device_ = static_cast<int32_t*>(on_device);
  builder.max_tokens_ = max_tokens;
  builder.wanted_.reserve(max_tokens);
  return builder;
}

// Ids, positions and cache slots of every row: three arrays of `tokens`, the last of them padding.
void InputBuilder::FillTokens(const core::StepPlan& plan, const RowTable& rows, int32_t tokens) {
  int32_t* ids = host_;
  int32_t* positions = ids + tokens;
  int32_t* slots = positions + tokens;
  int32_t at = 0;
  for (const core::Slice& slice : plan.slices) {
    const Row& row = rows.at(slice.row);
    for (int32_t i = 0; i < slice.count; ++i, ++at) {
      const int32_t position = slice.start + i;
      ids[at] = slice.token_offset >= 0 ? plan.tokens[slice.token_offset + i] : row.last_token;
      positions[at] = position;
      slots[at] = row.blocks[position / block_size_] * block_size_ + position % block_size_;
    }
  }
  PHX_CHECK(at == plan.num_tokens);
  for (; at < tokens; ++at) ids[at] = 0, positions[at] = 0, slots[at] = -1;
}

void InputBuilder::FillWanted(const core::StepPlan& plan, const RowTable& rows, int32_t* logit_rows) {
  wanted_.clear();
  int32_t first = 0;
  for (size_t s = 0; s < plan.slices.size(); ++s) {
    const core::Slice& slice = plan.slices[s];
    if (slice.sample) {
      logit_rows[wanted_.size()] = first + slice.count - 1;
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
      logit_rows[wanted_.size()] = first + i;
      wanted_.push_back({static_cast<int32_t>(s), next, sequence.prompt_ids[next]});
    }
    first += slice.count;
  }
}

absl::StatusOr<StepInputs> InputBuilder::Build(const core::StepPlan& plan, const RowTable& rows, const Padding& padding) {
  const int32_t tokens = std::max(plan.num_tokens, padding.rows);
  const auto planned = static_cast<int32_t>(plan.slices.size());
  const int32_t sequences = std::max(planned, padding.rows);
  PHX_CHECK(plan.num_tokens >= 1 && tokens <= max_tokens_ && (padding.rows == 0 || planned == plan.num_tokens));
  StepInputs inputs;
  inputs.layout.num_tokens = tokens;
  inputs.layout.num_sequences = sequences;
  inputs.layout.max_context_length = padding.context;
  FillTokens(plan, rows, tokens);

  int32_t* query_start = host_ + int64_t{3} * tokens;
  int32_t* context_length = query_start + sequences + 1;
  query_start[0] = 0;
  for (int32_t s = 0; s < sequences; ++s) {
    const core::Slice slice = s < planned ? plan.slices[s] : core::Slice{.start = 0, .count = 1};
    context_length[s] = slice.start + slice.count;
    query_start[s + 1] = query_start[s] + slice.count;
    inputs.layout.max_query_length = std::max(inputs.layout.max_query_length, slice.count);
    inputs.layout.max_context_length = std::max(inputs.layout.max_context_length, context_length[s]);
  }
  const int32_t max_blocks = (inputs.layout.max_context_length + block_size_ - 1) / block_size_;
  int32_t* block_table = context_length + sequences;
  std::fill_n(block_table, int64_t{sequences} * max_blocks, 0);
  for (int32_t s = 0; s < planned; ++s) {
    const std::vector<int32_t>& blocks = rows.at(plan.slices[s].row).blocks;
    std::copy_n(blocks.begin(), std::min<int64_t>(max_blocks, static_cast<int64_t>(blocks.size())), block_table + int64_t{s} * max_blocks);
  }
  int32_t* logit_rows = block_table + int64_t{sequences} * max_blocks;
  FillWanted(plan, rows, logit_rows);
  auto wanted = static_cast<int32_t>(wanted_.size());
  for (; wanted < padding.rows; ++wanted) logit_rows[wanted] = wanted;

  const int64_t ints = logit_rows + wanted - host_;
  PHX_RETURN_IF_ERROR(model::ToStatus(
      *table_, device_, table_->copy_to_device(device_, on_device_, host_, ints * sizeof(int32_t), nullptr), "copy_to_device"));
  const auto place = [&](const int32_t* staged) { return on_device_ + (staged - host_); };
  inputs.token_ids = on_device_;
  inputs.layout.positions = on_device_ + tokens;
  inputs.layout.slots = on_device_ + int64_t{2} * tokens;
  inputs.layout.query_start = place(query_start);
  inputs.layout.context_length = place(context_length);
  inputs.layout.block_table = place(block_table);
  inputs.layout.max_blocks = max_blocks;
  inputs.logit_rows = place(logit_rows);
  return inputs;
}

}  // namespace phalanx::worker::exec
