// worker/core/step.h: what plan/ and exec/ say to each other: one step's plan and its result, as plain data.
// Refuses to know: why a sequence was chosen, where bytes lie. Thread: plain data.
// Neighbours: worker/plan writes plans, worker/exec runs them, worker/tp carries the bytes to other ranks unchanged.
//
// A sequence on the device has a row (0 .. max_num_seqs - 1) from the step that adds it to the step that removes it (finish or
// preemption). Decode slices carry no token ids: exec keeps each row's last token, which nobody on the host may know yet when the plan
// is made. A plan applies in this order: `removed`, `added`, `new_blocks`, then the slices run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "services/status.h"
#include "worker/core/request.h"

namespace phalanx::worker::core {

// A sequence that gets a device row in this step. After a preemption it is added again, with its outputs so far.
struct AddedSequence {
  int32_t row = 0;
  SamplingOptions sampling;
  std::vector<int32_t> prompt_ids;   // for penalties and prompt logprobs; empty unless sampling needs them
  std::vector<int32_t> output_ids;   // outputs before this addition (preempted or resumed)
  std::vector<int32_t> end_ids;      // masked while the output is shorter than min_tokens
  int32_t min_tokens = 0;
  int32_t prompt_length = 0;         // outputs start at this position
};

// Blocks appended to a row's block table in this step, in order.
struct NewBlocks {
  int32_t row = 0;
  std::vector<int32_t> blocks;
};

// One sequence's rows in this step.
struct Slice {
  int32_t row = 0;
  int32_t start = 0;          // absolute position of the first token computed
  int32_t count = 0;          // tokens computed; >= 1
  int32_t token_offset = -1;  // where its ids start in StepPlan.tokens; -1 = one decode token, which exec knows
  bool sample = false;        // the last row is the last known token: draw the next one
  bool prompt_logprobs = false;  // report log-probabilities of the prompt ids that follow each of these rows
};

struct StepPlan {
  uint64_t step = 0;                  // 1, 2, ...
  std::vector<int32_t> removed;       // rows given back
  std::vector<AddedSequence> added;
  std::vector<NewBlocks> new_blocks;
  std::vector<Slice> slices;          // at most one a row
  std::vector<int32_t> tokens;        // ids of all slices with a token_offset
  int32_t num_tokens = 0;             // sum of slice counts
};

// Result of one slice that sampled or asked for prompt logprobs; in the order of the plan's slices.
struct SliceResult {
  int32_t row = 0;
  bool sampled = false;
  TokenInfo token;                    // when sampled; id -1 = NaN or nothing could be chosen
  std::vector<TokenInfo> prompt;      // one per row of the slice whose next id is a prompt id
};

struct StepResult {
  uint64_t step = 0;
  std::vector<SliceResult> slices;
  float device_ms = -1;               // the device's own time for the step, and for the draws in it; -1 = not measured
  float sample_ms = -1;
};

// Bytes for the control channel; Parse(Serialize(p)) == p. Errors of Parse: kInvalidArgument on any malformed input.
std::string Serialize(const StepPlan& plan);
absl::StatusOr<StepPlan> ParseStepPlan(std::string_view bytes);

}  // namespace phalanx::worker::core
