// The loop over a model whose next token hashes all before it: one comparison with a lone run proves a stream exact.
#include "worker/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "tests/fakes/executor.h"

namespace phalanx::worker {
namespace {

using core::FinishReason;
using core::Request;
using core::SequenceId;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::chrono::seconds kPatience{60};

// Lets the test hold the engine inside a step. Open unless closed.
class Gate {
 public:
  void Close() {
    std::lock_guard lock(mutex_);
    open_ = false;
  }
  void Open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  // Lets `steps` steps pass and closes again.
  void LetPass(int steps) {
    std::lock_guard lock(mutex_);
    passes_ += steps;
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_ || passes_ > 0; });
    if (!open_) --passes_;
  }
  // Waits until the engine is in its `step`-th step (and held there, if the gate is closed).
  void WaitForStep(int step) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, kPatience, [&] { return arrived_ >= step; }));
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int passes_ = 0;
  int arrived_ = 0;
};

class GatedExecutor : public core::Executor {
 public:
  GatedExecutor(const fakes::FakeExecutorOptions& options, Gate* gate) : fake_(options), gate_(gate) {}
  ~GatedExecutor() override { EXPECT_EQ(fake_.violation(), ""); }
  const core::ExecutorInfo& info() const override { return fake_.info(); }
  absl::Status Launch(const core::StepPlan& plan) override {
    gate_->Pass();
    return fake_.Launch(plan);
  }
  absl::StatusOr<core::StepResult> Collect() override { return fake_.Collect(); }
  absl::StatusOr<bool> Prepare() override { return fake_.Prepare(); }
  int32_t prepared() const { return fake_.prepared(); }

 private:
  fakes::FakeExecutor fake_;
  Gate* const gate_;
};

struct Stream {
  std::vector<int32_t> ids;
  bool started = false;
  bool finished = false;
  core::SequenceEvent end;
};

// What came out of an engine, by sequence.
class Reader {
 public:
  void Take(core::StepReport&& report) {
    std::lock_guard lock(mutex_);
    ++reports_;
    load_ = report.load;
    for (core::SequenceEvent& event : report.events) {
      Stream& stream = streams_[event.id];
      EXPECT_FALSE(stream.finished) << "an event after the end of " << event.id;
      stream.started |= event.started;
      for (const core::TokenInfo& token : event.tokens) stream.ids.push_back(token.id);
      if (!event.finished) continue;
      stream.finished = true;
      stream.end = std::move(event);
    }
    changed_.notify_all();
  }
  void SetFatal(const std::string& reason) {
    std::lock_guard lock(mutex_);
    fatal_ = reason;
    changed_.notify_all();
  }
  template <typename Condition>
  void Wait(Condition condition) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, kPatience, condition));
  }
  Stream WaitForEnd(SequenceId id) {
    Wait([&] { return streams_[id].finished; });
    return Get(id);
  }
  void WaitForTokens(SequenceId id, size_t count) {
    Wait([&] { return streams_[id].ids.size() >= count; });
  }
  void WaitForReports(int more) {
    int until = 0;
    {
      std::lock_guard lock(mutex_);
      until = reports_ + more;
    }
    Wait([&] { return reports_ >= until; });
  }
  void WaitForDrainReport() {
    Wait([&] { return load_.draining; });
  }
  std::string WaitForFatal() {
    Wait([&] { return !fatal_.empty(); });
    std::lock_guard lock(mutex_);
    return fatal_;
  }
  Stream Get(SequenceId id) {
    std::lock_guard lock(mutex_);
    return streams_[id];
  }
  core::LoadReport load() {
    std::lock_guard lock(mutex_);
    return load_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<SequenceId, Stream> streams_;
  core::LoadReport load_;
  std::string fatal_;
  int reports_ = 0;
};

// Every test runs with results at once (0) and one step behind (1).
class EngineTest : public ::testing::TestWithParam<int32_t> {
 protected:
  EngineTest() {
    fake_.info = {.num_blocks = 64, .block_size = 4, .max_rows = 8, .max_step_tokens = 32, .max_model_len = 128, .vocab_size = 500};
    fake_.info.steps_ahead = GetParam();
    fake_.check_context = true;
    options_.check_invariants = true;
  }
  ~EngineTest() override { gate_.Open(); }

  void Start() {
    EngineCallbacks callbacks;
    callbacks.on_report = [this](core::StepReport&& report) { reader_.Take(std::move(report)); };
    callbacks.on_step = [this](const EngineStep& step) { on_step_(step); };
    callbacks.on_fatal = [this](const std::string& reason) { reader_.SetFatal(reason); };
    auto executor = std::make_unique<GatedExecutor>(fake_, &gate_);
    executor_ = executor.get();
    engine_ = std::make_unique<Engine>(options_, std::move(executor), std::move(callbacks));
    engine_->Start();
  }
  Request Make(SequenceId id, int32_t prompt, int32_t max_tokens) const {
    Request request;
    request.id = id;
    request.prompt_ids.resize(prompt);
    std::iota(request.prompt_ids.begin(), request.prompt_ids.end(), static_cast<int32_t>(id) * 3);
    request.max_tokens = max_tokens;
    request.sampling.seed = id;
    return request;
  }
  absl::StatusCode Submit(const Request& request) { return engine_->Submit(request).code(); }
  std::vector<int32_t> Expected(const Request& request) const { return fakes::ExpectedTokens(fake_, request); }

  Gate gate_;
  Reader reader_;
  fakes::FakeExecutorOptions fake_;
  EngineOptions options_;
  std::function<void(const EngineStep&)> on_step_ = [](const EngineStep&) {};
  GatedExecutor* executor_ = nullptr;  // the engine's
  std::unique_ptr<Engine> engine_;     // last: dies first
};

TEST_P(EngineTest, AStreamEqualsALoneRun) {
  Start();
  const Request request = Make(1, 40, 30);
  ASSERT_EQ(Submit(request), absl::StatusCode::kOk);
  const Stream stream = reader_.WaitForEnd(1);
  EXPECT_EQ(stream.ids, Expected(request));
  EXPECT_TRUE(stream.started);
  EXPECT_EQ(stream.end.reason, FinishReason::kLength);
}

TEST_P(EngineTest, ManySequencesAtOnceFromSeveralThreads) {
  Start();
  constexpr int kThreads = 4, kEach = 20;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const SequenceId id = 1 + t * kEach + i;
        EXPECT_EQ(Submit(Make(id, 1 + static_cast<int32_t>(id * 7 % 60), 1 + static_cast<int32_t>(id % 40))), absl::StatusCode::kOk);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (SequenceId id = 1; id <= kThreads * kEach; ++id) {
    const Request request = Make(id, 1 + static_cast<int32_t>(id * 7 % 60), 1 + static_cast<int32_t>(id % 40));
    EXPECT_EQ(reader_.WaitForEnd(id).ids, Expected(request)) << id;
  }
  engine_->Stop();
  EXPECT_EQ(engine_->live(), 0);
  EXPECT_EQ(reader_.load().blocks_free, 64);
}

TEST_P(EngineTest, RefusesAtTheDoorWhatCanNeverRun) {
  Start();
  const absl::Status status = engine_->Submit(Make(1, 128, 1));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("context is 128"));
  EXPECT_EQ(engine_->live(), 0);
}

TEST_P(EngineTest, TheQueueIsBoundedAtTheDoor) {
  fake_.info.max_rows = 1;
  options_.scheduler.max_waiting = 2;
  gate_.Close();
  Start();
  ASSERT_EQ(Submit(Make(1, 3, 2)), absl::StatusCode::kOk);
  gate_.WaitForStep(1);
  EXPECT_EQ(Submit(Make(2, 3, 2)), absl::StatusCode::kOk);
  EXPECT_EQ(Submit(Make(3, 3, 2)), absl::StatusCode::kOk);
  EXPECT_EQ(Submit(Make(4, 3, 2)), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine_->live(), 3);
  gate_.Open();
  for (SequenceId id : {1, 2, 3}) EXPECT_EQ(reader_.WaitForEnd(id).ids.size(), 2u);
  EXPECT_FALSE(reader_.Get(4).finished) << "what was refused by status has no events";
}

// The door counts rows as room. When blocks are what is short, the scheduler's own queue fills, and the refusal is an event.
TEST_P(EngineTest, ARefusalBehindTheDoorIsAnEvent) {
  fake_.info.num_blocks = 4;
  options_.scheduler.max_waiting = 1;
  gate_.Close();
  Start();
  ASSERT_EQ(Submit(Make(1, 13, 3)), absl::StatusCode::kOk);
  gate_.WaitForStep(1);
  ASSERT_EQ(Submit(Make(2, 13, 3)), absl::StatusCode::kOk);
  gate_.LetPass(1);
  gate_.WaitForStep(2);
  ASSERT_EQ(Submit(Make(3, 13, 3)), absl::StatusCode::kOk);
  gate_.Open();
  const Stream refused = reader_.WaitForEnd(3);
  EXPECT_EQ(refused.end.reason, FinishReason::kError);
  EXPECT_EQ(refused.end.reject_code, static_cast<int32_t>(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(refused.end.error, HasSubstr("queue is full"));
  EXPECT_EQ(reader_.WaitForEnd(1).ids, Expected(Make(1, 13, 3)));
  EXPECT_EQ(reader_.WaitForEnd(2).ids, Expected(Make(2, 13, 3)));
  engine_->Stop();
  EXPECT_EQ(engine_->live(), 0);
}

TEST_P(EngineTest, ACancelTakesEffectAtTheNextStepBoundary) {
  gate_.Close();
  Start();
  ASSERT_EQ(Submit(Make(1, 3, 50)), absl::StatusCode::kOk);
  gate_.WaitForStep(1);
  ASSERT_EQ(Submit(Make(2, 3, 5)), absl::StatusCode::kOk);
  engine_->Cancel(1);
  engine_->Cancel(77);  // unknown: ignored
  gate_.Open();
  const Stream cancelled = reader_.WaitForEnd(1);
  EXPECT_EQ(cancelled.end.reason, FinishReason::kAbort);
  EXPECT_EQ(cancelled.ids.size(), GetParam() == 0 ? 1u : 0u) << "the step in flight brought its token before; one step behind it is dropped";
  EXPECT_EQ(reader_.WaitForEnd(2).ids, Expected(Make(2, 3, 5)));
}

TEST_P(EngineTest, ACancelRightBehindItsSubmissionIsNotLost) {
  gate_.Close();
  Start();
  ASSERT_EQ(Submit(Make(1, 3, 5)), absl::StatusCode::kOk);
  gate_.WaitForStep(1);
  ASSERT_EQ(Submit(Make(2, 3, 50)), absl::StatusCode::kOk);
  engine_->Cancel(2);
  gate_.Open();
  const Stream cancelled = reader_.WaitForEnd(2);
  EXPECT_EQ(cancelled.end.reason, FinishReason::kAbort);
  EXPECT_FALSE(cancelled.started);
  EXPECT_THAT(cancelled.ids, IsEmpty());
}

TEST_P(EngineTest, CreditPausesAndResumesAStream) {
  Start();
  Request request = Make(1, 3, 9);
  request.credit = 4;
  ASSERT_EQ(Submit(request), absl::StatusCode::kOk);
  const Request other = Make(2, 3, 60);
  ASSERT_EQ(Submit(other), absl::StatusCode::kOk);
  reader_.WaitForEnd(2);
  reader_.WaitForTokens(1, 4);
  EXPECT_EQ(reader_.Get(1).ids.size(), 4u) << "sixty steps have gone by";
  engine_->AddCredit(1, 2);
  engine_->AddCredit(77, 2);
  reader_.WaitForTokens(1, 6);
  engine_->AddCredit(1, UINT32_MAX);
  EXPECT_EQ(reader_.WaitForEnd(1).ids, Expected(request));
}

TEST_P(EngineTest, APoisonedRowFailsItsOwnRequestOnly) {
  fake_.poison_id = 6;
  Start();
  const Request good = Make(1, 5, 20);
  ASSERT_EQ(Submit(good), absl::StatusCode::kOk);
  ASSERT_EQ(Submit(Make(2, 5, 20)), absl::StatusCode::kOk);  // begins with id 6
  const Stream failed = reader_.WaitForEnd(2);
  EXPECT_EQ(failed.end.reason, FinishReason::kError);
  EXPECT_EQ(failed.end.reject_code, 0);
  EXPECT_THAT(failed.end.error, HasSubstr("no valid next token"));
  EXPECT_EQ(reader_.WaitForEnd(1).ids, Expected(good));
}

TEST_P(EngineTest, DrainingRefusesNewWorkAndFinishesTheOld) {
  gate_.Close();
  Start();
  const Request request = Make(1, 3, 20);
  ASSERT_EQ(Submit(request), absl::StatusCode::kOk);
  gate_.WaitForStep(1);
  engine_->BeginDrain();
  EXPECT_TRUE(engine_->draining());
  EXPECT_EQ(Submit(Make(2, 3, 2)), absl::StatusCode::kUnavailable);
  gate_.Open();
  EXPECT_EQ(reader_.WaitForEnd(1).ids, Expected(request));
  EXPECT_TRUE(reader_.load().draining);
}

TEST(InboxTest, AWakeBetweenTwoWaitsIsNotLost) {
  Inbox inbox(1);
  inbox.Wake();
  EXPECT_TRUE(inbox.Take().empty());
  inbox.WaitFor(std::chrono::hours(1));  // returns at once
}

TEST_P(EngineTest, AnIdleEngineReportsItsDrainAtOnce) {
  options_.idle_report = std::chrono::hours(1);
  Start();
  engine_->BeginDrain();
  reader_.WaitForDrainReport();
}

TEST_P(EngineTest, StopAbortsWhatIsLeft) {
  gate_.Close();
  Start();
  ASSERT_EQ(Submit(Make(1, 3, 100)), absl::StatusCode::kOk);
  gate_.WaitForStep(1);
  ASSERT_EQ(Submit(Make(2, 3, 100)), absl::StatusCode::kOk);
  std::thread stopper([this] { engine_->Stop(); });
  // One that could never run is refused as such until Stop has begun.
  while (Submit(Make(3, 500, 1)) == absl::StatusCode::kInvalidArgument) std::this_thread::yield();
  gate_.Open();
  stopper.join();
  EXPECT_EQ(reader_.Get(1).end.reason, FinishReason::kAbort);
  EXPECT_EQ(reader_.Get(2).end.reason, FinishReason::kAbort);
  EXPECT_EQ(engine_->live(), 0);
  EXPECT_EQ(Submit(Make(4, 3, 1)), absl::StatusCode::kUnavailable);
  engine_->Stop();  // again
}

TEST_P(EngineTest, ADeviceErrorEndsTheLoop) {
  fake_.fail_at_step = 4;
  Start();
  ASSERT_EQ(Submit(Make(1, 3, 100)), absl::StatusCode::kOk);
  EXPECT_THAT(reader_.WaitForFatal(), HasSubstr("fake device error"));
  const Stream stream = reader_.Get(1);
  EXPECT_EQ(stream.ids.size(), GetParam() == 0 ? 3u : 2u) << "the steps collected before it are out";
  EXPECT_FALSE(stream.finished) << "the process ends; the router resumes elsewhere";
  EXPECT_EQ(Submit(Make(2, 3, 1)), absl::StatusCode::kUnavailable);
  engine_->Stop();
}

TEST_P(EngineTest, ADeviceErrorOfAStepInFlightEndsTheLoop) {
  fake_.fail_in_collect = 4;
  Start();
  ASSERT_EQ(Submit(Make(1, 3, 100)), absl::StatusCode::kOk);
  EXPECT_THAT(reader_.WaitForFatal(), HasSubstr("fake device error"));
  EXPECT_EQ(reader_.Get(1).ids.size(), 3u);
  engine_->Stop();
}

// While a long step runs, the next is not planned yet: a request that comes meanwhile is in it.
TEST_P(EngineTest, ARequestDuringALongStepIsInTheNext) {
  fake_.step_delay_us = 100000;
  options_.plan_late = true;
  Start();
  ASSERT_EQ(Submit(Make(1, 3, 50)), absl::StatusCode::kOk);
  reader_.WaitForTokens(1, 4);  // the engine knows by now how long a step takes
  const size_t before = reader_.Get(1).ids.size();
  ASSERT_EQ(Submit(Make(2, 3, 1)), absl::StatusCode::kOk);
  EXPECT_EQ(reader_.WaitForEnd(2).ids, Expected(Make(2, 3, 1)));
  EXPECT_LE(reader_.Get(1).ids.size(), before + 2) << "the step in flight, and the one with both";
}

// The executor prepares once nothing has come for a while, and a request ends that.
TEST_P(EngineTest, AQuietEngineLetsItsExecutorPrepare) {
  options_.idle_report = std::chrono::milliseconds(1);
  fake_.preparations = 5;
  Start();
  reader_.WaitForReports(3);
  EXPECT_EQ(executor_->prepared(), 5);
  const Request request = Make(1, 4, 9);
  ASSERT_EQ(Submit(request), absl::StatusCode::kOk);
  EXPECT_EQ(reader_.WaitForEnd(1).ids, Expected(request));
}

TEST_P(EngineTest, AnIdleEngineReportsItsLoadNowAndThen) {
  options_.idle_report = std::chrono::milliseconds(1);
  Start();
  reader_.WaitForReports(3);
  EXPECT_EQ(reader_.load().blocks_total, 64);
  EXPECT_EQ(reader_.load().steps, 0u);
}

TEST_P(EngineTest, EveryStepIsToldToTheMetrics) {
  int32_t tokens = 0;
  int finished = 0;
  uint64_t steps = 0;
  on_step_ = [&](const EngineStep& step) {  // engine thread; read after Stop
    tokens += step.num_tokens;
    finished += static_cast<int>(step.finished->size());
    steps = step.counters.steps;
    EXPECT_GE(step.plan_seconds, 0);
    EXPECT_GE(step.run_seconds, 0);
  };
  Start();
  ASSERT_EQ(Submit(Make(1, 40, 5)), absl::StatusCode::kOk);
  reader_.WaitForEnd(1);
  engine_->Stop();
  EXPECT_EQ(tokens, 44) << "the last token is drawn and never computed";
  EXPECT_EQ(finished, 1);
  EXPECT_EQ(steps, 6u) << "two chunks of a prompt of 40, four decodes";
}

TEST_P(EngineTest, FewBlocksCostTimeAndNoToken) {
  fake_.info.num_blocks = 32;  // one sequence of the longest length
  uint64_t preemptions = 0;
  on_step_ = [&](const EngineStep& step) { preemptions = step.counters.preemptions; };
  Start();
  for (SequenceId id = 1; id <= 8; ++id) ASSERT_EQ(Submit(Make(id, 10, 60)), absl::StatusCode::kOk);
  for (SequenceId id = 1; id <= 8; ++id) EXPECT_EQ(reader_.WaitForEnd(id).ids, Expected(Make(id, 10, 60))) << id;
  engine_->Stop();
  EXPECT_GT(preemptions, 0u);
}

INSTANTIATE_TEST_SUITE_P(StepsAhead, EngineTest, ::testing::Values(0, 1));

}  // namespace
}  // namespace phalanx::worker
