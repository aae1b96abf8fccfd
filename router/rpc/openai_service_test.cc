// The OpenAI door: bodies, headers, refusals and the small methods.
#include "router/rpc/openai_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "absl/strings/str_cat.h"
#include "router/rpc/testing/openai_fixture.h"

namespace phalanx::router::rpc {
namespace {

using core::Finish;
using ::testing::HasSubstr;
using testing::kChat;
using testing::kChatMethod;
using testing::kChatStream;
using testing::kCompletionMethod;
using testing::OpenCall;
using testing::Part;
using testing::TestOptions;

class OpenAiServiceTest : public testing::OpenAiFixture {};

TEST_F(OpenAiServiceTest, PlainChatIsOneMessage) {
  OpenCall rpc(*stub_, kChatMethod, kChat);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  EXPECT_EQ(call->request.draft.request_id, "r1");
  EXPECT_EQ(call->request.served_name, "demo");
  EXPECT_EQ(call->request.draft.messages_json, R"([{"role":"user","content":"hi"}])");
  call->usage.prompt_tokens = 7;
  call->Parts({Part(0, "Hel")}, 1);
  EXPECT_TRUE(call->AwaitConsumed(1)) << "a plain reply must not wait for credit";
  call->Parts({Part(0, "lo", Finish::kStop)}, 2);
  call->End();
  EXPECT_TRUE(rpc.Finish().ok());
  EXPECT_EQ(rpc.messages, 1);
  EXPECT_EQ(rpc.content_type, "application/json");
  EXPECT_EQ(rpc.header("x-http-code"), "200");
  const auto json = services::ParseJson(rpc.body);
  ASSERT_TRUE(json.ok()) << rpc.body;
  EXPECT_EQ((*json)["id"], "chatcmpl-r1");
  EXPECT_EQ((*json)["choices"][0]["message"]["content"], "Hello");
  EXPECT_EQ((*json)["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ((*json)["usage"]["completion_tokens"], 3);
  EXPECT_EQ((*json)["usage"]["prompt_tokens"], 7);
}

TEST_F(OpenAiServiceTest, StreamedChatIsByteExact) {
  OpenCall rpc(*stub_, kChatMethod,
               R"({"messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}})");
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  call->usage.prompt_tokens = 4;
  call->Parts({Part(0, "Hé\n")}, 1);
  ASSERT_TRUE(rpc.Next());
  EXPECT_EQ(rpc.content_type, "text/event-stream");
  EXPECT_EQ(rpc.header("x-http-code"), "");
  call->Parts({Part(0, "!", Finish::kLength)}, 1);
  call->End();
  EXPECT_TRUE(rpc.Finish().ok());
  const size_t at = rpc.body.find("\"created\":") + 10;
  const std::string created = rpc.body.substr(at, rpc.body.find(',', at) - at);
  const std::string head =
      absl::StrCat(R"(data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":)", created, R"(,"model":"demo","choices":[)");
  const auto choice = [&](const char* delta, const char* rest) {
    return absl::StrCat(head, "{\"index\":0,\"delta\":{", delta, "},\"logprobs\":null,\"finish_reason\":", rest, "}],\"usage\":null}\n\n");
  };
  EXPECT_EQ(rpc.body, choice(R"("role":"assistant","content":"")", "null") + choice(R"("content":"Hé\n")", "null") +
                          choice(R"("content":"!")", "null") + choice("", R"("length","stop_reason":null)") + head +
                          "],\"usage\":{\"prompt_tokens\":4,\"total_tokens\":6,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n");
}

TEST_F(OpenAiServiceTest, ChoicesArePromptsTimesN) {
  OpenCall rpc(*stub_, kCompletionMethod, R"({"prompt":["a","b"],"n":2,"stream":true,"model":"org/other"})");
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  EXPECT_EQ(call->request.served_name, "org/other");
  EXPECT_EQ(call->request.draft.prompts.size(), 2u);
  for (int i = 3; i >= 0; --i) call->Parts({Part(i, absl::StrCat("t", i), Finish::kStop)}, 1);
  call->End();
  EXPECT_TRUE(rpc.Finish().ok());
  for (int i = 0; i < 4; ++i) {
    const char* rest = R"(","logprobs":null,"finish_reason":"stop")";
    EXPECT_THAT(rpc.body, HasSubstr(absl::StrCat(R"("choices":[{"index":)", i, R"(,"text":"t)", i, rest)));
  }
  EXPECT_THAT(rpc.body, HasSubstr("\"id\":\"cmpl-r1\""));
  EXPECT_THAT(rpc.body, ::testing::EndsWith("data: [DONE]\n\n"));
}

TEST_F(OpenAiServiceTest, ChatChoicesAreNWithRolesFirst) {
  OpenCall rpc(*stub_, kChatMethod, R"({"messages":[{"role":"user","content":"hi"}],"stream":true,"n":3})");
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  call->Parts({Part(2, "x")}, 1);
  ASSERT_TRUE(rpc.Next());
  size_t roles = 0;
  for (size_t at = 0; (at = rpc.body.find("\"role\":\"assistant\"", at)) != std::string::npos; ++at) ++roles;
  EXPECT_EQ(roles, 3u);
  call->End(absl::UnavailableError("lost"));
  EXPECT_TRUE(rpc.Finish().ok());
}

struct RefusalRow {
  const char* body;
  OpenCall::Method method;
  const char* code;
  const char* type;
  const char* param;
};

TEST_F(OpenAiServiceTest, RefusalsComeBeforeTheHandler) {
  const RefusalRow rows[] = {
      {"{", kChatMethod, "400", "invalid_request_error", "null"},
      {"[]", kCompletionMethod, "400", "invalid_request_error", "null"},
      {"{}", kChatMethod, "400", "invalid_request_error", "messages"},
      {R"({"messages":[]})", kChatMethod, "400", "invalid_request_error", "messages"},
      {R"({"messages":[{"role":"user","content":"x"}],"temperature":-1})", kChatMethod, "400", "invalid_request_error", "temperature"},
      {R"({"messages":[{"role":"user","content":"x"}],"n":1000000,"stream":true})", kChatMethod, "400", "invalid_request_error", "n"},
      {R"({"messages":[{"role":"user","content":"x"}],"model":"nope"})", kChatMethod, "404", "invalid_request_error", "model"},
      {R"({"prompt":[5000]})", kCompletionMethod, "400", "invalid_request_error", "prompt"},
      {"\xff", kChatMethod, "400", "invalid_request_error", "null"},
      {"", kChatMethod, "400", "invalid_request_error", "null"},
  };
  for (const RefusalRow& row : rows) {
    SCOPED_TRACE(row.body);
    OpenCall rpc(*stub_, row.method, row.body);
    EXPECT_TRUE(rpc.Finish().ok()) << rpc.status.error_message();
    EXPECT_EQ(rpc.messages, 1);
    EXPECT_EQ(rpc.content_type, "application/json");
    EXPECT_EQ(rpc.header("x-http-code"), row.code);
    EXPECT_EQ(Error(rpc.body, "type"), row.type);
    EXPECT_EQ(Error(rpc.body, "param"), row.param);
  }
  EXPECT_EQ(handler_.started(), 0u);
}

TEST_F(OpenAiServiceTest, HandlersRefusalSetsHeaders) {
  handler_.on_start = [](const auto& call) {
    call->End(core::WithRetryAfter(core::WithErrorCode(absl::ResourceExhaustedError("full"), "queue_full"), 7));
  };
  OpenCall busy(*stub_, kChatMethod, kChatStream);
  EXPECT_TRUE(busy.Finish().ok());
  EXPECT_EQ(busy.header("x-http-code"), "429");
  EXPECT_EQ(busy.header("retry-after"), "7");
  EXPECT_EQ(busy.header("x-should-retry"), "");
  EXPECT_EQ(Error(busy.body, "code"), "queue_full");
  EXPECT_EQ(busy.content_type, "application/json");

  handler_.on_start = [](const auto& call) { call->End(absl::UnimplementedError("not built")); };
  OpenCall missing(*stub_, kChatMethod, kChat);
  EXPECT_TRUE(missing.Finish().ok());
  EXPECT_EQ(missing.header("x-http-code"), "501");
  EXPECT_EQ(missing.header("x-should-retry"), "false");
}

TEST_F(OpenAiServiceTest, FailureOfAPlainReplyAfterPartsIsOneErrorBody) {
  OpenCall rpc(*stub_, kChatMethod, kChat);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  call->Parts({Part(0, "half")}, 1);
  call->End(absl::DeadlineExceededError("too late"));
  EXPECT_TRUE(rpc.Finish().ok());
  EXPECT_EQ(rpc.header("x-http-code"), "504");
  EXPECT_EQ(Error(rpc.body, "code"), "timeout");
  EXPECT_EQ(rpc.messages, 1);
}

TEST_F(OpenAiServiceTest, FailureInAStreamIsAnEventAndEndsOk) {
  OpenCall rpc(*stub_, kChatMethod, kChatStream);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  call->Parts({Part(0, "a")}, 1);
  ASSERT_TRUE(rpc.Next());
  const std::string before = rpc.body;
  call->End(absl::UnavailableError("worker lost"));
  EXPECT_TRUE(rpc.Finish().ok());
  EXPECT_EQ(rpc.body.substr(before.size()),
            R"(data: {"error":{"message":"worker lost","type":"server_error","param":null,"code":"unavailable"}})"
            "\n\ndata: [DONE]\n\n");
  EXPECT_EQ(rpc.header("x-http-code"), "");
}

TEST_F(OpenAiServiceTest, ReplyThatEndsInsideStartIsComplete) {
  handler_.on_start = [](const auto& call) {
    call->Parts({Part(0, "now", Finish::kStop)}, 1);
    call->End();
  };
  for (const char* body : {kChat, kChatStream}) {
    OpenCall rpc(*stub_, kChatMethod, body);
    EXPECT_TRUE(rpc.Finish().ok());
    EXPECT_THAT(rpc.body, HasSubstr("\"content\":\"now\""));
  }
}

TEST_F(OpenAiServiceTest, TokensOfPartsInsideStartAreConsumed) {
  handler_.on_start = [](const auto& call) { call->Parts({Part(0, "early")}, 3); };
  OpenCall plain(*stub_, kChatMethod, kChat);
  ASSERT_NE(handler_.AwaitCall(0), nullptr);
  EXPECT_TRUE(handler_.AwaitCall(0)->AwaitConsumed(3));
  OpenCall stream(*stub_, kChatMethod, kChatStream);
  ASSERT_NE(handler_.AwaitCall(1), nullptr);
  EXPECT_TRUE(handler_.AwaitCall(1)->AwaitConsumed(3));
  for (int i = 0; i < 2; ++i) handler_.AwaitCall(i)->End(absl::InternalError("x"));
  EXPECT_TRUE(plain.Finish().ok());
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(OpenAiServiceTest, RequestIdIsMadeOrTakenFromTheBody) {
  handler_.on_start = [](const auto& call) { call->End(absl::InternalError("x")); };
  OpenCall none(*stub_, kChatMethod, kChat, "");
  none.Finish();
  OpenCall body(*stub_, kChatMethod, R"({"messages":[{"role":"user","content":"hi"}],"request_id":"mine"})", "");
  body.Finish();
  OpenCall unusable(*stub_, kChatMethod, kChat, std::string(200, 'a'));
  unusable.Finish();
  EXPECT_EQ(handler_.AwaitCall(0)->request.draft.request_id.size(), 32u);
  EXPECT_EQ(handler_.AwaitCall(1)->request.draft.request_id, "mine");
  EXPECT_EQ(handler_.AwaitCall(2)->request.draft.request_id.size(), 32u);
  EXPECT_NE(handler_.AwaitCall(2)->request.draft.request_id, handler_.AwaitCall(0)->request.draft.request_id);
}

// Other methods ------------------------------------------------------------------------------------------------------------------------

TEST_F(OpenAiServiceTest, TokenizeAndDetokenize) {
  OpenCall tokenize(*stub_, &v1::OpenAI::Stub::Tokenize, R"({"prompt":"abc","return_token_strs":true})");
  EXPECT_TRUE(tokenize.Finish().ok());
  EXPECT_EQ(tokenize.body, R"({"count":3,"max_model_len":4096,"tokens":[1,2,3],"token_strs":["a","b","c"]})");
  EXPECT_EQ(tokenize.content_type, "application/json");
  EXPECT_EQ(tokenize.header("x-http-code"), "");

  OpenCall detokenize(*stub_, &v1::OpenAI::Stub::Detokenize, R"({"tokens":[1,2]})");
  EXPECT_TRUE(detokenize.Finish().ok());
  EXPECT_EQ(detokenize.body, R"({"prompt":"2 ids"})");

  OpenCall outside(*stub_, &v1::OpenAI::Stub::Detokenize, R"({"tokens":[1000]})");
  EXPECT_TRUE(outside.Finish().ok());
  EXPECT_EQ(outside.header("x-http-code"), "400");
  EXPECT_EQ(Error(outside.body, "param"), "tokens");

  OpenCall unknown(*stub_, &v1::OpenAI::Stub::Tokenize, R"({"prompt":"abc","model":"nope"})");
  EXPECT_TRUE(unknown.Finish().ok());
  EXPECT_EQ(unknown.header("x-http-code"), "404");
  EXPECT_EQ(Error(unknown.body, "code"), "model_not_found");

  handler_.on_tokenize = [](const core::Draft&) { return core::FieldError("messages", "the template refused"); };
  OpenCall refused(*stub_, &v1::OpenAI::Stub::Tokenize, R"({"messages":[{"role":"user","content":"x"}]})");
  EXPECT_TRUE(refused.Finish().ok());
  EXPECT_EQ(Error(refused.body, "message"), "the template refused");
}

TEST_F(OpenAiServiceTest, FullWorkQueueIsRefusedWithRetryAfter) {
  auto options = TestOptions();
  options.work_threads = 1;
  options.work_queue_max = 1;
  Serve(options);
  std::promise<void> go;
  std::atomic<int> inside{0};
  handler_.on_tokenize = [&, future = go.get_future().share()](const core::Draft&) {
    ++inside;
    future.wait();
    return core::TokenizeResult{};
  };
  OpenCall first(*stub_, &v1::OpenAI::Stub::Tokenize, R"({"prompt":"x"})");
  while (inside == 0) std::this_thread::yield();
  // Now the thread is taken and one place is free. Of calls that come, one waits there; all others are refused at once.
  std::atomic<int> refused{0}, served{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      OpenCall rpc(*stub_, &v1::OpenAI::Stub::Tokenize, R"({"prompt":"x"})");
      EXPECT_TRUE(rpc.Finish().ok());
      if (rpc.header("x-http-code").empty()) {
        ++served;
        return;
      }
      EXPECT_EQ(rpc.header("x-http-code"), "429");
      EXPECT_EQ(rpc.header("retry-after"), "1");
      EXPECT_EQ(Error(rpc.body, "code"), "queue_full");
      if (++refused == 3) go.set_value();
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(first.Finish().ok());
  EXPECT_EQ(refused, 3);
  EXPECT_EQ(served, 1);
}

TEST_F(OpenAiServiceTest, LargeBodiesAreParsedOffTheGrpcThreads) {
  const std::string text(200000, 'z');
  OpenCall rpc(*stub_, kChatMethod, absl::StrCat(R"({"messages":[{"role":"user","content":")", text, R"("}]})"));
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  EXPECT_THAT(call->request.draft.messages_json, HasSubstr(text));
  call->Parts({Part(0, "ok", Finish::kStop)}, 1);
  call->End();
  EXPECT_TRUE(rpc.Finish().ok());
  OpenCall bad(*stub_, kChatMethod, "[" + text);
  EXPECT_TRUE(bad.Finish().ok());
  EXPECT_EQ(bad.header("x-http-code"), "400");
}

TEST_F(OpenAiServiceTest, ModelsVersionMetrics) {
  const google::protobuf::Empty empty;
  OpenCall list([&](grpc::ClientContext* context) { return stub_->ListModels(context, empty); });
  EXPECT_TRUE(list.Finish().ok());
  const auto models = services::ParseJson(list.body);
  ASSERT_TRUE(models.ok());
  ASSERT_EQ((*models)["data"].size(), 2u);
  EXPECT_EQ((*models)["data"][0]["id"], "demo");
  EXPECT_EQ((*models)["data"][0]["root"], "models/demo");
  EXPECT_EQ((*models)["data"][1]["id"], "org/other");
  EXPECT_EQ((*models)["data"][1]["max_model_len"], 4096);
  EXPECT_EQ((*models)["data"][1]["created"], 1700000000);

  const auto get = [&](const char* id) {
    v1::GetModelRequest request;
    request.set_id(id);
    auto call = std::make_unique<OpenCall>([&](grpc::ClientContext* context) { return stub_->GetModel(context, request); });
    EXPECT_TRUE(call->Finish().ok());
    return call;
  };
  EXPECT_THAT(get("org/other")->body, HasSubstr("\"id\":\"org/other\""));
  EXPECT_EQ(get("nope")->header("x-http-code"), "404");
  EXPECT_EQ(get("")->header("x-http-code"), "404");

  OpenCall version([&](grpc::ClientContext* context) { return stub_->Version(context, empty); });
  EXPECT_TRUE(version.Finish().ok());
  EXPECT_EQ(version.body, R"({"version":"1.2.3"})");

  OpenCall metrics([&](grpc::ClientContext* context) { return stub_->Metrics(context, empty); });
  EXPECT_TRUE(metrics.Finish().ok());
  EXPECT_EQ(metrics.body, handler_.Metrics());
  EXPECT_EQ(metrics.content_type, "text/plain; version=0.0.4; charset=utf-8");
}

}  // namespace
}  // namespace phalanx::router::rpc
