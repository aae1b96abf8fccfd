// The line to a worker, against the real worker door and engine over a model without weights.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "router/rpc/testing/fake_handler.h"
#include "router/rpc/testing/recorder.h"
#include "router/rpc/testing/temp_server.h"
#include "router/rpc/worker_client.h"
#include "tests/fakes/executor.h"
#include "worker/engine.h"
#include "worker/rpc/worker_service.h"

namespace phalanx::router::rpc {
namespace {

using End = core::WorkerEvent::End;
using std::chrono::milliseconds;
using testing::kSoon;
using testing::Recorder;
using testing::TempServer;

fakes::FakeExecutorOptions Model(int64_t step_delay_us = 0) {
  fakes::FakeExecutorOptions model;
  model.info = {.num_blocks = 1024, .block_size = 16, .max_rows = 64, .max_step_tokens = 1024, .max_model_len = 4096, .vocab_size = 592};
  model.first_id = 3;
  model.step_delay_us = step_delay_us;
  return model;
}

// A worker process without the process.
class Worker {
 public:
  explicit Worker(const fakes::FakeExecutorOptions& model) {
    worker::EngineCallbacks callbacks;
    callbacks.on_report = [this](worker::core::StepReport&& report) { service_->Deliver(std::move(report)); };
    callbacks.on_fatal = [](const std::string& reason) { ADD_FAILURE() << reason; };
    engine_ = std::make_unique<worker::Engine>(worker::EngineOptions{}, std::make_unique<fakes::FakeExecutor>(model), std::move(callbacks));
    worker::rpc::ServiceOptions door;
    door.limits = {model.info.vocab_size, model.info.max_model_len, 20, {2}};
    door.info.set_model("hash");
    door.info.set_vocab_size(static_cast<uint32_t>(model.info.vocab_size));
    door.info.set_max_model_len(static_cast<uint32_t>(model.info.max_model_len));
    door.metrics_text = [] { return std::string("up 1\n"); };
    service_ = std::make_unique<worker::rpc::WorkerService>(std::move(door), engine_.get());
    engine_->Start();
  }
  ~Worker() {
    engine_->Stop();
    service_->Stop(milliseconds(0));
  }
  worker::rpc::WorkerService* service() { return service_.get(); }
  const worker::Engine& engine() const { return *engine_; }

 private:
  std::unique_ptr<worker::Engine> engine_;
  std::unique_ptr<worker::rpc::WorkerService> service_;
};

core::Submission SubmissionOf(uint64_t id, std::vector<int32_t> prompt, int32_t max_tokens) {
  core::Submission out;
  out.id = id;
  out.prompt_ids = std::make_shared<const std::vector<int32_t>>(std::move(prompt));
  out.max_tokens = max_tokens;
  out.sampling.temperature = 0;
  out.sampling.ignore_eos = true;
  return out;
}

std::vector<int32_t> Expected(const core::Submission& submission) {
  worker::core::Request request;
  request.prompt_ids = *submission.prompt_ids;
  request.resume_output_ids = submission.resume_output_ids;
  request.sampling.temperature = submission.sampling.temperature;
  request.max_tokens = submission.max_tokens;
  return fakes::ExpectedTokens(Model(), request);
}

class WorkerLinkTest : public ::testing::Test {
 protected:
  void Serve(const fakes::FakeExecutorOptions& model = Model()) {
    worker_ = std::make_unique<Worker>(model);
    server_ = std::make_unique<TempServer>(std::vector<grpc::Service*>{worker_->service()});
    WorkerClientOptions options;
    options.address = server_->address();
    options.backoff_min = milliseconds(5);
    options.backoff_max = milliseconds(50);
    client_ = std::make_unique<WorkerClient>(options);
    client_->Start(&recorder_);
    epoch_ = recorder_.AwaitUp();
    ASSERT_NE(epoch_, 0u);
  }
  void TearDown() override {
    client_.reset();
    server_.reset();
    worker_.reset();
    EXPECT_EQ(recorder_.disorder_, "");
  }
  void AwaitIdle() {
    const auto until = std::chrono::steady_clock::now() + kSoon;
    while (worker_->engine().live() > 0 && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(milliseconds(1));
    EXPECT_EQ(worker_->engine().live(), 0);
  }

  Recorder recorder_;
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<TempServer> server_;
  std::unique_ptr<WorkerClient> client_;
  uint64_t epoch_ = 0;
};

TEST_F(WorkerLinkTest, TokensAreExact) {
  Serve();
  std::vector<core::Submission> all;
  for (uint64_t id = 1; id <= 50; ++id) {
    all.push_back(SubmissionOf(id, {static_cast<int32_t>(id), 5, 6}, static_cast<int32_t>(1 + id * 3)));
    client_->Submit(epoch_, all.back());
  }
  for (const core::Submission& one : all) {
    const Recorder::Sequence sequence = recorder_.AwaitEnd(one.id);
    EXPECT_EQ(sequence.ids, Expected(one)) << one.id;
    EXPECT_EQ(sequence.last.end, End::kLength);
    EXPECT_EQ(sequence.starts, 1);
  }
}

TEST_F(WorkerLinkTest, ResumeGoesOnWithTheSameTokens) {
  Serve();
  core::Submission whole = SubmissionOf(1, {9, 8, 7}, 40);
  const std::vector<int32_t> expected = Expected(whole);
  core::Submission rest = whole;
  rest.id = 2;
  rest.resume_output_ids.assign(expected.begin(), expected.begin() + 15);
  client_->Submit(epoch_, rest);
  EXPECT_EQ(recorder_.AwaitEnd(2).ids, std::vector<int32_t>(expected.begin() + 15, expected.end()));
}

TEST_F(WorkerLinkTest, CreditHoldsASequenceBack) {
  Serve();
  core::Submission held = SubmissionOf(1, {4, 4}, 30);
  held.credit = 10;
  client_->Submit(epoch_, held);
  ASSERT_TRUE(recorder_.Await([&] { return recorder_.sequences_[1].ids.size() >= 10; }));
  // Another one runs to its end meanwhile; the first has not moved.
  client_->Submit(epoch_, SubmissionOf(2, {1}, 200));
  EXPECT_EQ(recorder_.AwaitEnd(2).ids.size(), 200u);
  EXPECT_EQ(recorder_.Read(&Recorder::sequences_).at(1).ids.size(), 10u);
  client_->Credit(epoch_, 1, 5);
  ASSERT_TRUE(recorder_.Await([&] { return recorder_.sequences_[1].ids.size() >= 15; }));
  client_->Credit(epoch_, 1, 100);
  EXPECT_EQ(recorder_.AwaitEnd(1).ids, Expected(held));
}

TEST_F(WorkerLinkTest, CancelEndsWithAbort) {
  Serve(Model(1000));
  client_->Submit(epoch_, SubmissionOf(1, {1, 2}, 4000));
  ASSERT_TRUE(recorder_.Await([&] { return recorder_.sequences_[1].ids.size() >= 3; }));
  client_->Cancel(epoch_, 1);
  EXPECT_EQ(recorder_.AwaitEnd(1).last.end, End::kAborted);
  // In one breath with its submission, too.
  client_->Submit(epoch_, SubmissionOf(2, {1, 2}, 4000));
  client_->Cancel(epoch_, 2);
  EXPECT_EQ(recorder_.AwaitEnd(2).last.end, End::kAborted);
  AwaitIdle();
}

TEST_F(WorkerLinkTest, RefusalsNameTheirCode) {
  Serve();
  client_->Submit(epoch_, SubmissionOf(1, {592}, 4));
  const Recorder::Sequence outside = recorder_.AwaitEnd(1);
  EXPECT_EQ(outside.last.end, End::kRejected);
  EXPECT_EQ(outside.last.reject_code, absl::StatusCode::kInvalidArgument);
  EXPECT_NE(outside.last.error.find("prompt_ids"), std::string::npos);
  worker_->service()->BeginDrain();
  client_->Submit(epoch_, SubmissionOf(2, {1}, 4));
  EXPECT_EQ(recorder_.AwaitEnd(2).last.reject_code, absl::StatusCode::kUnavailable);
  ASSERT_TRUE(recorder_.Await([&] { return recorder_.load_.draining; }));
}

TEST_F(WorkerLinkTest, LogprobsComeOnePerId) {
  Serve();
  core::Submission asked = SubmissionOf(1, {7, 7}, 1);
  asked.sampling.logprobs = 2;
  asked.sampling.prompt_logprobs = 0;
  client_->Submit(epoch_, asked);
  const Recorder::Sequence sequence = recorder_.AwaitEnd(1);
  ASSERT_EQ(sequence.last.logprobs.size(), 1u);
  EXPECT_EQ(sequence.last.logprobs[0].id, sequence.ids[0]);
  EXPECT_EQ(sequence.last.logprobs[0].top.size(), 2u);
  EXPECT_EQ(sequence.last.logprobs[0].rank, 1);
}

TEST_F(WorkerLinkTest, ALostLinkFreesTheWorker) {
  Serve(Model(1000));
  for (uint64_t id = 1; id <= 8; ++id) client_->Submit(epoch_, SubmissionOf(id, {1, 2}, 4000));
  ASSERT_TRUE(recorder_.Await([&] { return recorder_.sequences_[8].ids.size() >= 2; }));
  client_.reset();
  AwaitIdle();
}

TEST_F(WorkerLinkTest, AWorkerThatStopsAndComesBackServesTheNextEpoch) {
  Serve(Model(1000));
  client_->Submit(epoch_, SubmissionOf(1, {1, 2}, 4000));
  ASSERT_TRUE(recorder_.Await([&] { return recorder_.sequences_[1].ids.size() >= 2; }));
  server_->Stop();
  ASSERT_TRUE(recorder_.AwaitDown());
  AwaitIdle();
  server_->Start();
  const uint64_t next = recorder_.AwaitUp(2);
  ASSERT_GT(next, epoch_);
  client_->Submit(epoch_, SubmissionOf(2, {1}, 3));  // to the old life
  client_->Submit(next, SubmissionOf(3, {1}, 3));
  EXPECT_EQ(recorder_.AwaitEnd(3).ids, Expected(SubmissionOf(3, {1}, 3)));
  EXPECT_FALSE(recorder_.Read(&Recorder::sequences_).contains(2));
}

TEST_F(WorkerLinkTest, MetricsOfTheWorker) {
  Serve();
  const auto text = client_->Metrics(kSoon);
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "up 1\n");
}

}  // namespace
}  // namespace phalanx::router::rpc
