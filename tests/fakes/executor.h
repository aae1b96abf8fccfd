// tests/fakes/executor.h: a model without weights: the next token hashes the request's draw options and all tokens before it.
// Refuses to know: scheduling. Thread: one, like any executor.
// Neighbours: worker/engine drives it; tests compare its output with ExpectedTokens.
//
// It keeps a KV vault like a real one: a slot of a block holds the token and the hash of everything up to it, and the next token is
// computed from what lies in the blocks of the row's own table. One lost, doubled, swapped or stale block changes every later token.
// A step is computed when it is launched, as if the device were done at once; only Collect tells its results.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "worker/core/executor.h"

namespace phalanx::fakes {

struct FakeExecutorOptions {
  worker::core::ExecutorInfo info;
  int64_t step_delay_us = 0;      // every step takes at least this
  int64_t token_delay_us = 0;     // plus this for each token computed
  bool check_context = false;     // walk the whole context at every slice and die if a slot does not continue its predecessor
  int32_t first_id = 0;           // ids are drawn from [first_id, vocab_size)
  int64_t fail_at_step = -1;      // Launch returns a device error at this step
  int64_t fail_in_collect = -1;   // Collect does
  int32_t preparations = 0;       // pieces of work that Prepare has to do
  int32_t poison_id = -1;         // a sequence whose prompt begins with this id gets NaN rows
};

class FakeExecutor : public worker::core::Executor {
 public:
  explicit FakeExecutor(const FakeExecutorOptions& options);
  const worker::core::ExecutorInfo& info() const override { return options_.info; }
  absl::Status Launch(const worker::core::StepPlan& plan) override;
  absl::StatusOr<worker::core::StepResult> Collect() override;
  absl::StatusOr<bool> Prepare() override {
    if (prepared_ == options_.preparations) return false;
    return ++prepared_, true;
  }

  uint64_t steps() const { return steps_; }
  int32_t prepared() const { return prepared_; }  // pieces of work done by Prepare; from any thread
  // Plans that broke the contract are counted here as text; empty = none.
  const std::string& violation() const { return violation_; }

 private:
  struct Row {
    bool used = false;
    worker::core::SamplingOptions sampling;
    std::vector<int32_t> end_ids;
    std::vector<int32_t> prompt_ids;  // empty unless prompt logprobs or penalties were asked for
    int32_t min_tokens = 0;
    int32_t prompt_length = 0;
    uint64_t owner = 0;               // counts additions: tells a row's present sequence from the one before
    int32_t outputs = 0;
    int32_t last_token = kNone;
    uint64_t collected = 0;           // hash of the outputs that Collect gave out; with bad words a draw depends on it
    std::vector<int32_t> blocks;
  };
  struct Slot {
    int32_t token = -1;
    uint64_t hash = 0;
  };
  struct Flight {
    worker::core::StepResult result;
    std::vector<uint64_t> owners;     // of each slice's row
    std::chrono::steady_clock::time_point ready;
  };
  static constexpr int32_t kNone = -2;  // -1 is what a poisoned row drew

  void Apply(const worker::core::StepPlan& plan);
  Slot& SlotAt(const Row& row, int32_t position);
  uint64_t HashBefore(const Row& row, int32_t position);
  void RunSlice(const worker::core::StepPlan& plan, const worker::core::Slice& slice, worker::core::StepResult& result);
  void Violate(const std::string& what);

  const FakeExecutorOptions options_;
  std::vector<Row> rows_;
  std::vector<Slot> slots_;  // [num_blocks * block_size]
  std::deque<Flight> flights_;
  uint64_t steps_ = 0;
  uint64_t collects_ = 0;
  std::atomic<int32_t> prepared_{0};
  uint64_t owners_ = 0;
  std::string violation_;
};

// What a lone run of this request gives: output ids, an end id included, at most max_tokens of them.
std::vector<int32_t> ExpectedTokens(const FakeExecutorOptions& options, const worker::core::Request& request);

}  // namespace phalanx::fakes
