// worker/plan/sequence.h: one sequence's state inside the scheduler: known and computed tokens, blocks, row, credit.
// Refuses to know: other sequences, the pool, time's source. Thread: the engine thread.
// Neighbours: plan/scheduler owns and changes it, plan/invariants reads it.
//
// A sequence has known tokens (prompt and output) and computed ones (their K and V are in the cache). A step hands out work so
// that computed catches up with known; the last known token's logits draw the next one. This one rule covers chunked prefill,
// prefix hits, preemption and resumed output.
//
// With a step in flight two things run ahead of what is known: `planned` has passed `computed`, and `pending` tokens are being drawn whose
// ids only the device has. All that decides the next slice is reckoned with those: positions, credit, the length's end.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/core/request.h"
#include "worker/plan/prefix_index.h"

namespace phalanx::worker::plan {

struct Sequence {
  core::Request request;            // prompt_ids and resume_output_ids have moved into `ids`
  std::vector<int32_t> ids;         // known tokens: prompt, then output
  int32_t prompt_length = 0;
  int32_t computed = 0;             // tokens whose K and V lie in `blocks`, by results that came back
  int32_t planned = 0;              // tokens given to steps, those in flight included; >= computed
  int32_t pending = 0;              // draws in flight: tokens that will follow `ids`
  std::vector<int32_t> blocks;      // block table
  std::vector<BlockKey> keys;       // keys of the leading full blocks of `ids`, as far as they were needed
  int32_t keyed_blocks = 0;         // leading blocks that were given to the prefix index (or came from it)
  int32_t row = -1;                 // device row while running
  bool device_has_last = false;     // exec draws or drew the last token on this row and still has it
  bool limited = false;             // credit applies
  uint64_t credit = 0;              // output tokens that may still be emitted
  int32_t slices_in_flight = 0;
  uint64_t last_step = 0;           // the last step with a slice of it
  bool started = false;             // was scheduled once
  bool announced = false;           // the started event was sent
  int32_t cached_tokens = 0;        // prompt tokens found in the prefix cache at the first start
  int32_t prompt_logprobs_sent = 0; // positions 1 .. n whose log-probabilities were reported
  int64_t waiting_tokens = 0;       // what this sequence adds to LoadReport.waiting_tokens now
  double submitted = 0;             // seconds, the caller's clock
  double first_scheduled = 0;
  double first_token = 0;           // 0 = none yet

  int32_t known() const { return static_cast<int32_t>(ids.size()); }
  int32_t outputs() const { return known() - prompt_length; }
  bool running() const { return row >= 0; }
  int32_t expected() const { return known() + pending; }
  bool can_emit() const { return !limited || credit > static_cast<uint64_t>(pending); }
  // Its reader takes nothing more: no credit, and nothing in flight that might bring the reader to give some.
  bool stalled() const { return limited && credit == 0 && pending == 0; }
  // All but the last token are given out: the next slice is one token and draws.
  bool decoding() const { return planned == expected() - 1; }
  // The draw in flight is its last by length, whatever it brings.
  bool ending(int32_t max_model_len) const {
    return pending > 0 && (outputs() + pending >= request.max_tokens || expected() >= max_model_len);
  }
  // Sampling reads the outputs on the host: nothing can be drawn before the last one is there.
  bool looks_back() const { return !request.sampling.bad_words.empty(); }
  bool wants_prompt_logprobs() const {
    return request.sampling.prompt_logprobs >= 0 && prompt_logprobs_sent < prompt_length - 1;
  }
};

inline int32_t BlocksFor(int32_t tokens, int32_t block_size) { return (tokens + block_size - 1) / block_size; }

// Makes the keys of the first `count` full blocks available in `sequence.keys`.
void ExtendKeys(Sequence& sequence, int32_t count, int32_t block_size, const BlockHasher& hasher);

}  // namespace phalanx::worker::plan
