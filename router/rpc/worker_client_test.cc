// The line to a worker, against a worker that follows a script.
#include "router/rpc/worker_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <optional>
#include <thread>

#include "phalanx/worker/v1/worker.grpc.pb.h"
#include "router/rpc/testing/fake_handler.h"
#include "router/rpc/testing/recorder.h"
#include "router/rpc/testing/temp_server.h"
#include "services/queue.h"

namespace phalanx::router::rpc {
namespace {

using std::chrono::milliseconds;
using testing::kSoon;
using testing::Recorder;
using testing::TempServer;
using worker::v1::RouterMessage;
using worker::v1::WorkerMessage;
using WorkerStream = grpc::ServerReaderWriter<WorkerMessage, RouterMessage>;

// Attach runs `script`; when that returns, the stream ends with its status.
class ScriptedWorker : public worker::v1::Worker::Service {
 public:
  ScriptedWorker() {
    info.set_model("m");
    info.set_version("9");
    info.set_vocab_size(100);
    info.set_max_model_len(64);
    info.set_max_logprobs(5);
  }
  grpc::Status Attach(grpc::ServerContext* context, WorkerStream* stream) override {
    ++attaches;
    return script(context, stream);
  }
  grpc::Status GetInfo(grpc::ServerContext*, const worker::v1::GetInfoRequest*, worker::v1::GetInfoResponse* response) override {
    ++infos;
    std::lock_guard lock(mutex);
    *response = info;
    return grpc::Status::OK;
  }
  grpc::Status GetMetrics(grpc::ServerContext* context, const worker::v1::GetMetricsRequest*,
                          worker::v1::GetMetricsResponse* response) override {
    while (slow_metrics && !context->IsCancelled()) std::this_thread::sleep_for(milliseconds(1));
    response->set_text("up 1\n");
    return grpc::Status::OK;
  }

  std::function<grpc::Status(grpc::ServerContext*, WorkerStream*)> script;
  std::mutex mutex;
  worker::v1::GetInfoResponse info;  // under `mutex` once served
  std::atomic<int> attaches{0}, infos{0};
  std::atomic<bool> slow_metrics{false};
};

// A script: takes what comes into `received` until the router leaves.
auto Collect(services::Queue<RouterMessage>& received) {
  return [&received](grpc::ServerContext*, WorkerStream* stream) {
    RouterMessage message;
    while (stream->Read(&message)) received.TryPush(std::move(message));
    return grpc::Status::OK;
  };
}

grpc::Status UntilGone(grpc::ServerContext* context, WorkerStream*) {
  while (!context->IsCancelled()) std::this_thread::sleep_for(milliseconds(1));
  return grpc::Status::CANCELLED;
}

core::Submission SubmissionOf(uint64_t id, std::vector<int32_t> prompt = {1, 2, 3}) {
  core::Submission out;
  out.id = id;
  out.prompt_ids = std::make_shared<const std::vector<int32_t>>(std::move(prompt));
  out.max_tokens = 8;
  return out;
}

class WorkerClientTest : public ::testing::Test {
 protected:
  WorkerClientTest() : server_({&worker_}) { worker_.script = UntilGone; }
  ~WorkerClientTest() override {
    client_.reset();
    server_.Stop();
    EXPECT_EQ(recorder_.disorder_, "");
  }

  WorkerClientOptions Options() {
    WorkerClientOptions options;
    options.worker = 3;
    options.address = server_.address();
    options.backoff_min = milliseconds(5);
    options.backoff_max = milliseconds(20);
    return options;
  }
  void Connect(std::optional<WorkerClientOptions> options = {}) {
    client_ = std::make_unique<WorkerClient>(options ? *options : Options());
    client_->Start(&recorder_);
  }

  // What scripts use outlives the test's body: they run until the server stops.
  services::Queue<RouterMessage> received_{10000};
  std::atomic<uint64_t> taken_{0};
  ScriptedWorker worker_;
  TempServer server_;
  Recorder recorder_;
  std::unique_ptr<WorkerClient> client_;
};

TEST_F(WorkerClientTest, UpBatchesDownAndUpAgain) {
  std::promise<void> go;
  worker_.script = [&, future = go.get_future().share()](grpc::ServerContext* context, WorkerStream* stream) {
    if (worker_.attaches > 1) return UntilGone(context, stream);
    WorkerMessage message;
    message.mutable_load()->set_running(2);
    message.mutable_load()->set_waiting(3);
    message.mutable_load()->set_waiting_tokens(4);
    message.mutable_load()->set_blocks_total(5);
    message.mutable_load()->set_blocks_free(6);
    message.mutable_load()->set_draining(true);
    stream->Write(message);
    WorkerMessage without_load;
    stream->Write(without_load);
    future.wait();
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too slow");
  };
  Connect();
  const uint64_t epoch = recorder_.AwaitUp();
  ASSERT_NE(epoch, 0u);
  EXPECT_EQ(client_->address(), server_.address());
  EXPECT_EQ(recorder_.Read(&Recorder::worker_), 3);
  const core::WorkerInfo info = recorder_.Read(&Recorder::info_);
  EXPECT_EQ(info.model, "m");
  EXPECT_EQ(info.version, "9");
  EXPECT_EQ(info.vocab_size, 100);
  EXPECT_EQ(info.max_model_len, 64);
  EXPECT_EQ(info.max_logprobs, 5);
  ASSERT_TRUE(recorder_.Await([&] { return recorder_.batches_ == 2; }));
  const core::WorkerLoad load = recorder_.Read(&Recorder::load_);  // of the first message: the second brought none
  EXPECT_EQ(load.running, 2);
  EXPECT_EQ(load.waiting, 3);
  EXPECT_EQ(load.waiting_tokens, 4);
  EXPECT_EQ(load.blocks_total, 5);
  EXPECT_EQ(load.blocks_free, 6);
  EXPECT_TRUE(load.draining);
  go.set_value();
  ASSERT_TRUE(recorder_.AwaitDown());
  EXPECT_EQ(recorder_.Read(&Recorder::why_).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(recorder_.Read(&Recorder::why_).message(), "too slow");
  const uint64_t next = recorder_.AwaitUp(2);
  EXPECT_GT(next, epoch);
}

TEST_F(WorkerClientTest, EverySubmittedFieldArrives) {
  worker_.script = Collect(received_);
  Connect();
  const uint64_t epoch = recorder_.AwaitUp();
  core::Submission in = SubmissionOf(77, {5, 6});
  in.resume_output_ids = {7};
  core::ValidSampling& s = in.sampling;
  s.temperature = 0.5f;
  s.top_p = 0.25f;
  s.top_k = 9;
  s.min_p = 0.125f;
  s.repetition_penalty = 1.5f;
  s.frequency_penalty = -1;
  s.presence_penalty = 2;
  s.min_tokens = 4;
  s.logprobs = 0;
  s.prompt_logprobs = 3;
  s.logit_bias = {{8, -2.5f}};
  s.allowed_token_ids = {1, 8};
  s.stop_token_ids = {11};
  s.ignore_eos = true;
  in.bad_words = {{1, 2}, {3}};
  in.seed = 1ull << 63;
  in.choice = 2;
  in.max_tokens = 40;
  in.cache_salt = "salt";
  in.priority = -1;
  in.credit = 16;
  client_->Submit(epoch, std::move(in));
  const auto message = received_.PopFor(kSoon);
  ASSERT_TRUE(message);
  ASSERT_EQ(message->submits_size(), 1);
  const worker::v1::Submit& out = message->submits(0);
  EXPECT_EQ(out.request_id(), 77u);
  EXPECT_EQ(out.epoch(), epoch);
  EXPECT_THAT(out.prompt_ids(), ::testing::ElementsAre(5, 6));
  EXPECT_THAT(out.resume_output_ids(), ::testing::ElementsAre(7));
  EXPECT_EQ(out.sampling().temperature(), 0.5f);
  EXPECT_EQ(out.sampling().top_p(), 0.25f);
  EXPECT_EQ(out.sampling().top_k(), 9);
  EXPECT_EQ(out.sampling().min_p(), 0.125f);
  EXPECT_EQ(out.sampling().repetition_penalty(), 1.5f);
  EXPECT_EQ(out.sampling().frequency_penalty(), -1.0f);
  EXPECT_EQ(out.sampling().presence_penalty(), 2.0f);
  EXPECT_EQ(out.sampling().seed(), 1ull << 63);
  EXPECT_EQ(out.sampling().choice(), 2u);
  ASSERT_EQ(out.sampling().logit_bias_size(), 1);
  EXPECT_EQ(out.sampling().logit_bias(0).id(), 8u);
  EXPECT_EQ(out.sampling().logit_bias(0).bias(), -2.5f);
  EXPECT_THAT(out.sampling().allowed_ids(), ::testing::ElementsAre(1, 8));
  ASSERT_EQ(out.sampling().bad_words_size(), 2);
  EXPECT_THAT(out.sampling().bad_words(0).ids(), ::testing::ElementsAre(1, 2));
  EXPECT_TRUE(out.sampling().has_logprobs());
  EXPECT_EQ(out.sampling().logprobs(), 0);
  EXPECT_EQ(out.sampling().prompt_logprobs(), 3);
  EXPECT_EQ(out.max_tokens(), 40u);
  EXPECT_EQ(out.min_tokens(), 4u);
  EXPECT_THAT(out.stop_ids(), ::testing::ElementsAre(11));
  EXPECT_TRUE(out.ignore_eos());
  EXPECT_EQ(out.cache_salt(), "salt");
  EXPECT_EQ(out.priority(), -1);
  EXPECT_EQ(out.credit(), 16u);
}

// While the first write is stuck, what comes is collected, in order, into messages below their cap.
TEST_F(WorkerClientTest, WhatComesDuringAWriteLeavesTogether) {
  std::promise<void> go;
  worker_.script = [&, future = go.get_future().share()](grpc::ServerContext* context, WorkerStream* stream) {
    future.wait();
    return Collect(received_)(context, stream);
  };
  WorkerClientOptions options = Options();
  options.message_bytes_max = 1 << 20;
  Connect(options);
  const uint64_t epoch = recorder_.AwaitUp();
  const std::vector<int32_t> large(20000000, 300);  // 40 MB: more than any window that gRPC opens while nobody reads
  client_->Submit(epoch, SubmissionOf(1, large));
  for (uint64_t id = 2; id <= 1000; ++id) {
    client_->Submit(epoch, SubmissionOf(id));
    client_->Credit(epoch, id, 5);
    client_->Credit(epoch, id, 6);
    client_->Cancel(epoch, id - 1);
  }
  go.set_value();
  std::vector<uint64_t> submits, cancels;
  std::map<uint64_t, int> credits;
  int messages = 0;
  while (cancels.size() < 999) {
    const auto message = received_.PopFor(kSoon);
    ASSERT_TRUE(message);
    ++messages;
    for (const auto& submit : message->submits()) submits.push_back(submit.request_id());
    for (const uint64_t id : message->cancels()) cancels.push_back(id);
    for (const auto& credit : message->credits()) credits[credit.request_id()] += static_cast<int>(credit.tokens());
  }
  ASSERT_EQ(submits.size(), 1000u);
  for (size_t i = 0; i < 1000; ++i) EXPECT_EQ(submits[i], i + 1);
  for (size_t i = 0; i < 999; ++i) EXPECT_EQ(cancels[i], i + 1);
  for (uint64_t id = 2; id <= 1000; ++id) EXPECT_EQ(credits[id], 11);
  EXPECT_LT(messages, 20);
}

TEST_F(WorkerClientTest, AFullOutboxEndsTheStream) {
  WorkerClientOptions options = Options();
  options.outbox_bytes_max = 1 << 20;
  Connect(options);
  const uint64_t epoch = recorder_.AwaitUp();
  const std::vector<int32_t> prompt(100000, 300);
  for (uint64_t id = 1; id <= 400 && recorder_.Read(&Recorder::downs_) == 0; ++id) client_->Submit(epoch, SubmissionOf(id, prompt));
  ASSERT_TRUE(recorder_.AwaitDown());
  EXPECT_EQ(recorder_.Read(&Recorder::why_).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(recorder_.AwaitUp(2), 0u);
}

TEST_F(WorkerClientTest, WordsToAnOldEpochAreDropped) {
  worker_.script = [&](grpc::ServerContext* context, WorkerStream* stream) {
    if (worker_.attaches == 1) return grpc::Status::OK;
    return Collect(received_)(context, stream);
  };
  Connect();
  ASSERT_TRUE(recorder_.AwaitDown());
  EXPECT_EQ(recorder_.Read(&Recorder::why_).code(), absl::StatusCode::kUnavailable);
  const uint64_t epoch = recorder_.AwaitUp(2);
  client_->Submit(epoch - 1, SubmissionOf(1));
  client_->Cancel(epoch - 1, 1);
  client_->Credit(epoch + 1, 1, 1);
  client_->Submit(epoch, SubmissionOf(2));
  const auto message = received_.PopFor(kSoon);
  ASSERT_TRUE(message);
  ASSERT_EQ(message->submits_size(), 1);
  EXPECT_EQ(message->submits(0).request_id(), 2u);
  EXPECT_EQ(message->cancels_size() + message->credits_size(), 0);
}

TEST_F(WorkerClientTest, EventsArriveAndThoseOfAnotherEpochDoNot) {
  worker_.script = [&](grpc::ServerContext* context, WorkerStream* stream) {
    RouterMessage submit;
    stream->Read(&submit);
    const uint64_t epoch = submit.submits(0).epoch();
    WorkerMessage message;
    const auto event = [&](uint64_t id, uint64_t of_epoch) {
      auto* out = message.add_events();
      out->set_request_id(id);
      out->set_epoch(of_epoch);
      return out;
    };
    auto* first = event(1, epoch);
    first->mutable_started()->set_cached_tokens(16);
    first->mutable_started()->set_queue_seconds(0.5);
    first->add_ids(42);
    auto* score = first->add_logprobs();
    score->set_id(42);
    score->set_logprob(-0.25f);
    score->set_rank(2);
    auto* top = score->add_top();
    top->set_id(43);
    top->set_logprob(-0.125f);
    score = first->add_prompt_logprobs();
    score->set_id(2);
    event(1, epoch + 1)->add_ids(99);  // dropped
    stream->Write(message);
    message.Clear();
    auto* last = event(1, epoch);
    last->add_ids(7);
    last->set_finish(worker::v1::FINISH_REASON_STOP);
    last->set_stop_id(7);
    auto* refused = event(2, epoch);
    refused->set_finish(worker::v1::FINISH_REASON_REJECTED);
    refused->set_error("no room");
    refused->set_reject_code(8);
    auto* strange = event(3, epoch);
    strange->set_finish(worker::v1::FINISH_REASON_ERROR);
    strange->set_reject_code(12345);
    stream->Write(message);
    return UntilGone(context, stream);
  };
  Connect();
  const uint64_t epoch = recorder_.AwaitUp();
  client_->Submit(epoch, SubmissionOf(1));
  ASSERT_TRUE(recorder_.Await([&] { return recorder_.sequences_[1].events >= 1; }));
  const Recorder::Sequence one = recorder_.AwaitEnd(1);
  EXPECT_EQ(one.ids, (std::vector<int32_t>{42, 7}));
  EXPECT_EQ(one.starts, 1);
  EXPECT_EQ(one.last.end, core::WorkerEvent::End::kStop);
  EXPECT_EQ(one.last.stop_id, 7);
  const Recorder::Sequence two = recorder_.AwaitEnd(2);
  EXPECT_EQ(two.last.end, core::WorkerEvent::End::kRejected);
  EXPECT_EQ(two.last.error, "no room");
  EXPECT_EQ(two.last.reject_code, absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(recorder_.AwaitEnd(3).last.end, core::WorkerEvent::End::kError);
  EXPECT_EQ(recorder_.AwaitEnd(3).last.reject_code, absl::StatusCode::kUnknown);
}

TEST_F(WorkerClientTest, AMalformedWorkerLosesTheStream) {
  using Spoil = std::function<void(worker::v1::SequenceEvent&)>;
  const std::vector<Spoil> rows = {
      [](auto& e) { e.set_request_id(0); },
      [](auto& e) { e.add_ids(100); },
      [](auto& e) { e.add_ids(4000000000u); },
      [](auto& e) { e.add_ids(1), e.add_logprobs()->set_id(1), e.add_logprobs()->set_id(1); },
      [](auto& e) { e.add_ids(1), e.add_logprobs()->set_id(100); },
      [](auto& e) { e.add_ids(1), e.add_logprobs()->add_top()->set_id(100); },
      [](auto& e) { e.add_prompt_logprobs()->set_id(100); },
      [](auto& e) { e.set_finish(static_cast<worker::v1::FinishReason>(77)); },
      [](auto& e) { e.set_finish(worker::v1::FINISH_REASON_STOP), e.set_stop_id(100); },
  };
  worker_.script = [this, rows](grpc::ServerContext* context, WorkerStream* stream) {
    const size_t row = worker_.attaches - 1;
    if (row >= rows.size()) return UntilGone(context, stream);
    RouterMessage submit;
    if (!stream->Read(&submit)) return grpc::Status::OK;
    WorkerMessage message;
    auto* good = message.add_events();
    good->set_request_id(1);
    good->set_epoch(submit.submits(0).epoch());
    auto* bad = message.add_events();
    *bad = *good;
    rows[row](*bad);
    stream->Write(message);
    return UntilGone(context, stream);
  };
  recorder_.on_up = [&](uint64_t epoch) { client_->Submit(epoch, SubmissionOf(1)); };
  Connect();
  for (size_t row = 0; row < rows.size(); ++row) {
    ASSERT_TRUE(recorder_.AwaitDown(static_cast<int>(row) + 1)) << row;
    EXPECT_EQ(recorder_.Read(&Recorder::why_).code(), absl::StatusCode::kInternal) << row << " " << recorder_.Read(&Recorder::why_);
  }
  EXPECT_NE(recorder_.AwaitUp(static_cast<int>(rows.size()) + 1), 0u);
  EXPECT_EQ(recorder_.Read(&Recorder::batches_), 0) << "nothing of a malformed message may be heard";
}

TEST_F(WorkerClientTest, AWorkerThatSaysNonsenseOfItselfIsNotUp) {
  for (int field = 0; field < 3; ++field) {
    worker::v1::GetInfoResponse info = worker_.info;
    if (field == 0) info.set_vocab_size(0);
    if (field == 1) info.set_max_model_len(0);
    if (field == 2) info.set_vocab_size(4000000000u);
    std::swap(worker_.info, info);
    Connect();
    const int seen = worker_.infos;
    while (worker_.infos < seen + 3) std::this_thread::sleep_for(milliseconds(1));  // it keeps asking
    EXPECT_EQ(recorder_.Read(&Recorder::ups_), field);
    {
      std::lock_guard lock(worker_.mutex);
      std::swap(worker_.info, info);
    }
    EXPECT_NE(recorder_.AwaitUp(field + 1), 0u);
    client_.reset();
    recorder_.up_ = false;  // a destroyed link does not say so
  }
}

TEST_F(WorkerClientTest, SilenceOfAnIdleWorkerIsDown) {
  WorkerClientOptions options = Options();
  options.idle_silence_max = milliseconds(100);
  Connect(options);
  ASSERT_TRUE(recorder_.AwaitDown(2));
  EXPECT_EQ(recorder_.Read(&Recorder::why_).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(recorder_.Read(&Recorder::why_).message()), ::testing::HasSubstr("silent"));
}

TEST_F(WorkerClientTest, AWorkerWithWorkMayBeSilentForLonger) {
  WorkerClientOptions options = Options();
  options.idle_silence_max = milliseconds(50);
  options.busy_silence_max = kSoon;
  std::promise<void> speak;
  worker_.script = [&, future = speak.get_future().share()](grpc::ServerContext* context, WorkerStream* stream) {
    future.wait();
    stream->Write({});
    return UntilGone(context, stream);
  };
  recorder_.on_up = [&](uint64_t epoch) { client_->Submit(epoch, SubmissionOf(1)); };
  Connect(options);
  ASSERT_NE(recorder_.AwaitUp(), 0u);
  EXPECT_FALSE(recorder_.Await([&] { return recorder_.downs_ > 0; }, milliseconds(300)));
  speak.set_value();  // a message that says nothing of work: idle again, and silent
  EXPECT_TRUE(recorder_.AwaitDown());
}

TEST_F(WorkerClientTest, AWorkerThatReportsWorkMayBeSilentForLonger) {
  WorkerClientOptions options = Options();
  options.idle_silence_max = milliseconds(50);
  options.busy_silence_max = kSoon;
  worker_.script = [&](grpc::ServerContext* context, WorkerStream* stream) {
    WorkerMessage message;
    message.mutable_load()->set_running(1);
    stream->Write(message);
    return UntilGone(context, stream);
  };
  Connect(options);
  ASSERT_TRUE(recorder_.Await([&] { return recorder_.batches_ > 0; }));
  const int downs = recorder_.Read(&Recorder::downs_);
  EXPECT_FALSE(recorder_.Await([&] { return recorder_.downs_ > downs; }, milliseconds(300)));
}

TEST_F(WorkerClientTest, AWorkerThatDiesIsDownAndComesBack) {
  Connect();
  for (int life = 1; life <= 3; ++life) {
    ASSERT_NE(recorder_.AwaitUp(life), 0u);
    server_.Stop();
    ASSERT_TRUE(recorder_.AwaitDown(life));
    EXPECT_FALSE(client_->Metrics(milliseconds(100)).ok());
    client_->Submit(recorder_.Read(&Recorder::epoch_), SubmissionOf(1));  // to nobody
    server_.Start();
  }
  EXPECT_EQ(recorder_.AwaitUp(4), 4u);
}

TEST_F(WorkerClientTest, DestroyedWhileNobodyListens) {
  server_.Stop();
  Connect();
  std::this_thread::sleep_for(milliseconds(30));
  client_.reset();
  EXPECT_EQ(recorder_.ups_, 0);
}

TEST_F(WorkerClientTest, DestroyedWithAWriteInFlight) {
  Connect();
  const uint64_t epoch = recorder_.AwaitUp();
  client_->Submit(epoch, SubmissionOf(1, std::vector<int32_t>(2000000, 300)));
  client_->Submit(epoch, SubmissionOf(2));
  client_.reset();
  EXPECT_EQ(recorder_.downs_, 0) << "a link that is destroyed says nothing";
}

TEST_F(WorkerClientTest, DestroyedWithoutStart) { WorkerClient never(Options()); }

TEST_F(WorkerClientTest, Metrics) {
  client_ = std::make_unique<WorkerClient>(Options());
  EXPECT_EQ(client_->Metrics(milliseconds(100)).status().code(), absl::StatusCode::kUnavailable);
  client_->Start(&recorder_);
  ASSERT_NE(recorder_.AwaitUp(), 0u);
  const auto text = client_->Metrics(kSoon);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "up 1\n");
  worker_.slow_metrics = true;
  EXPECT_EQ(client_->Metrics(milliseconds(50)).status().code(), absl::StatusCode::kDeadlineExceeded);
  worker_.slow_metrics = false;
}

// Many threads speak while the stream keeps ending: nothing is lost within a life, nothing crashes.
TEST_F(WorkerClientTest, ManySpeakersOverManyLives) {
  worker_.script = [&](grpc::ServerContext*, WorkerStream* stream) {
    RouterMessage message;
    for (int i = 0; i < 20 && stream->Read(&message); ++i) taken_ += message.submits_size();
    return grpc::Status::OK;
  };
  WorkerClientOptions options = Options();
  options.message_bytes_max = 1 << 10;
  options.outbox_bytes_max = 1 << 16;  // some lives end by it
  Connect(options);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> next{1};
  std::vector<std::thread> speakers;
  for (int t = 0; t < 4; ++t) {
    speakers.emplace_back([&] {
      while (!stop) {
        const uint64_t epoch = recorder_.Read(&Recorder::epoch_);
        const uint64_t id = next++;
        client_->Submit(epoch, SubmissionOf(id));
        client_->Credit(epoch, id, 1);
        client_->Cancel(epoch, id);
      }
    });
  }
  EXPECT_TRUE(recorder_.AwaitDown(20));
  stop = true;
  for (std::thread& speaker : speakers) speaker.join();
  EXPECT_GT(taken_, 0u);
}

}  // namespace
}  // namespace phalanx::router::rpc
