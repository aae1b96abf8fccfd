#include "router/dispatch.h"

#include <gmock/gmock.h>

#include "router/relay_test_util.h"
#include "services/clock.h"

namespace phalanx::router {
namespace {

using core::WorkerEvent;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// A dispatch over scripted workers, single-threaded, with a clock turned by hand.
class DispatchTest : public testing::Test {
 protected:
  explicit DispatchTest(int workers = 2) : metrics_("demo", workers) {
    std::vector<core::WorkerLink*> links;
    for (int i = 0; i < workers; ++i) workers_.push_back(std::make_unique<ScriptedWorker>());
    for (const auto& worker : workers_) links.push_back(worker.get());
    epochs_.assign(workers, 1);
    dispatch_ = std::make_unique<Dispatch>(options_, links, DemoTokenizer(), &metrics_,
                                           [this](const Running&, const absl::Status&) { ++ended_; });
  }

  void Up(int worker) { ASSERT_TRUE(dispatch_->Up(worker, epochs_[worker], TestInfo()).ok()); }
  // The worker dies; its next life has another epoch and knows nothing.
  void Kill(int worker) {
    dispatch_->Down(worker, epochs_[worker], clock_.Now());
    workers_[worker]->Restart(++epochs_[worker]);
  }
  void Step(int worker) { Send(worker, workers_[worker]->Step()); }
  void Send(int worker, std::vector<WorkerEvent> events, core::WorkerLoad load = {}) {
    dispatch_->Batch(worker, epochs_[worker], std::move(events), load, clock_.Now());
  }
  void StepAll(int times) {
    for (int i = 0; i < times; ++i) {
      for (size_t w = 0; w < workers_.size(); ++w) Step(static_cast<int>(w));
    }
  }

  struct Started {
    std::shared_ptr<Running> running;
    std::shared_ptr<RecordingSink> sink;
  };
  Started Begin(core::Draft draft, std::vector<std::vector<int32_t>> prompts = {{1, 2, 3}}) {
    Started out{std::make_shared<Running>(), std::make_shared<RecordingSink>()};
    out.running->request = Valid(std::move(draft));
    out.running->sink = out.sink;
    out.running->seed = out.running->request.sampling.seed.value_or(77);
    out.running->seed_is_own = out.running->request.sampling.seed.has_value();
    out.running->arrived = clock_.Now();
    PreparedRequest prepared;
    for (auto& ids : prompts) {
      PreparedPrompt prompt;
      prompt.ids = std::make_shared<const std::vector<int32_t>>(std::move(ids));
      prompt.max_tokens = std::max(1, out.running->request.sampling.max_tokens.value_or(16));
      prepared.prompts.push_back(std::move(prompt));
    }
    dispatch_->Begin(out.running, std::move(prepared), clock_.Now());
    return out;
  }
  // The text an undisturbed run gives.
  std::string Undisturbed(const core::Draft& draft, int32_t index = 0) {
    RouterMetrics metrics("demo", 1);
    ScriptedWorker worker;
    Dispatch dispatch(options_, {&worker}, DemoTokenizer(), &metrics, [](const Running&, const absl::Status&) {});
    EXPECT_TRUE(dispatch.Up(0, 1, TestInfo()).ok());
    std::swap(dispatch_, undisturbed_);
    dispatch_.reset(&dispatch);
    const Started run = Begin(draft);
    run.running->consumed = 1 << 20;
    while (!run.sink->ended()) dispatch.Batch(0, 1, worker.Step(), {}, clock_.Now());
    EXPECT_TRUE(run.sink->status().ok());
    static_cast<void>(dispatch_.release());
    std::swap(dispatch_, undisturbed_);
    return run.sink->text(index).text;
  }
  int Where(const Started& run, size_t choice = 0) const { return run.running->choices[choice].worker; }

  DispatchOptions options_{.credit_window = 64};
  services::ManualClock clock_;
  RouterMetrics metrics_;
  std::vector<std::unique_ptr<ScriptedWorker>> workers_;
  std::vector<uint64_t> epochs_;
  std::unique_ptr<Dispatch> dispatch_, undisturbed_;
  int ended_ = 0;
};

TEST_F(DispatchTest, OneRequestRunsToItsEnd) {
  Up(0);
  const Started run = Begin(Completion({"x"}, 5));
  ASSERT_THAT(workers_[0]->submissions(), SizeIs(1));
  const core::Submission sent = workers_[0]->submissions().front();
  EXPECT_EQ(*sent.prompt_ids, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(sent.max_tokens, 5);
  EXPECT_EQ(sent.seed, 11u);
  EXPECT_EQ(sent.credit, 5u);
  StepAll(4);
  EXPECT_FALSE(run.sink->ended());
  Step(0);
  EXPECT_TRUE(run.sink->status().ok());
  EXPECT_EQ(run.sink->text().finish, core::Finish::kLength);
  EXPECT_THAT(run.sink->text().ids, SizeIs(5));
  EXPECT_EQ(run.sink->text().text, DemoTokenizer()->Decode(run.sink->text().ids, true));
  EXPECT_EQ(run.sink->usage().prompt_tokens, 3);
  EXPECT_EQ(run.sink->usage().completion_tokens, 5);
  EXPECT_THAT(workers_[0]->cancels(), IsEmpty());
  EXPECT_EQ(dispatch_->live(), 0u);
  EXPECT_EQ(dispatch_->fleet().snapshot().workers[0].in_flight, 0);
  EXPECT_EQ(ended_, 1);
}

TEST_F(DispatchTest, ChoicesOfAPromptShareAWorkerAndCountItOnce) {
  Up(0);
  Up(1);
  workers_[0]->cached_tokens = workers_[1]->cached_tokens = 2;
  core::Draft draft = Completion({"x"}, 4);
  draft.sampling.n = 2;
  const Started run = Begin(draft);
  EXPECT_EQ(Where(run, 0), Where(run, 1));
  StepAll(4);
  EXPECT_TRUE(run.sink->status().ok());
  EXPECT_EQ(run.sink->choices(), 2u);
  EXPECT_NE(run.sink->text(0).ids, run.sink->text(1).ids);
  EXPECT_EQ(run.sink->usage().prompt_tokens, 3);
  EXPECT_EQ(run.sink->usage().completion_tokens, 8);
  EXPECT_EQ(run.sink->usage().cached_tokens, 2);
}

TEST_F(DispatchTest, TwoPromptsSpreadAndTheOwnSeedGivesEqualPromptsEqualOutput) {
  Up(0);
  Up(1);
  const Started run = Begin(Completion({"x", "x"}, 4), {{1, 2, 3}, {1, 2, 3}});
  EXPECT_NE(Where(run, 0), Where(run, 1));
  StepAll(4);
  EXPECT_TRUE(run.sink->status().ok());
  EXPECT_EQ(run.sink->text(0).ids, run.sink->text(1).ids);
  EXPECT_EQ(run.sink->usage().prompt_tokens, 6);
}

TEST_F(DispatchTest, WithoutAnOwnSeedEqualPromptsDiffer) {
  Up(0);
  core::Draft draft = Completion({"x", "x"}, 4);
  draft.sampling.seed.reset();
  const Started run = Begin(draft, {{1, 2, 3}, {1, 2, 3}});
  StepAll(4);
  EXPECT_NE(run.sink->text(0).ids, run.sink->text(1).ids);
}

TEST_F(DispatchTest, AStopStringCancelsAtTheWorker) {
  Up(0);
  core::Draft draft = Completion({"x"}, 40);
  const std::string whole = Undisturbed(draft);
  size_t from = whole.size() / 2;
  while ((whole[from] & 0xC0) == 0x80) ++from;
  size_t to = from + 6;
  while (to < whole.size() && (whole[to] & 0xC0) == 0x80) ++to;
  const std::string stop = whole.substr(from, to - from);
  draft.sampling.stop = {stop};
  const Started run = Begin(draft);
  StepAll(40);
  EXPECT_TRUE(run.sink->status().ok());
  EXPECT_EQ(run.sink->text().finish, core::Finish::kStop);
  EXPECT_EQ(run.sink->text().stop_string, stop);
  EXPECT_EQ(run.sink->text().text, whole.substr(0, whole.find(stop)));
  EXPECT_THAT(workers_[0]->cancels(), ElementsAre(workers_[0]->submissions().front().id));
  EXPECT_EQ(dispatch_->fleet().snapshot().workers[0].in_flight, 0);
}

TEST_F(DispatchTest, OneChoiceStopsAndTheOtherRunsOn) {
  Up(0);
  core::Draft draft = Completion({"x"}, 12);
  draft.sampling.n = 2;
  const Started run = Begin(draft);
  StepAll(2);
  const uint64_t first = workers_[0]->submissions()[0].id;
  Send(0, {{.id = first, .ids = {5}, .end = WorkerEvent::End::kStop, .stop_id = 5}});
  EXPECT_EQ(run.sink->text(0).finish, core::Finish::kStop);
  EXPECT_FALSE(run.sink->ended());
  StepAll(12);
  EXPECT_TRUE(run.sink->status().ok());
  EXPECT_EQ(run.sink->text(1).finish, core::Finish::kLength);
  EXPECT_EQ(run.sink->usage().completion_tokens, 3 + 12);
}

TEST_F(DispatchTest, WithoutAWorkerARequestEndsAtOnce) {
  const Started run = Begin(Completion({"x"}, 5));
  EXPECT_EQ(run.sink->status().code(), absl::StatusCode::kUnavailable);
  EXPECT_GE(core::RetryAfterOf(run.sink->status()), 1);
  EXPECT_EQ(dispatch_->live(), 0u);
}

TEST_F(DispatchTest, LostBeforeTheFirstTokenIsRetriedElsewhere) {
  Up(0);
  Up(1);
  const core::Draft draft = Completion({"x"}, 20);
  const Started run = Begin(draft);
  const int first = Where(run), second = 1 - first;
  Kill(first);
  EXPECT_EQ(Where(run), second);
  ASSERT_THAT(workers_[second]->submissions(), SizeIs(1));
  EXPECT_THAT(workers_[second]->submissions()[0].resume_output_ids, IsEmpty());
  StepAll(20);
  EXPECT_TRUE(run.sink->status().ok());
  EXPECT_EQ(run.sink->text().text, Undisturbed(draft));
}

TEST_F(DispatchTest, LostInTheMiddleResumesExactly) {
  Up(0);
  Up(1);
  const core::Draft draft = Completion({"x"}, 40);
  const std::string whole = Undisturbed(draft);
  for (int cut = 1; cut < 40; cut += 3) {
    const Started run = Begin(draft);
    run.running->consumed = 1 << 20;  // it reads as fast as it can
    StepAll(cut);
    const int first = Where(run), second = 1 - first;
    const size_t before = workers_[second]->submissions().size();
    Kill(first);
    ASSERT_THAT(workers_[second]->submissions(), SizeIs(before + 1));
    const core::Submission resumed = workers_[second]->submissions().back();
    EXPECT_EQ(resumed.resume_output_ids, run.sink->text().ids);
    EXPECT_EQ(resumed.max_tokens, 40);
    EXPECT_EQ(*resumed.prompt_ids, (std::vector<int32_t>{1, 2, 3}));
    StepAll(40);
    EXPECT_TRUE(run.sink->status().ok());
    EXPECT_EQ(run.sink->text().text, whole) << "cut after " << cut;
    EXPECT_EQ(run.sink->usage().completion_tokens, 40);
    EXPECT_EQ(run.sink->usage().prompt_tokens, 3);
    Up(first);
  }
}

TEST_F(DispatchTest, ResumesBothChoicesFromTheirOwnIds) {
  Up(0);
  Up(1);
  core::Draft draft = Completion({"x"}, 30);
  draft.sampling.n = 2;
  const std::string whole[] = {Undisturbed(draft, 0), Undisturbed(draft, 1)};
  const Started run = Begin(draft);
  StepAll(9);
  Kill(Where(run));
  StepAll(30);
  EXPECT_TRUE(run.sink->status().ok());
  EXPECT_EQ(run.sink->text(0).text, whole[0]);
  EXPECT_EQ(run.sink->text(1).text, whole[1]);
  EXPECT_EQ(run.running->losses, 1);
}

TEST_F(DispatchTest, WaitsForTheRestartedWorker) {
  Up(0);
  const core::Draft draft = Completion({"x"}, 20);
  const Started run = Begin(draft);
  StepAll(7);
  Kill(0);
  EXPECT_FALSE(run.sink->ended());
  ASSERT_TRUE(dispatch_->next_deadline());
  EXPECT_EQ(*dispatch_->next_deadline(), clock_.Now() + options_.resume_wait);
  Up(0);
  EXPECT_FALSE(dispatch_->next_deadline());
  StepAll(20);
  EXPECT_TRUE(run.sink->status().ok());
  EXPECT_EQ(run.sink->text().text, Undisturbed(draft));
}

TEST_F(DispatchTest, GivesUpWaitingAtTheDeadline) {
  Up(0);
  const Started run = Begin(Completion({"x"}, 20));
  StepAll(7);
  Kill(0);
  clock_.Advance(options_.resume_wait - std::chrono::milliseconds(1));
  dispatch_->Expire(clock_.Now());
  EXPECT_FALSE(run.sink->ended());
  clock_.Advance(std::chrono::milliseconds(1));
  dispatch_->Expire(clock_.Now());
  EXPECT_EQ(run.sink->status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(run.sink->usage().completion_tokens, 7);
  EXPECT_EQ(dispatch_->live(), 0u);
  Up(0);  // nothing is left that could be sent
  EXPECT_THAT(workers_[0]->submissions(), SizeIs(1));
}

TEST_F(DispatchTest, ARequestUnderWhichThreeWorkersDieEnds) {
  Up(0);
  const Started run = Begin(Completion({"x"}, 20));
  for (int death = 0; death < 3; ++death) {
    EXPECT_FALSE(run.sink->ended()) << death;
    Step(0);
    Kill(0);
    Up(0);
  }
  EXPECT_EQ(run.sink->status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(workers_[0]->submissions(), SizeIs(3));
}

TEST_F(DispatchTest, AnOldLifesEventsAreDropped) {
  Up(0);
  const core::Draft draft = Completion({"x"}, 20);
  const Started run = Begin(draft);
  StepAll(3);
  const std::vector<WorkerEvent> late = workers_[0]->Step();  // made, but still under way when the stream ends
  const uint64_t old_epoch = epochs_[0];
  Kill(0);
  Up(0);
  dispatch_->Batch(0, old_epoch, late, {.draining = true}, clock_.Now());
  EXPECT_EQ(dispatch_->fleet().ready_count(), 1);             // nor is its load believed
  dispatch_->Down(0, old_epoch, clock_.Now());                // heard twice
  Send(0, {{.id = workers_[0]->submissions()[0].id, .ids = {9}}});  // a submission given up
  StepAll(20);
  EXPECT_TRUE(run.sink->status().ok());
  EXPECT_EQ(run.sink->text().text, Undisturbed(draft));
}

TEST_F(DispatchTest, AWorkersAbortIsALossAndADrainingRefusalToo) {
  Up(0);
  Up(1);
  const core::Draft draft = Completion({"x"}, 20);
  const std::string whole = Undisturbed(draft);
  for (const auto end : {WorkerEvent::End::kAborted, WorkerEvent::End::kRejected}) {
    const Started run = Begin(draft);
    const int first = Where(run);
    const uint64_t id = workers_[first]->submissions().back().id;
    workers_[first]->Restart(epochs_[first]);  // it has forgotten the sequence
    Send(1 - first, {}, {.running = 9});       // busier, and still better than going back
    Send(first, {{.id = id, .end = end, .error = "draining", .reject_code = absl::StatusCode::kUnavailable}});
    EXPECT_EQ(Where(run), 1 - first);
    StepAll(20);
    EXPECT_TRUE(run.sink->status().ok());
    EXPECT_EQ(run.sink->text().text, whole);
  }
}

TEST_F(DispatchTest, RejectionsKeepTheirCode) {
  Up(0);
  const struct {
    absl::StatusCode code;
    const char* error_code;
  } rows[] = {{absl::StatusCode::kInvalidArgument, ""}, {absl::StatusCode::kResourceExhausted, "queue_full"}};
  for (const auto& row : rows) {
    const Started run = Begin(Completion({"x"}, 5));
    const uint64_t id = workers_[0]->submissions().back().id;
    workers_[0]->Restart(epochs_[0]);
    Send(0, {{.id = id, .end = WorkerEvent::End::kRejected, .error = "prompt_ids: too long", .reject_code = row.code}});
    EXPECT_EQ(run.sink->status().code(), row.code);
    EXPECT_EQ(core::ErrorCodeOf(run.sink->status()), row.error_code);
    EXPECT_EQ(core::RetryAfterOf(run.sink->status()) > 0, row.code == absl::StatusCode::kResourceExhausted);
  }
}

TEST_F(DispatchTest, AFailedSequenceEndsItsRequestAlone) {
  Up(0);
  core::Draft draft = Completion({"x"}, 10);
  draft.sampling.n = 2;
  const Started bad = Begin(draft), good = Begin(Completion({"y"}, 10));
  StepAll(2);
  const uint64_t failed = workers_[0]->submissions()[0].id, sibling = workers_[0]->submissions()[1].id;
  Send(0, {{.id = failed, .end = WorkerEvent::End::kError, .error = "NaN"}});
  EXPECT_EQ(bad.sink->status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(workers_[0]->cancels(), ElementsAre(sibling));
  StepAll(10);
  EXPECT_TRUE(good.sink->status().ok());
}

TEST_F(DispatchTest, CancelFreesTheWorker) {
  Up(0);
  core::Draft draft = Completion({"x"}, 10);
  draft.sampling.n = 2;
  const Started run = Begin(draft);
  StepAll(2);
  dispatch_->End(*run.running, absl::CancelledError("gone"), clock_.Now());
  dispatch_->End(*run.running, absl::CancelledError("gone"), clock_.Now());  // idempotent
  EXPECT_EQ(run.sink->status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(workers_[0]->cancels(), SizeIs(2));
  EXPECT_EQ(workers_[0]->running(), 0u);
  EXPECT_EQ(dispatch_->fleet().snapshot().workers[0].in_flight, 0);
  Step(0);
  EXPECT_EQ(ended_, 1);
}

TEST_F(DispatchTest, CancelWhileWaitingForAWorker) {
  Up(0);
  const Started run = Begin(Completion({"x"}, 10));
  Kill(0);
  dispatch_->End(*run.running, absl::CancelledError("gone"), clock_.Now());
  EXPECT_EQ(run.sink->status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(dispatch_->next_deadline());
  Up(0);
  EXPECT_THAT(workers_[0]->submissions(), SizeIs(1));
}

TEST_F(DispatchTest, AStalledReaderStopsItsOwnSequenceAlone) {
  Up(0);
  const Started stalled = Begin(Completion({"x"}, 500)), reading = Begin(Completion({"y"}, 500));
  for (int i = 0; i < 600; ++i) {
    Step(0);
    reading.running->consumed = reading.sink->usage().completion_tokens;
    if (!reading.running->ended()) dispatch_->Consumed(*reading.running);
  }
  EXPECT_TRUE(reading.sink->status().ok());
  EXPECT_FALSE(stalled.sink->ended());
  const int ahead = stalled.sink->usage().completion_tokens;
  EXPECT_GE(ahead, options_.credit_window);
  EXPECT_LE(ahead, options_.credit_window * 3 / 2);
  // It reads on, and gets the very same text.
  for (int i = 0; i < 600 && !stalled.sink->ended(); ++i) {
    stalled.running->consumed = stalled.sink->usage().completion_tokens;
    dispatch_->Consumed(*stalled.running);
    Step(0);
  }
  EXPECT_TRUE(stalled.sink->status().ok());
  EXPECT_EQ(stalled.sink->text().text, Undisturbed(Completion({"x"}, 500)));
}

TEST_F(DispatchTest, AStalledReaderStaysStalledOverAResume) {
  Up(0);
  Up(1);
  const Started run = Begin(Completion({"x"}, 500));
  StepAll(300);
  const int ahead = run.sink->usage().completion_tokens;
  Kill(Where(run));
  StepAll(300);
  EXPECT_EQ(run.sink->usage().completion_tokens, ahead + 1);
}

TEST_F(DispatchTest, APlainReplyNeedsNoCredit) {
  Up(0);
  core::Draft draft = Completion({"x"}, 500);
  draft.stream = false;
  const Started run = Begin(draft);
  StepAll(500);
  EXPECT_TRUE(run.sink->status().ok());
  EXPECT_EQ(run.sink->usage().completion_tokens, 500);
}

TEST_F(DispatchTest, LogprobsOfPromptAndOutputSurviveALoss) {
  Up(0);
  Up(1);
  core::Draft draft = Completion({"x"}, 6);
  draft.echo = true;
  draft.sampling.logprobs = 0;
  draft.stream = false;
  const Started early = Begin(draft);
  // The first part of the prompt's scores came, and then the worker was lost.
  const int first = Where(early);
  Send(first, {{.id = workers_[first]->submissions()[0].id, .started = true, .prompt_logprobs = {{.id = 2, .rank = 1}}}});
  Kill(first);
  StepAll(6);
  EXPECT_TRUE(early.sink->status().ok());
  EXPECT_EQ(early.sink->text().prompt_logprobs, 3u);
  EXPECT_EQ(early.sink->text().logprobs, 6u);
  Up(first);
  const Started late = Begin(draft);
  StepAll(3);
  Kill(Where(late));
  EXPECT_EQ(workers_[Where(late)]->submissions().back().sampling.prompt_logprobs, -1);
  StepAll(6);
  EXPECT_EQ(late.sink->text().prompt_logprobs, 3u);
  EXPECT_EQ(late.sink->text().logprobs, 6u);
}

TEST_F(DispatchTest, AnotherModelsWorkerIsNotUsed) {
  Up(0);
  core::WorkerInfo other = TestInfo();
  other.vocab_size = 7;
  EXPECT_EQ(dispatch_->Up(1, 1, other).code(), absl::StatusCode::kFailedPrecondition);
  const Started run = Begin(Completion({"x", "y"}, 4), {{1}, {2}});
  EXPECT_EQ(Where(run, 0), 0);
  EXPECT_EQ(Where(run, 1), 0);
}

TEST_F(DispatchTest, EndAllTellsEveryClient) {
  Up(0);
  const Started a = Begin(Completion({"x"}, 10)), b = Begin(Completion({"y"}, 10));
  dispatch_->EndAll(absl::UnavailableError("stop"), clock_.Now());
  EXPECT_EQ(a.sink->status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(b.sink->status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(workers_[0]->cancels(), SizeIs(2));
}

}  // namespace
}  // namespace phalanx::router
