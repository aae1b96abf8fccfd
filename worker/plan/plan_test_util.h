// worker/plan/plan_test_util.h: a scheduler with a clock and draws that a test chooses, and plans as short texts.
// Refuses to know: what is being proved. Thread: the test's.
// Neighbours: scheduler_test.cc and scheduler_room_test.cc.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/plan/invariants.h"
#include "worker/plan/scheduler.h"

namespace phalanx::worker::plan {

inline SchedulerOptions Options() {
  SchedulerOptions options;
  options.limits = {.num_blocks = 16, .block_size = 4, .max_rows = 4, .max_step_tokens = 64, .max_model_len = 48, .vocab_size = 100};
  return options;
}

// A prompt of `length` ids from `first` on.
inline core::Request Prompt(core::SequenceId id, int32_t length, int32_t max_tokens = 8, int32_t first = 1) {
  core::Request request;
  request.id = id;
  request.prompt_ids.resize(length);
  std::iota(request.prompt_ids.begin(), request.prompt_ids.end(), first);
  request.max_tokens = max_tokens;
  return request;
}

// "row:start+count" of every slice; "*" = draws, "d" = a decode without ids, "p" = wants prompt logprobs.
inline std::string Text(const core::StepPlan& plan) {
  std::string out;
  for (const core::Slice& s : plan.slices) {
    absl::StrAppend(&out, out.empty() ? "" : " ", s.row, ":", s.start, "+", s.count, s.prompt_logprobs ? "p" : "",
                    s.token_offset < 0 ? "d" : "", s.sample ? "*" : "");
  }
  return out;
}

// A scheduler, a clock, and draws that the test chooses by row (60 + row if it does not).
class Bed {
 public:
  explicit Bed(const SchedulerOptions& options) : scheduler(options) {}

  void Submit(core::Request request) {
    const absl::Status status = scheduler.Submit(std::move(request), now);
    ASSERT_TRUE(status.ok()) << status;
  }
  // Plans one step and keeps it for Commit.
  std::string Plan() {
    plan = scheduler.Plan(now);
    EXPECT_EQ(Invariants::Check(scheduler), "");
    if (plan.slices.empty()) return "";
    EXPECT_EQ(Invariants::CheckPlan(scheduler, plan), "");
    flying.push_back(plan);
    return Text(plan);
  }
  // The oldest plan that was not committed.
  StepOutcome Commit(const std::map<int32_t, int32_t>& draws = {}) {
    const core::StepPlan oldest = std::move(flying.front());
    flying.pop_front();
    core::StepResult result;
    result.step = oldest.step;
    for (const core::Slice& slice : oldest.slices) {
      if (!slice.sample && !slice.prompt_logprobs) continue;
      core::SliceResult& out = result.slices.emplace_back();
      out.row = slice.row;
      out.sampled = slice.sample;
      if (slice.sample) out.token.id = draws.contains(slice.row) ? draws.at(slice.row) : 60 + slice.row;
      for (int32_t i = 0; slice.prompt_logprobs && i < slice.count; ++i) {
        const int32_t next = slice.start + i + 1;
        if (next < static_cast<int32_t>(prompt_logprob_ids.size())) out.prompt.push_back({prompt_logprob_ids[next], -1.0f, 1, {}});
      }
    }
    StepOutcome outcome = scheduler.Commit(result, now);
    EXPECT_EQ(Invariants::Check(scheduler), "");
    return outcome;
  }
  // Plans and commits; gives the plan's text.
  std::string Step(const std::map<int32_t, int32_t>& draws = {}) {
    const std::string text = Plan();
    if (!plan.slices.empty()) last = Commit(draws);
    return text;
  }
  StepOutcome Abort(core::SequenceId id) {
    StepOutcome outcome;
    EXPECT_TRUE(scheduler.Abort(id, now, outcome));
    EXPECT_EQ(Invariants::Check(scheduler), "");
    return outcome;
  }
  // Steps until nothing can run.
  void Finish() {
    for (int i = 0; i < 200 && !Step().empty(); ++i) continue;
  }

  Scheduler scheduler;
  core::StepPlan plan;                       // the last
  std::deque<core::StepPlan> flying;
  StepOutcome last;                          // of the last Step
  std::vector<int32_t> prompt_logprob_ids;   // the prompt of the one sequence that asks for them
  double now = 100;
};

inline std::vector<int32_t> Ids(const core::SequenceEvent& event) {
  std::vector<int32_t> ids;
  for (const core::TokenInfo& token : event.tokens) ids.push_back(token.id);
  return ids;
}

}  // namespace phalanx::worker::plan
