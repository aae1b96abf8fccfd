// worker/core/request.h: what the worker was asked: one sequence to generate (a choice of a client's request), as checked plain data.
// Refuses to know: gRPC, text, devices, threads. Thread: plain data, moved between threads.
// Neighbours: worker/rpc makes it from the wire (and checks it), worker/plan schedules it, worker/exec samples by it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace phalanx::worker::core {

// A sequence's name inside this worker, unique for the life of the process (chosen by worker/rpc, 0 is never used).
using SequenceId = uint64_t;

struct SamplingOptions {
  float temperature = 1.0f;         // >= 0; < 1e-5 is greedy
  float top_p = 1.0f;               // (0, 1]
  int32_t top_k = 0;                // <= 0 = off
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // > 0
  float frequency_penalty = 0.0f;   // [-2, 2]
  float presence_penalty = 0.0f;    // [-2, 2]
  uint64_t seed = 0;                // always set by the router, so that a retry draws the same
  uint32_t stream = 0;              // the choice's index: separates the draws of n > 1
  std::vector<std::pair<int32_t, float>> logit_bias;   // (id, bias in [-100, 100])
  std::vector<int32_t> allowed_ids;                    // empty = all
  std::vector<std::vector<int32_t>> bad_words;         // id sequences that must not be completed
  int32_t num_logprobs = -1;                           // -1 none, 0 chosen only, N top N (<= kernels' kMaxTopLogprobs)
  int32_t prompt_logprobs = -1;                        // same, for every prompt position after the first

  bool NeedsPenaltyState() const {
    return repetition_penalty != 1.0f || frequency_penalty != 0.0f || presence_penalty != 0.0f;
  }
};

struct Request {
  SequenceId id = 0;
  std::vector<int32_t> prompt_ids;         // never empty; each in [0, vocab)
  std::vector<int32_t> resume_output_ids;  // output made elsewhere before; counts as output, not as prompt
  SamplingOptions sampling;
  int32_t max_tokens = 16;                 // output tokens in all, resumed ones included; >= 1
  int32_t min_tokens = 0;                  // end ids are masked until so many outputs
  std::vector<int32_t> stop_ids;           // end ids of the request and (unless ignore_eos) of the model
  bool ignore_eos = false;                 // kept for logs; stop_ids already reflects it
  std::string cache_salt;                  // separates prefix caches of tenants; empty = shared
  int32_t priority = 0;                    // reserved: lower runs first when a priority policy exists
  uint32_t credit = UINT32_MAX;            // output tokens that may be emitted before more credit comes
};

enum class FinishReason : uint8_t {
  kStop,    // an end id was drawn (SequenceEvent.stop_id says which)
  kLength,  // max_tokens or the model's context is full
  kAbort,   // cancelled by the router
  kError,   // this request alone failed (NaN row, dead end); SequenceEvent.error says why
};

struct TopLogprob {
  int32_t id;
  float logprob;
};

// One generated (or prompt) token with what was asked about it.
struct TokenInfo {
  int32_t id = 0;
  float logprob = 0;                 // log-softmax of raw logits; meaningful if logprobs were asked for
  int32_t rank = 0;                  // 1-based
  std::vector<TopLogprob> top;       // best first
};

// What happened to one sequence in one step. The worker emits all events of a step together.
struct SequenceEvent {
  SequenceId id = 0;
  bool started = false;              // first time scheduled; the two figures below are set
  int32_t cached_tokens = 0;         // prompt tokens found in the prefix cache
  double queue_seconds = 0;          // submitted -> first scheduled
  std::vector<TokenInfo> prompt;     // prompt logprobs, in order, possibly over several events (first position has none)
  std::vector<TokenInfo> tokens;     // new output tokens; an end id is included as the last one
  bool finished = false;
  FinishReason reason = FinishReason::kStop;
  int32_t stop_id = -1;              // the end id that ended it, -1 if none
  std::string error;                 // one line, for kError
  int32_t reject_code = 0;           // with kError: it was never queued, for this absl::StatusCode; 0 = it was
};

// The worker's load, sent with every step and once a second when idle.
struct LoadReport {
  int32_t running = 0;
  int32_t waiting = 0;
  int64_t waiting_tokens = 0;        // uncached prompt tokens of the waiting
  int32_t blocks_total = 0;
  int32_t blocks_free = 0;           // free or evictable
  uint64_t steps = 0;                // progress counter
  bool draining = false;
};

}  // namespace phalanx::worker::core
