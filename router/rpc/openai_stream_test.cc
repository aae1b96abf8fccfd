// The OpenAI door: cancels in each stage, back-pressure, stopping.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "router/rpc/testing/openai_fixture.h"
#include "services/queue.h"

namespace phalanx::router::rpc {
namespace {

using core::Finish;
using ::testing::HasSubstr;
using testing::FakeCall;
using testing::kChat;
using testing::kChatMethod;
using testing::kChatStream;
using testing::kCompletionMethod;
using testing::OpenCall;
using testing::Part;
using testing::TestOptions;

class OpenAiStreamTest : public testing::OpenAiFixture {};

// Cancel in each stage -----------------------------------------------------------------------------------------------------------------

TEST_F(OpenAiStreamTest, CancelWhileQueued) {
  for (const char* body : {kChat, kChatStream}) {
    OpenCall rpc(*stub_, kChatMethod, body);
    auto call = handler_.AwaitCall(body == kChat ? 0 : 1);
    ASSERT_NE(call, nullptr);
    rpc.context.TryCancel();
    EXPECT_TRUE(call->AwaitCancel());
    EXPECT_EQ(rpc.Finish().error_code(), grpc::StatusCode::CANCELLED);
    call->End(absl::CancelledError("the client left"));
  }
}

TEST_F(OpenAiStreamTest, CancelInMidStream) {
  OpenCall rpc(*stub_, kChatMethod, kChatStream);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  call->Parts({Part(0, "a")}, 1);
  ASSERT_TRUE(rpc.Next());
  rpc.context.TryCancel();
  EXPECT_TRUE(call->AwaitCancel());
  call->Parts({Part(0, "late")}, 1);  // the relay may not know yet
  call->End(absl::CancelledError("the client left"));
  EXPECT_EQ(rpc.Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(rpc.body.find("late"), std::string::npos);
}

TEST_F(OpenAiStreamTest, CancelOfAPlainReplyWithPartsKept) {
  OpenCall rpc(*stub_, kChatMethod, kChat);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  call->Parts({Part(0, "kept")}, 1);
  rpc.context.TryCancel();
  EXPECT_TRUE(call->AwaitCancel());
  call->End(absl::CancelledError("the client left"));
  rpc.Finish();
}

TEST_F(OpenAiStreamTest, CancelBeforeStartReturns) {
  std::promise<void> go;
  handler_.on_start = [future = go.get_future().share()](const auto&) { future.wait(); };
  auto options = TestOptions();
  options.inline_bytes_max = 0;  // starts on the executor, so that gRPC's threads stay free to see the cancel
  Serve(options);
  OpenCall rpc(*stub_, kChatMethod, kChatStream);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  rpc.context.TryCancel();
  EXPECT_EQ(rpc.Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(call->cancels(), 0);  // the door does not have the call yet
  go.set_value();
  EXPECT_TRUE(call->AwaitCancel());
  call->End(absl::CancelledError("the client left"));
}

TEST_F(OpenAiStreamTest, CancelWhileParsingIsQueued) {
  auto options = TestOptions();
  options.inline_bytes_max = 0;
  options.work_threads = 1;
  Serve(options);
  std::promise<void> go, inside;
  handler_.on_tokenize = [&, future = go.get_future().share()](const core::Draft&) {
    inside.set_value();
    future.wait();
    return core::TokenizeResult{};
  };
  handler_.on_start = [](const auto& call) { call->End(absl::InternalError("x")); };
  OpenCall blocker(*stub_, &v1::OpenAI::Stub::Tokenize, R"({"prompt":"x"})");
  inside.get_future().wait();
  OpenCall gone(*stub_, kChatMethod, kChat);
  gone.context.TryCancel();
  EXPECT_EQ(gone.Finish().error_code(), grpc::StatusCode::CANCELLED);
  go.set_value();
  // One behind it proves that the queue went on. Whether the cancelled one was started depends on when the server heard of it.
  OpenCall next(*stub_, kChatMethod, kChat);
  EXPECT_TRUE(next.Finish().ok());
  EXPECT_EQ(next.header("x-http-code"), "500");
  EXPECT_TRUE(blocker.Finish().ok());
}

// Back-pressure ------------------------------------------------------------------------------------------------------------------------

TEST_F(OpenAiStreamTest, SlowReaderStopsConsumingAndOthersGoOn) {
  OpenCall slow(*stub_, kChatMethod, kChatStream, "slow");
  auto stalled = handler_.AwaitCall(0);
  ASSERT_NE(stalled, nullptr);
  const std::string text(1000, 'x');
  constexpr int kCredit = 64;
  int sent = 0;
  // As a relay does: no more than kCredit tokens beyond what was consumed.
  for (int idle = 0; idle < 50 && sent < 100000;) {
    if (sent - stalled->consumed() < kCredit) {
      stalled->Parts({Part(0, text)}, 1);
      ++sent;
      idle = 0;
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      ++idle;
    }
  }
  ASSERT_LT(sent, 100000) << "a reader that does not read must run out of credit";
  EXPECT_EQ(sent - stalled->consumed(), kCredit);

  OpenCall other(*stub_, kChatMethod, kChatStream, "other");
  auto running = handler_.AwaitCall(1);
  ASSERT_NE(running, nullptr);
  std::thread relay([&] {
    for (int i = 0; i < 200; ++i) running->Parts({Part(0, absl::StrCat("<", i, ">"))}, 1);
    running->Parts({Part(0, "", Finish::kStop)}, 0);
    running->End();
  });
  EXPECT_TRUE(other.Finish().ok());
  relay.join();
  for (int i = 0; i < 200; ++i) EXPECT_THAT(other.body, HasSubstr(absl::StrCat("<", i, ">")));

  // The slow one reads on and gets every byte.
  std::thread rest([&] {
    stalled->Parts({Part(0, "", Finish::kStop)}, 0);
    stalled->End();
  });
  EXPECT_TRUE(slow.Finish().ok());
  rest.join();
  size_t texts = 0;
  for (size_t at = 0; (at = slow.body.find(text, at)) != std::string::npos; at += text.size()) ++texts;
  EXPECT_EQ(texts, static_cast<size_t>(sent));
  EXPECT_LT(slow.messages, sent) << "what waited must go out together";
}

TEST_F(OpenAiStreamTest, OutboxIsBoundedWithoutCredit) {
  auto options = TestOptions();
  options.stream.outbox_bytes_max = 100000;
  Serve(options);
  OpenCall rpc(*stub_, kChatMethod, kChatStream);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  const std::string text(10000, 'x');
  // The cancel comes on another thread, at some time after the bound was passed.
  for (int sent = 0; sent < 10000 && call->cancels() == 0; ++sent) call->Parts({Part(0, text)}, 1);
  EXPECT_TRUE(call->AwaitCancel());
  call->End(absl::CancelledError("the client left"));
  EXPECT_EQ(rpc.Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(OpenAiStreamTest, OneLargeStepIsNotAnOverflow) {
  auto options = TestOptions();
  options.stream.outbox_bytes_max = 1000;
  Serve(options);
  OpenCall rpc(*stub_, kCompletionMethod, R"({"prompt":"a","stream":true})");
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  call->Parts({Part(0, std::string(3000000, 'y'), Finish::kStop)}, 1);
  call->End();
  EXPECT_TRUE(rpc.Finish().ok());
  EXPECT_GT(rpc.body.size(), 3000000u);
}

TEST_F(OpenAiStreamTest, StalledReaderIsEndedAfterItsTime) {
  auto options = TestOptions();
  options.stream.stall_max = std::chrono::milliseconds(100);
  Serve(options);
  OpenCall rpc(*stub_, kChatMethod, kChatStream);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  const std::string text(16 << 20, 'x');  // more than a window: the write cannot end while nobody reads
  call->Parts({Part(0, text)}, 1);
  EXPECT_TRUE(call->AwaitCancel());
  EXPECT_EQ(call->consumed(), 0);
  call->End(absl::CancelledError("the client left"));
  EXPECT_FALSE(rpc.Finish().ok());
}

TEST_F(OpenAiStreamTest, IdleStreamIsNotStalled) {
  auto options = TestOptions();
  options.stream.stall_max = std::chrono::milliseconds(500);
  options.stall_check = std::chrono::milliseconds(1);
  Serve(options);
  OpenCall rpc(*stub_, kChatMethod, kChatStream);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  call->Parts({Part(0, "a")}, 1);
  ASSERT_TRUE(rpc.Next());
  ASSERT_TRUE(call->AwaitConsumed(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(700));  // longer than a write may take
  EXPECT_EQ(call->cancels(), 0);
  call->Parts({Part(0, "", Finish::kStop)}, 0);
  call->End();
  EXPECT_TRUE(rpc.Finish().ok());
}

TEST_F(OpenAiStreamTest, EveryTokenIsConsumedOnce) {
  OpenCall rpc(*stub_, kChatMethod, kChatStream);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  std::thread relay([&] {
    for (int i = 0; i < 500; ++i) call->Parts({Part(0, i % 3 == 0 ? "" : "ab")}, 1 + i % 2);  // some give nothing to send
  });
  relay.join();
  // Reads what was sent and no more: the door hears of its last write after the client has read it.
  const auto texts = [&] {
    int count = 0;
    for (size_t at = 0; (at = rpc.body.find("\"ab\"", at)) != std::string::npos; ++at) ++count;
    return count;
  };
  while (texts() < 333 && rpc.Next()) continue;
  EXPECT_TRUE(call->AwaitConsumed(750));
  EXPECT_EQ(call->consumed(), 750);
  call->Parts({Part(0, "", Finish::kStop)}, 0);
  call->End();
  EXPECT_TRUE(rpc.Finish().ok());
}

TEST_F(OpenAiStreamTest, TokensWithoutTextBehindAStuckWriteAreConsumedWithIt) {
  OpenCall rpc(*stub_, kChatMethod, kChatStream);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  call->Parts({Part(0, std::string(16 << 20, 'x'))}, 1);  // more than a window
  for (int i = 0; i < 10; ++i) call->Parts({Part(0, "")}, 1);
  EXPECT_EQ(call->consumed(), 0);
  ASSERT_TRUE(rpc.Next());
  EXPECT_TRUE(call->AwaitConsumed(11));
  call->Parts({Part(0, "", Finish::kStop)}, 0);
  call->End();
  EXPECT_TRUE(rpc.Finish().ok());
}

// Stopping -----------------------------------------------------------------------------------------------------------------------------

TEST_F(OpenAiStreamTest, StopWaitsForARunningReplyAndTakesNoNewOne) {
  OpenCall rpc(*stub_, kChatMethod, kChatStream);
  auto call = handler_.AwaitCall(0);
  ASSERT_NE(call, nullptr);
  // Keeps the connection: when the last stream ends, the server closes it, and gRPC's client may lose what it has not read yet.
  OpenCall keeper(*stub_, kChatMethod, kChatStream);
  ASSERT_NE(handler_.AwaitCall(1), nullptr);
  call->Parts({Part(0, "a")}, 1);
  ASSERT_TRUE(rpc.Next());
  std::thread stopper([&] { server_->Stop(testing::kSoon); });
  while (true) {  // until the server refuses new calls
    OpenCall refused(*stub_, &v1::OpenAI::Stub::Tokenize, R"({"prompt":"x"})");
    if (!refused.Finish().ok()) break;
  }
  call->Parts({Part(0, "b", Finish::kStop)}, 1);
  call->End();
  EXPECT_TRUE(rpc.Finish().ok()) << rpc.status.error_message();
  EXPECT_THAT(rpc.body, ::testing::EndsWith("data: [DONE]\n\n"));
  EXPECT_EQ(call->cancels(), 0);
  keeper.context.TryCancel();
  EXPECT_TRUE(handler_.AwaitCall(1)->AwaitCancel());
  handler_.AwaitCall(1)->End(absl::CancelledError("left"));
  stopper.join();
}

TEST_F(OpenAiStreamTest, StopCancelsWhatIsLeftAfterTheGrace) {
  std::vector<std::unique_ptr<OpenCall>> rpcs;
  for (int i = 0; i < 4; ++i) {
    rpcs.push_back(std::make_unique<OpenCall>(*stub_, kChatMethod, i % 2 == 0 ? kChat : kChatStream));
    ASSERT_NE(handler_.AwaitCall(i), nullptr);
  }
  handler_.AwaitCall(0)->Parts({Part(0, "a")}, 1);
  server_->Stop(std::chrono::milliseconds(50));  // returns, though the handler never ends the calls
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(handler_.AwaitCall(i)->cancels(), 1);
    EXPECT_FALSE(rpcs[i]->Finish().ok());
    handler_.AwaitCall(i)->End(absl::CancelledError("late"));  // into a sink whose RPC is gone
  }
}

TEST_F(OpenAiStreamTest, NothingKeepsAStreamAfterItsEnd) {
  std::weak_ptr<core::ReplySink> sink;
  {
    OpenCall rpc(*stub_, kChatMethod, kChat);
    auto call = handler_.AwaitCall();
    ASSERT_NE(call, nullptr);
    sink = call->sink;
    call->Parts({Part(0, "a", Finish::kStop)}, 1);
    call->End();
    EXPECT_TRUE(rpc.Finish().ok());
    call->sink.reset();
  }
  handler_.Forget();
  server_->Stop(testing::kSoon);
  EXPECT_TRUE(sink.expired());
}

// Many streams, several relay threads, clients that leave at random points: every RPC ends, every stream that stays is whole.
TEST_F(OpenAiStreamTest, ManyStreamsWithRandomCancels) {
  constexpr int kStreams = 200;
  constexpr int kTokens = 40;
  std::atomic<int> next{0};
  services::Queue<std::shared_ptr<FakeCall>> work(kStreams);
  handler_.on_start = [&](const std::shared_ptr<FakeCall>& call) {
    auto copy = call;
    ASSERT_TRUE(work.TryPush(std::move(copy)));
  };
  std::vector<std::thread> relays;
  for (int i = 0; i < 2; ++i) {
    relays.emplace_back([&] {
      while (auto call = work.Pop()) {
        for (int t = 0; t < kTokens && (*call)->cancels() == 0; ++t) (*call)->Parts({Part(0, "tok ")}, 1);
        const bool left = (*call)->cancels() > 0;
        if (!left) (*call)->Parts({Part(0, "", Finish::kStop)}, 0);
        (*call)->End(left ? absl::CancelledError("left") : absl::OkStatus());
      }
    });
  }
  std::atomic<int> whole{0}, cancelled{0}, broken{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&, c] {
      std::minstd_rand random(c + 1);
      while (next++ < kStreams) {
        OpenCall rpc(*stub_, kChatMethod, kChatStream, "");
        const int reads = static_cast<int>(random() % 4);
        const bool leave = random() % 2 == 0;
        for (int i = 0; i < reads && rpc.Next(); ++i) continue;
        if (leave) rpc.context.TryCancel();
        const bool ok = rpc.Finish().ok();
        size_t tokens = 0;
        for (size_t at = 0; (at = rpc.body.find("tok ", at)) != std::string::npos; at += 4) ++tokens;
        const bool complete = tokens == kTokens && rpc.body.ends_with("data: [DONE]\n\n");
        ++(ok && complete ? whole : leave && !ok ? cancelled : broken);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  server_->Stop(testing::kSoon);
  work.Close();
  for (std::thread& relay : relays) relay.join();
  EXPECT_EQ(broken, 0);
  EXPECT_EQ(whole + cancelled, kStreams);
  EXPECT_GT(whole, 0);
}

}  // namespace
}  // namespace phalanx::router::rpc
