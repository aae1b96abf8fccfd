// The worker's door as a router sees it: a real gRPC stream over a unix socket, a real engine, a model whose next token hashes all
// before it.
#include "worker/rpc/worker_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "services/channel.h"
#include "services/server.h"
#include "tests/fakes/executor.h"
#include "worker/engine.h"

namespace phalanx::worker::rpc {
namespace {

using ::testing::ElementsAre;
using ::testing::StartsWith;

constexpr std::chrono::seconds kPatience{60};

// One router: an Attach stream and what came over it, by request.
class Router {
 public:
  explicit Router(const std::string& address) : stub_(v1::Worker::NewStub(services::MakeChannel(address))) {
    services::SetDeadline(context_, kPatience);
    stream_ = stub_->Attach(&context_);
  }
  ~Router() { context_.TryCancel(); }

  v1::Worker::Stub& stub() { return *stub_; }
  void Send(const v1::RouterMessage& message) { EXPECT_TRUE(stream_->Write(message)); }
  void Submit(const v1::Submit& submit) {
    v1::RouterMessage message;
    *message.add_submits() = submit;
    Send(message);
  }
  void Cancel(uint64_t id) {
    v1::RouterMessage message;
    message.add_cancels(id);
    Send(message);
  }
  // One message of the worker; false at the end of the stream.
  bool Read() {
    v1::WorkerMessage message;
    if (!stream_->Read(&message)) return false;
    load = message.load();
    loads += message.has_load();
    for (const v1::SequenceEvent& event : message.events()) {
      std::vector<uint32_t>& ids = ids_[event.request_id()];
      ids.insert(ids.end(), event.ids().begin(), event.ids().end());
      if (event.finish() != v1::FINISH_REASON_REJECTED) {
        EXPECT_EQ(event.output_tokens(), ids.size() + resumed[event.request_id()]);
      }
      events[event.request_id()].push_back(event);
    }
    return true;
  }
  // Reads until the request has ended; its last event.
  v1::SequenceEvent WaitForEnd(uint64_t id) {
    while (events[id].empty() || events[id].back().finish() == v1::FINISH_REASON_UNSPECIFIED) {
      if (!Read()) {
        ADD_FAILURE() << "the stream ended before request " << id;
        return {};
      }
    }
    return events[id].back();
  }
  void WaitForTokens(uint64_t id, size_t count) {
    while (ids_[id].size() < count) ASSERT_TRUE(Read());
  }
  // Reads to the end of the stream.
  grpc::Status WaitForClose() {
    while (Read()) continue;
    return stream_->Finish();
  }
  void HangUp() { context_.TryCancel(); }
  std::vector<int32_t> ids(uint64_t id) { return {ids_[id].begin(), ids_[id].end()}; }

  std::map<uint64_t, std::vector<v1::SequenceEvent>> events;
  std::map<uint64_t, size_t> resumed;   // outputs that were there before
  v1::Load load;
  int loads = 0;

 private:
  std::unique_ptr<v1::Worker::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::RouterMessage, v1::WorkerMessage>> stream_;
  std::map<uint64_t, std::vector<uint32_t>> ids_;
};

class WorkerServiceTest : public ::testing::Test {
 protected:
  WorkerServiceTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "door.XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    fake_.info = {.num_blocks = 4096, .block_size = 4, .max_rows = 8, .max_step_tokens = 64, .max_model_len = 4096, .vocab_size = 500};
    options_.limits = {.vocab_size = 500, .max_model_len = 4096, .max_logprobs = 5, .eos_ids = {2}};
    options_.info.set_model("fake");
    options_.metrics_text = [] { return std::string("some_metric 1\n"); };
  }
  ~WorkerServiceTest() override {
    if (engine_) engine_->Stop();
    if (service_) service_->Stop(std::chrono::milliseconds(0));
    if (server_) server_->Stop(std::chrono::milliseconds(100));
    std::filesystem::remove_all(folder_);
  }

  void Start() {
    EngineOptions engine;
    engine.idle_report = std::chrono::milliseconds(20);
    engine.check_invariants = true;
    EngineCallbacks callbacks;
    callbacks.on_report = [this](core::StepReport&& report) { service_->Deliver(std::move(report)); };
    engine_ = std::make_unique<Engine>(engine, std::make_unique<fakes::FakeExecutor>(fake_), std::move(callbacks));
    service_ = std::make_unique<WorkerService>(options_, engine_.get());
    services::ServerOptions server;
    server.listen = "unix:" + folder_ + "/door";
    auto started = services::Server::Start(server, {service_.get()});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
    engine_->Start();
  }
  const std::string& address() const { return server_->address(); }

  v1::Submit Make(uint64_t id, uint32_t max_tokens) const {
    v1::Submit submit;
    submit.set_request_id(id);
    for (uint32_t i = 0; i < 9; ++i) submit.add_prompt_ids(20 + static_cast<uint32_t>(id) + i);
    submit.mutable_sampling()->set_seed(id);
    submit.set_max_tokens(max_tokens);
    submit.set_ignore_eos(true);
    return submit;
  }
  std::vector<int32_t> Expected(const v1::Submit& submit) const { return fakes::ExpectedTokens(fake_, *Admit(submit, options_.limits, 1)); }
  void WaitForIdle() {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (engine_->live() > 0 && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_EQ(engine_->live(), 0);
  }

  std::string folder_;
  fakes::FakeExecutorOptions fake_;
  ServiceOptions options_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<WorkerService> service_;
  std::unique_ptr<services::Server> server_;
};

constexpr uint32_t kLong = 4000;  // runs on until somebody stops it

TEST_F(WorkerServiceTest, AStreamIsTheLoneRunsWithTheRoutersNames) {
  Start();
  Router router(address());
  v1::Submit submit = Make(77, 30);
  submit.set_epoch(5);
  router.Submit(submit);
  const v1::SequenceEvent end = router.WaitForEnd(77);
  EXPECT_EQ(router.ids(77), Expected(submit));
  EXPECT_EQ(end.finish(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(end.output_tokens(), 30u);
  EXPECT_FALSE(end.has_stop_id());
  ASSERT_TRUE(router.events[77].front().has_started());
  EXPECT_EQ(router.events[77].front().started().cached_tokens(), 0u);
  for (const v1::SequenceEvent& event : router.events[77]) {
    EXPECT_EQ(event.epoch(), 5u);
    EXPECT_EQ(event.logprobs_size(), 0) << "nobody asked";
  }
}

TEST_F(WorkerServiceTest, AnEndIdIsNamed) {
  Start();
  Router router(address());
  v1::Submit submit = Make(1, 30);
  const std::vector<int32_t> ids = Expected(submit);
  submit.add_stop_ids(static_cast<uint32_t>(ids[6]));
  router.Submit(submit);
  const v1::SequenceEvent end = router.WaitForEnd(1);
  EXPECT_EQ(end.finish(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(end.stop_id(), static_cast<uint32_t>(ids[6]));
  EXPECT_EQ(router.ids(1).back(), ids[6]);
}

TEST_F(WorkerServiceTest, LogprobsTravelWithTheirTokens) {
  Start();
  Router router(address());
  v1::Submit submit = Make(1, 4);
  submit.mutable_sampling()->set_logprobs(2);
  submit.mutable_sampling()->set_prompt_logprobs(1);
  router.Submit(submit);
  router.WaitForEnd(1);
  std::vector<uint32_t> prompt;
  for (const v1::SequenceEvent& event : router.events[1]) {
    ASSERT_EQ(event.logprobs_size(), event.ids_size());
    for (int i = 0; i < event.ids_size(); ++i) {
      EXPECT_EQ(event.logprobs(i).id(), event.ids(i));
      EXPECT_EQ(event.logprobs(i).top_size(), 2);
      EXPECT_EQ(event.logprobs(i).rank(), 1u);
    }
    for (const v1::TokenLogprob& token : event.prompt_logprobs()) prompt.push_back(token.id());
  }
  EXPECT_THAT(prompt, ElementsAre(22, 23, 24, 25, 26, 27, 28, 29));
}

TEST_F(WorkerServiceTest, ResumedOutputCountsInTheTotal) {
  Start();
  Router router(address());
  v1::Submit submit = Make(1, 20);
  const std::vector<int32_t> ids = Expected(submit);
  for (int i = 0; i < 8; ++i) submit.add_resume_output_ids(static_cast<uint32_t>(ids[i]));
  router.resumed[1] = 8;
  router.Submit(submit);
  EXPECT_EQ(router.WaitForEnd(1).output_tokens(), 20u);
  EXPECT_EQ(router.ids(1), std::vector<int32_t>(ids.begin() + 8, ids.end()));
}

TEST_F(WorkerServiceTest, ABadFieldIsRefusedByAnEventAndHarmsNobodyElse) {
  Start();
  Router router(address());
  const v1::Submit good = Make(1, 50);
  v1::Submit bad = Make(2, 5);
  bad.add_prompt_ids(500);
  bad.set_epoch(9);
  v1::Submit never = Make(3, 5);
  never.mutable_prompt_ids()->Resize(5000, 1);
  v1::RouterMessage message;
  for (const v1::Submit& submit : {good, bad, never}) *message.add_submits() = submit;
  router.Send(message);
  const v1::SequenceEvent refused = router.WaitForEnd(2);
  EXPECT_EQ(refused.finish(), v1::FINISH_REASON_REJECTED);
  EXPECT_EQ(refused.reject_code(), static_cast<int>(grpc::StatusCode::INVALID_ARGUMENT));
  EXPECT_THAT(refused.error(), StartsWith("prompt_ids: id 500"));
  EXPECT_EQ(refused.epoch(), 9u);
  EXPECT_THAT(router.WaitForEnd(3).error(), StartsWith("prompt_ids: has 5000 tokens"));
  router.WaitForEnd(1);
  EXPECT_EQ(router.ids(1), Expected(good));
  router.events[2].clear();
  router.Submit(Make(2, 5));  // the number of a refused one is free again
  EXPECT_EQ(router.WaitForEnd(2).finish(), v1::FINISH_REASON_LENGTH);
}

TEST_F(WorkerServiceTest, ARoutersOwnBugEndsItsStreamAndItsSequences) {
  fake_.step_delay_us = 200;
  Start();
  for (const uint64_t id : {0, 1}) {
    Router router(address());
    router.Submit(Make(1, kLong));
    router.WaitForTokens(1, 1);
    router.Submit(Make(id, 5));
    const grpc::Status status = router.WaitForClose();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), StartsWith("request_id: "));
    WaitForIdle();
  }
}

TEST_F(WorkerServiceTest, ACancelAndAnUnknownCancel) {
  fake_.step_delay_us = 200;
  Start();
  Router router(address());
  router.Submit(Make(1, kLong));
  router.WaitForTokens(1, 2);
  router.Cancel(55);
  router.Cancel(1);
  EXPECT_EQ(router.WaitForEnd(1).finish(), v1::FINISH_REASON_ABORT);
  EXPECT_LT(router.ids(1).size(), kLong);
  WaitForIdle();
}

TEST_F(WorkerServiceTest, CreditComesInPortions) {
  Start();
  Router router(address());
  v1::Submit submit = Make(1, 10);
  submit.set_credit(3);
  router.Submit(submit);
  router.Submit(Make(2, 60));
  router.WaitForEnd(2);
  EXPECT_EQ(router.ids(1).size(), 3u);
  v1::RouterMessage more;
  more.add_credits()->set_request_id(1);
  more.mutable_credits(0)->set_tokens(100);
  router.Send(more);
  router.WaitForEnd(1);
  EXPECT_EQ(router.ids(1), Expected(submit));
}

TEST_F(WorkerServiceTest, TwoRoutersMayUseTheSameNumbers) {
  Start();
  Router a(address()), b(address());
  const v1::Submit of_a = Make(1, 40);
  v1::Submit of_b = Make(1, 40);
  of_b.mutable_sampling()->set_seed(999);
  a.Submit(of_a);
  b.Submit(of_b);
  a.WaitForEnd(1);
  b.WaitForEnd(1);
  EXPECT_EQ(a.ids(1), Expected(of_a));
  EXPECT_EQ(b.ids(1), Expected(of_b));
}

TEST_F(WorkerServiceTest, ARouterThatGoesAwayFreesWhatItHeld) {
  fake_.step_delay_us = 200;
  Start();
  {
    Router router(address());
    for (uint64_t id = 1; id <= 12; ++id) router.Submit(Make(id, kLong));  // running and waiting ones
    router.WaitForTokens(8, 1);
    router.HangUp();
  }
  WaitForIdle();
  EXPECT_EQ(service_->live(), 0u);
  Router other(address());
  const v1::Submit submit = Make(1, 5);
  other.Submit(submit);
  other.WaitForEnd(1);
  EXPECT_EQ(other.ids(1), Expected(submit));
  EXPECT_EQ(other.load.running(), 0u);
  EXPECT_EQ(other.load.blocks_free(), other.load.blocks_total());
}

TEST_F(WorkerServiceTest, AnIdleRouterHearsTheLoad) {
  options_.load_interval = std::chrono::milliseconds(1);
  Start();
  Router router(address());
  while (router.loads < 2) ASSERT_TRUE(router.Read());
  EXPECT_EQ(router.load.blocks_total(), 4096u);
  EXPECT_EQ(router.load.steps(), 0u);
  EXPECT_FALSE(router.load.draining());
}

TEST_F(WorkerServiceTest, DrainLetsRunningOnesFinish) {
  fake_.step_delay_us = 200;
  Start();
  Router router(address());
  const v1::Submit submit = Make(1, 100);
  router.Submit(submit);
  router.WaitForTokens(1, 1);
  std::thread drain([&] {
    grpc::ClientContext context;
    services::SetDeadline(context, kPatience);
    v1::DrainRequest request;
    request.set_deadline_ms(60000);
    v1::DrainResponse response;
    EXPECT_TRUE(v1::Worker::NewStub(services::MakeChannel(address()))->Drain(&context, request, &response).ok());
    EXPECT_EQ(response.aborted(), 0u);
  });
  while (!service_->draining()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  router.Submit(Make(2, 5));
  const v1::SequenceEvent refused = router.WaitForEnd(2);
  EXPECT_EQ(refused.finish(), v1::FINISH_REASON_REJECTED);
  EXPECT_EQ(refused.reject_code(), static_cast<int>(grpc::StatusCode::UNAVAILABLE));
  EXPECT_EQ(router.WaitForEnd(1).finish(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(router.ids(1), Expected(submit));
  drain.join();
}

TEST_F(WorkerServiceTest, DrainAbortsAtItsDeadline) {
  fake_.step_delay_us = 200;
  Start();
  Router router(address());
  for (const uint64_t id : {1, 2}) router.Submit(Make(id, kLong));
  router.WaitForTokens(2, 1);
  grpc::ClientContext context;
  services::SetDeadline(context, kPatience);
  v1::DrainResponse response;
  EXPECT_TRUE(router.stub().Drain(&context, v1::DrainRequest(), &response).ok());
  EXPECT_EQ(response.aborted(), 2u);
  for (const uint64_t id : {1, 2}) EXPECT_EQ(router.WaitForEnd(id).finish(), v1::FINISH_REASON_ABORT);
}

TEST_F(WorkerServiceTest, InformationAndMetrics) {
  Start();
  Router router(address());
  grpc::ClientContext info_context, metrics_context, later_context;
  v1::GetInfoResponse info;
  ASSERT_TRUE(router.stub().GetInfo(&info_context, {}, &info).ok());
  EXPECT_EQ(info.model(), "fake");
  EXPECT_FALSE(info.draining());
  v1::GetMetricsResponse metrics;
  ASSERT_TRUE(router.stub().GetMetrics(&metrics_context, {}, &metrics).ok());
  EXPECT_EQ(metrics.text(), "some_metric 1\n");
  service_->BeginDrain();
  ASSERT_TRUE(router.stub().GetInfo(&later_context, {}, &info).ok());
  EXPECT_TRUE(info.draining());
}

TEST_F(WorkerServiceTest, StoppingSendsWhatIsLeftAndClosesEveryStream) {
  fake_.step_delay_us = 200;
  Start();
  Router router(address());
  router.Submit(Make(1, kLong));
  router.WaitForTokens(1, 1);
  engine_->Stop();
  service_->Stop(std::chrono::milliseconds(5000));
  const grpc::Status status = router.WaitForClose();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(router.events[1].back().finish(), v1::FINISH_REASON_ABORT) << "the last events went out first";
}

TEST_F(WorkerServiceTest, ARouterThatDoesNotReadIsSentAway) {
  options_.outbox.max_outbox_messages = 16;
  options_.limits.max_logprobs = 40;
  Start();
  Router slow(address());
  v1::RouterMessage message;
  for (uint64_t id = 1; id <= 8; ++id) {
    v1::Submit& submit = *message.add_submits() = Make(id, kLong);
    submit.mutable_sampling()->set_logprobs(40);  // some 20 MB in all: more than any window that gRPC opens while nobody reads
  }
  slow.Send(message);
  WaitForIdle();
  EXPECT_EQ(slow.WaitForClose().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  Router other(address());
  other.Submit(Make(1, 2));
  EXPECT_EQ(other.WaitForEnd(1).finish(), v1::FINISH_REASON_LENGTH);
}

}  // namespace
}  // namespace phalanx::worker::rpc
