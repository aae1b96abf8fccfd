// Seeded simulation of the scheduler: random submissions, aborts, stalls and sizes against a model whose next token hashes all before
// it. After every step the ledger's laws hold; at the end every stream equals that of a lone run. A failing seed is printed. Each seed
// runs with results at once and with results one step behind, as worker/engine.cc does it.
#include <cstdlib>
#include <deque>
#include <map>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "tests/fakes/executor.h"
#include "worker/plan/invariants.h"
#include "worker/plan/scheduler.h"

namespace phalanx::worker {
namespace {

using core::FinishReason;
using core::Request;
using core::SequenceId;

struct Client {
  Request request;                 // as submitted
  std::vector<int32_t> got;
  size_t prompt_logprobs = 0;
  uint64_t credit = 0;             // granted
  bool limited = false;
  bool started = false;
  bool finished = false;
  FinishReason reason = FinishReason::kStop;
};

class Simulation {
 public:
  Simulation(uint64_t seed, int32_t steps_ahead) : random_(seed) {
    auto& info = fake_.info;
    info.steps_ahead = steps_ahead;
    info.block_size = Pick({1, 4, 16});
    info.max_rows = Pick({1, 3, 16, 40});
    info.max_model_len = Pick({24, 64, 200});
    chunked_ = Chance(0.8);
    info.max_step_tokens = chunked_ ? Pick({1, 7, 16, 64, 512}) : info.max_model_len + Pick({0, 50});
    const int32_t one = plan::BlocksFor(info.max_model_len, info.block_size);
    info.num_blocks = one + Pick({0, 1, 5, 3 * one, 20 * one});
    info.vocab_size = 50;
    fake_.check_context = true;
    fake_.poison_id = 49;
    options_.limits = info;
    options_.prefix_caching = Chance(0.75);
    options_.chunked_prefill = chunked_;
    options_.max_waiting = Pick({2, 30, 1000});
  }

  void Run(int steps) {
    fakes::FakeExecutor executor(fake_);
    plan::Scheduler scheduler(options_);
    for (int step = 0; step < steps || !scheduler.empty(); ++step) {
      ASSERT_LT(step, steps + 100000) << "does not come to an end";
      const bool quiet = step >= steps;  // no more arrivals; every stalled reader reads on
      if (!quiet) Arrive(scheduler);
      Interfere(scheduler, quiet);
      now_ += 0.001;
      const core::StepPlan plan = scheduler.Plan(now_);
      if (fake_.info.steps_ahead > 0 || plan.slices.empty()) Check(scheduler);
      if (!plan.slices.empty()) {
        ASSERT_EQ(plan::Invariants::CheckPlan(scheduler, plan), "") << "step " << step;
        auto parsed = core::ParseStepPlan(core::Serialize(plan));
        ASSERT_TRUE(parsed.ok()) << parsed.status();
        ASSERT_TRUE(executor.Launch(*parsed).ok());  // what another rank would get
        ASSERT_EQ(executor.violation(), "") << "step " << step;
      }
      if (HasFatalFailure()) return;
      if (scheduler.steps_in_flight() == 0) continue;
      if (!plan.slices.empty() && scheduler.steps_in_flight() <= fake_.info.steps_ahead) continue;
      overlapped_ += scheduler.steps_in_flight() > 1;
      auto result = executor.Collect();
      ASSERT_TRUE(result.ok());
      ASSERT_EQ(executor.violation(), "") << "step " << step;
      Take(scheduler.Commit(*result, now_));
      Check(scheduler);
      if (HasFatalFailure()) return;
    }
    EXPECT_EQ(scheduler.load().running + scheduler.load().waiting, 0);
    EXPECT_EQ(scheduler.load().blocks_free, scheduler.load().blocks_total);
    preemptions_ = scheduler.counters().preemptions;
    hits_ = scheduler.counters().prefix_hits;
    Judge();
  }

  uint64_t preemptions_ = 0, hits_ = 0, compared_ = 0, stopped_ = 0, poisoned_ = 0, aborted_ = 0, resumed_ = 0, looked_back_ = 0;
  uint64_t overlapped_ = 0;        // steps that were launched before the one before was collected

 private:
  bool HasFatalFailure() const { return ::testing::Test::HasFatalFailure(); }
  int32_t Pick(std::initializer_list<int32_t> from) { return *(from.begin() + random_() % from.size()); }
  bool Chance(double p) { return std::uniform_real_distribution<>(0, 1)(random_) < p; }
  int32_t Below(int32_t n) { return static_cast<int32_t>(random_() % std::max(1, n)); }

  Request MakeRequest() {
    Request r;
    r.id = ++next_id_;
    // Few roots, so that prefixes meet; some long, some short.
    const int32_t length = 1 + Below(fake_.info.max_model_len - 1);
    const int32_t root = Below(4);
    for (int32_t i = 0; i < length; ++i) r.prompt_ids.push_back((root * 7 + i * 3) % 48);
    if (Chance(0.5)) r.prompt_ids[Below(length)] = Below(48);
    if (Chance(0.02)) r.prompt_ids[0] = fake_.poison_id;
    r.max_tokens = 1 + Below(40);
    if (Chance(0.3)) r.min_tokens = Below(r.max_tokens + 1);
    if (Chance(0.7)) r.stop_ids = {Below(48), Below(48)};
    if (Chance(0.5)) r.sampling.temperature = 0;
    r.sampling.seed = random_();
    if (Chance(0.2)) r.sampling.prompt_logprobs = Below(3);
    if (Chance(0.2)) r.sampling.presence_penalty = 0.5f;
    if (Chance(0.1)) r.sampling.bad_words = {{1, 2}};
    if (Chance(0.2)) r.cache_salt = Chance(0.5) ? "tenant a" : "tenant b";
    if (Chance(0.3)) r.credit = Below(4);
    if (Chance(0.2) && r.max_tokens > 1) Resume(r);
    return r;
  }

  // A request that another worker began: the first outputs of its lone run.
  void Resume(Request& r) {
    std::vector<int32_t> made = fakes::ExpectedTokens(fake_, r);
    if (made.size() < 2 || r.prompt_ids[0] == fake_.poison_id) return;
    made.resize(1 + Below(static_cast<int32_t>(made.size()) - 1));
    r.resume_output_ids = made;
    ++resumed_;
  }

  void Arrive(plan::Scheduler& scheduler) {
    if (!Chance(0.4)) return;
    for (int n = 1 + Below(6); n > 0; --n) {
      Client c;
      c.request = MakeRequest();
      c.limited = c.request.credit != UINT32_MAX;
      c.credit = c.limited ? c.request.credit : 0;
      if (scheduler.Submit(c.request, now_).ok()) clients_[c.request.id] = c;
    }
  }

  void Interfere(plan::Scheduler& scheduler, bool quiet) {
    for (auto& [id, c] : clients_) {
      if (c.finished) continue;
      if (c.limited && Chance(quiet ? 0.5 : 0.03)) {
        const uint32_t more = 1 + Below(8);
        c.credit += more;
        scheduler.AddCredit(id, more);
      }
      if (!quiet && Chance(0.002)) {
        plan::StepOutcome outcome;
        ASSERT_TRUE(scheduler.Abort(id, now_, outcome));
        Take(outcome);
        ASSERT_TRUE(c.finished);
        ASSERT_EQ(plan::Invariants::Check(scheduler), "");
      }
    }
    plan::StepOutcome outcome;
    EXPECT_FALSE(scheduler.Abort(next_id_ + 1000, now_, outcome));
  }

  void Take(const plan::StepOutcome& outcome) {
    std::map<SequenceId, int> seen;
    for (const core::SequenceEvent& event : outcome.events) {
      ASSERT_EQ(++seen[event.id], 1) << "two events of a sequence in one step";
      Client& c = clients_.at(event.id);
      ASSERT_FALSE(c.finished) << "an event after the end";
      if (event.started) {
        ASSERT_FALSE(c.started);
        c.started = true;
        ASSERT_LT(event.cached_tokens, static_cast<int32_t>(c.request.prompt_ids.size() + c.request.resume_output_ids.size()));
      }
      for (const core::TokenInfo& token : event.tokens) c.got.push_back(token.id);
      for (const core::TokenInfo& token : event.prompt) {
        ASSERT_EQ(token.id, c.request.prompt_ids.at(++c.prompt_logprobs)) << "prompt log-probabilities out of order";
      }
      ASSERT_TRUE(c.started || event.tokens.empty());
      ASSERT_TRUE(!c.limited || c.got.size() <= c.credit) << "emitted beyond its credit";
      if (event.finished) {
        c.finished = true;
        c.reason = event.reason;
        aborted_ += event.reason == FinishReason::kAbort;
        ASSERT_EQ(event.reason == FinishReason::kError, !event.error.empty());
        if (event.reason == FinishReason::kStop) {
          ASSERT_EQ(event.stop_id, c.got.back());
        }
      }
    }
  }

  void Check(const plan::Scheduler& scheduler) { ASSERT_EQ(plan::Invariants::Check(scheduler), ""); }

  void Judge() {
    for (const auto& [id, c] : clients_) {
      ASSERT_TRUE(c.finished) << "sequence " << id << " never ended";
      if (c.request.prompt_ids[0] == fake_.poison_id) {
        ASSERT_TRUE(c.reason == FinishReason::kError || c.reason == FinishReason::kAbort);
        ASSERT_TRUE(c.got.empty());
        ++poisoned_;
        continue;
      }
      const std::vector<int32_t> expected = fakes::ExpectedTokens(fake_, c.request);
      if (c.reason == FinishReason::kAbort) {
        ASSERT_LE(c.got.size(), expected.size());
        ASSERT_TRUE(std::equal(c.got.begin(), c.got.end(), expected.begin())) << "sequence " << id;
        continue;
      }
      ASSERT_EQ(c.got, expected) << "sequence " << id;
      ++compared_;
      looked_back_ += !c.request.sampling.bad_words.empty();
      stopped_ += c.reason == FinishReason::kStop;
      if (c.request.sampling.prompt_logprobs >= 0) {
        ASSERT_EQ(c.prompt_logprobs + 1, c.request.prompt_ids.size());
      }
    }
  }

  std::mt19937_64 random_;
  fakes::FakeExecutorOptions fake_;
  plan::SchedulerOptions options_;
  bool chunked_ = true;
  double now_ = 1;
  SequenceId next_id_ = 0;
  std::map<SequenceId, Client> clients_;
};

class SimTest : public ::testing::TestWithParam<int32_t> {};

TEST_P(SimTest, EveryStreamEqualsItsLoneRun) {
  const char* chosen = std::getenv("PHALANX_SIM_SEED");
  const char* count = std::getenv("PHALANX_SIM_SEEDS");
  const uint64_t first = chosen != nullptr ? std::strtoull(chosen, nullptr, 10) : 1;
  const uint64_t last = chosen != nullptr ? first : (count != nullptr ? std::strtoull(count, nullptr, 10) : 120);
  uint64_t preemptions = 0, hits = 0, compared = 0, stopped = 0, poisoned = 0, aborted = 0, resumed = 0, looked_back = 0, overlapped = 0;
  for (uint64_t seed = first; seed <= last; ++seed) {
    SCOPED_TRACE("PHALANX_SIM_SEED=" + std::to_string(seed));
    Simulation simulation(seed, GetParam());
    simulation.Run(200);
    if (HasFailure()) return;
    preemptions += simulation.preemptions_;
    hits += simulation.hits_;
    compared += simulation.compared_;
    stopped += simulation.stopped_;
    poisoned += simulation.poisoned_;
    aborted += simulation.aborted_;
    resumed += simulation.resumed_;
    looked_back += simulation.looked_back_;
    overlapped += simulation.overlapped_;
  }
  std::printf("%lu streams equal, %lu ended by an end id, %lu look back, %lu preemptions, %lu cached tokens, %lu poisoned, %lu aborted, "
              "%lu resumed, %lu steps overlapped\n",
              compared, stopped, looked_back, preemptions, hits, poisoned, aborted, resumed, overlapped);
  if (chosen != nullptr) return;
  // The run must have met what it is for.
  EXPECT_GT(compared, 1000u);
  EXPECT_GT(preemptions, 100u);
  EXPECT_GT(hits, 1000u);
  EXPECT_GT(poisoned, 10u);
  EXPECT_GT(aborted, 50u);
  EXPECT_GT(resumed, 50u);
  EXPECT_GT(stopped, 50u);
  EXPECT_GT(looked_back, 50u);
  EXPECT_EQ(overlapped > 10000u, GetParam() == 1);
}

INSTANTIATE_TEST_SUITE_P(StepsAhead, SimTest, ::testing::Values(0, 1));

}  // namespace
}  // namespace phalanx::worker
