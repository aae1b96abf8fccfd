#include "router/relay.h"

#include <gmock/gmock.h>

#include "router/relay_test_util.h"
#include "services/clock.h"

namespace phalanx::router {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

// The whole relay with its threads, over scripted workers that the test steps.
class RelayTest : public testing::Test {
 protected:
  void Make(RelayOptions options = {}, int workers = 2) {
    options.served_names = {"demo"};
    options.on_ready = [this](bool ready) {
      std::lock_guard lock(mutex_);
      ready_ = ready;
      changed_.notify_all();
    };
    std::vector<core::WorkerLink*> links;
    for (int i = 0; i < workers; ++i) links.push_back(workers_.emplace_back(std::make_unique<ScriptedWorker>()).get());
    metrics_ = std::make_unique<RouterMetrics>("demo", workers);
    auto prompts = std::make_shared<PromptMaker>(DemoTokenizer(), DemoTemplate());
    relay_ = std::make_unique<Relay>(std::move(options), std::move(prompts), metrics_.get(), &clock_);
    relay_->Run(std::move(links));
  }
  void WaitReady(bool ready) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, kPatience, [&] { return ready_ == ready; }));
  }
  void Up(int worker, uint64_t epoch = 1) {
    relay_->OnUp(worker, epoch, TestInfo());
    WaitReady(true);
  }
  std::shared_ptr<core::Call> Start(core::Draft draft, const std::shared_ptr<RecordingSink>& sink) {
    return relay_->Start(Valid(std::move(draft)), sink);
  }
  void WaitSubmissions(int worker, size_t count) {
    workers_[worker]->WaitUntil([&](size_t, size_t submitted, size_t) { return submitted >= count; });
  }
  // Steps the worker until the sink has ended, reading as it goes.
  void Drive(int worker, const RecordingSink& sink, core::Call& call, uint64_t epoch = 1) {
    int read = 0;
    while (!sink.ended()) {
      const uint64_t rings = TestBell().rings();
      std::vector<core::WorkerEvent> events = workers_[worker]->Step();
      const bool stepped = !events.empty();
      if (stepped) relay_->OnBatch(worker, epoch, std::move(events), {});
      const int fresh = sink.usage().completion_tokens - read;
      if (fresh > 0) call.Consumed(fresh);
      read += fresh;
      if (stepped || fresh > 0 || sink.ended()) continue;
      ASSERT_TRUE(TestBell().WaitPast(rings)) << "nothing moves any more";
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool ready_ = false;
  services::SteadyClock clock_;
  std::vector<std::unique_ptr<ScriptedWorker>> workers_;
  std::unique_ptr<RouterMetrics> metrics_;
  std::unique_ptr<Relay> relay_;
};

TEST_F(RelayTest, AChatRunsThroughAllStages) {
  Make();
  Up(0);
  EXPECT_TRUE(relay_->Ready());
  EXPECT_EQ(relay_->limits().max_model_len, kContext);
  EXPECT_EQ(relay_->limits().vocab_size, kVocab);
  auto sink = std::make_shared<RecordingSink>();
  core::Draft draft = Chat("Hi");
  draft.sampling.max_tokens = 30;
  const auto call = Start(draft, sink);
  WaitSubmissions(0, 1);
  const std::string prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n";
  const auto rendered = DemoTokenizer()->Encode(prompt, text::SpecialTokens::kNone);
  ASSERT_TRUE(rendered.ok());
  EXPECT_EQ(*workers_[0]->submissions()[0].prompt_ids, *rendered);
  Drive(0, *sink, *call);
  EXPECT_TRUE(sink->WaitEnd().ok());
  EXPECT_EQ(sink->usage().completion_tokens, 30);
  EXPECT_EQ(sink->usage().prompt_tokens, static_cast<int32_t>(rendered->size()));
  EXPECT_EQ(sink->usage().reasoning_tokens, 30);  // the prompt opens <think>, and nothing closed it
  EXPECT_EQ(relay_->live(), 0);
}

TEST_F(RelayTest, LongStreamsGoOnAsTheyAreRead) {
  Make({.dispatch = {.credit_window = 16}});
  Up(0);
  auto sink = std::make_shared<RecordingSink>();
  const auto call = Start(Completion({"Hello"}, 2000), sink);
  WaitSubmissions(0, 1);
  Drive(0, *sink, *call);
  EXPECT_TRUE(sink->WaitEnd().ok());
  EXPECT_EQ(sink->usage().completion_tokens, 2000);
}

TEST_F(RelayTest, NoWorkerIs503AtOnce) {
  Make();
  EXPECT_FALSE(relay_->Ready());
  auto sink = std::make_shared<RecordingSink>();
  Start(Completion({"Hello"}, 5), sink);
  EXPECT_EQ(sink->WaitEnd().code(), absl::StatusCode::kUnavailable);
  EXPECT_GE(core::RetryAfterOf(sink->status()), 1);
}

TEST_F(RelayTest, TheQueueLimitIs429) {
  Make({.admission = {.max_requests = 2}});
  Up(0);
  auto a = std::make_shared<RecordingSink>(), b = std::make_shared<RecordingSink>(), c = std::make_shared<RecordingSink>();
  const auto call_a = Start(Completion({"a"}, 5), a);
  const auto call_b = Start(Completion({"b"}, 5), b);
  Start(Completion({"c"}, 5), c);
  EXPECT_EQ(c->WaitEnd().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(core::ErrorCodeOf(c->status()), "queue_full");
  EXPECT_GE(core::RetryAfterOf(c->status()), 1);
  call_a->Cancel();
  EXPECT_EQ(a->WaitEnd().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(relay_->live(), 1);
  auto d = std::make_shared<RecordingSink>();
  const auto call_d = Start(Completion({"d"}, 5), d);
  WaitSubmissions(0, 2);
  Drive(0, *d, *call_d);
  EXPECT_TRUE(d->WaitEnd().ok());
}

TEST_F(RelayTest, CancelWhileWaitingToBeEncoded) {
  Make({.prompt_threads = 0, .prompt_queue_max = 1});  // nobody takes it from the queue
  Up(0);
  auto queued = std::make_shared<RecordingSink>(), refused = std::make_shared<RecordingSink>();
  const auto call = Start(Completion({"a"}, 5), queued);
  Start(Completion({"b"}, 5), refused);
  EXPECT_EQ(refused->WaitEnd().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(queued->ended());
  call->Cancel();
  EXPECT_EQ(queued->WaitEnd().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(workers_[0]->submissions().size(), 0u);
}

TEST_F(RelayTest, CancelWhileRunningReachesTheWorker) {
  Make();
  Up(0);
  auto sink = std::make_shared<RecordingSink>();
  const auto call = Start(Completion({"b"}, 50), sink);
  WaitSubmissions(0, 1);
  relay_->OnBatch(0, 1, workers_[0]->Step(), {});
  call->Cancel();
  call->Cancel();
  EXPECT_EQ(sink->WaitEnd().code(), absl::StatusCode::kCancelled);
  workers_[0]->WaitUntil([](size_t running, size_t, size_t cancels) { return cancels == 1 && running == 0; });
}

TEST_F(RelayTest, ALossResumesOnTheOtherWorker) {
  Make();
  Up(0);
  auto whole = std::make_shared<RecordingSink>(), cut = std::make_shared<RecordingSink>();
  const core::Draft draft = Completion({"Hello"}, 60);
  auto call = Start(draft, whole);
  WaitSubmissions(0, 1);
  Drive(0, *whole, *call);
  ASSERT_TRUE(whole->WaitEnd().ok());
  call = Start(draft, cut);
  WaitSubmissions(0, 2);
  for (int i = 0; i < 13; ++i) relay_->OnBatch(0, 1, workers_[0]->Step(), {});
  relay_->OnUp(1, 1, TestInfo());
  relay_->OnDown(0, 1, absl::UnavailableError("killed"));
  WaitSubmissions(1, 1);
  EXPECT_THAT(workers_[1]->submissions()[0].resume_output_ids, SizeIs(13));
  Drive(1, *cut, *call);
  EXPECT_TRUE(cut->WaitEnd().ok());
  EXPECT_EQ(cut->text().text, whole->text().text);
}

TEST_F(RelayTest, ALossWithoutAnotherWorkerEndsAfterTheWait) {
  Make({.dispatch = {.resume_wait = std::chrono::milliseconds(0)}}, 1);
  Up(0);
  auto sink = std::make_shared<RecordingSink>();
  const auto call = Start(Completion({"Hello"}, 60), sink);
  WaitSubmissions(0, 1);
  relay_->OnDown(0, 1, absl::UnavailableError("killed"));
  EXPECT_EQ(sink->WaitEnd().code(), absl::StatusCode::kUnavailable);
  WaitReady(false);
  EXPECT_FALSE(relay_->Ready());
}

TEST_F(RelayTest, DrainRefusesTheNewAndFinishesTheOld) {
  Make();
  Up(0);
  auto old = std::make_shared<RecordingSink>(), late = std::make_shared<RecordingSink>();
  const auto call = Start(Completion({"a"}, 8), old);
  WaitSubmissions(0, 1);
  relay_->BeginDrain();
  WaitReady(false);
  EXPECT_FALSE(relay_->Ready());
  Start(Completion({"b"}, 8), late);
  EXPECT_EQ(late->WaitEnd().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(relay_->live(), 1);
  Drive(0, *old, *call);
  EXPECT_TRUE(old->WaitEnd().ok());
}

TEST_F(RelayTest, StopEndsWhatRunsAndLaterCallsAreHarmless) {
  Make();
  Up(0);
  auto running = std::make_shared<RecordingSink>(), late = std::make_shared<RecordingSink>();
  const auto call = Start(Completion({"a"}, 50), running);
  WaitSubmissions(0, 1);
  relay_->Stop();
  EXPECT_EQ(running->status().code(), absl::StatusCode::kUnavailable);
  call->Consumed(5);
  call->Cancel();
  Start(Completion({"b"}, 8), late);
  EXPECT_EQ(late->status().code(), absl::StatusCode::kUnavailable);
  relay_->OnBatch(0, 1, workers_[0]->Step(), {});
  relay_->OnDown(0, 1, absl::UnavailableError("late"));
  EXPECT_EQ(relay_->live(), 0);
}

TEST_F(RelayTest, SeedsFollowTheServersSeedInOrderOfArrival) {
  std::vector<uint64_t> seeds[2];
  for (auto& of_server : seeds) {
    workers_.clear();
    ready_ = false;
    Make({.seed = 42}, 1);
    Up(0);
    for (int i = 0; i < 3; ++i) {
      core::Draft draft = Completion({"a"}, 50);
      draft.sampling.seed.reset();
      Start(draft, std::make_shared<RecordingSink>());
      WaitSubmissions(0, static_cast<size_t>(i) + 1);
      of_server.push_back(workers_[0]->submissions()[i].seed);
    }
    relay_->Stop();
  }
  EXPECT_EQ(seeds[0], seeds[1]);
  EXPECT_NE(seeds[0][0], seeds[0][1]);
  EXPECT_NE(seeds[0][1], seeds[0][2]);
}

TEST_F(RelayTest, BadPromptsNameTheirField) {
  Make();
  Up(0);
  auto sink = std::make_shared<RecordingSink>();
  Start(Completion({std::string("\xff")}, 5), sink);
  EXPECT_EQ(sink->WaitEnd().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(core::FieldOf(sink->status()), "prompt");
}

TEST_F(RelayTest, TokenizeAndBack) {
  Make();
  Up(0);
  const auto result = relay_->Tokenize(Completion({"Hello world"}, 1));
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->max_model_len, kContext);
  EXPECT_EQ(result->pieces.size(), result->ids.size());
  const auto text = relay_->Detokenize(std::vector<int64_t>(result->ids.begin(), result->ids.end()));
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "Hello world");
  EXPECT_EQ(core::FieldOf(relay_->Detokenize({int64_t{kVocab}}).status()), "tokens");
  EXPECT_EQ(core::FieldOf(relay_->Detokenize({-1}).status()), "tokens");
}

TEST_F(RelayTest, MetricsJoinThoseOfWorkersThatAreUp) {
  Make();
  workers_[0]->metrics = workers_[1]->metrics =
      "# HELP vllm:num_requests_running Running.\n# TYPE vllm:num_requests_running gauge\n"
      "vllm:num_requests_running{engine=\"0\",model_name=\"demo\"} 3\n";
  Up(1);
  auto sink = std::make_shared<RecordingSink>();
  const auto call = Start(Completion({"Hello"}, 5), sink);
  WaitSubmissions(1, 1);
  Drive(1, *sink, *call);
  ASSERT_TRUE(sink->WaitEnd().ok());
  const std::string text = relay_->Metrics();
  EXPECT_THAT(text, HasSubstr("vllm:num_requests_running{engine=\"1\",model_name=\"demo\"} 3\n"));
  EXPECT_THAT(text, testing::Not(HasSubstr("vllm:num_requests_running{engine=\"0\"")));
  EXPECT_THAT(text, HasSubstr("vllm:generation_tokens_total{engine=\"1\",model_name=\"demo\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("vllm:request_success_total{engine=\"1\",finished_reason=\"length\",model_name=\"demo\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("vllm:time_to_first_token_seconds_count{engine=\"1\",model_name=\"demo\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("vllm:inter_token_latency_seconds_count{engine=\"1\",model_name=\"demo\"} 4\n"));
}

}  // namespace
}  // namespace phalanx::router
