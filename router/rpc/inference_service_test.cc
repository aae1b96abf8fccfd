// The native door over a scripted handler, through a real gRPC server on a unix socket.
#include "router/rpc/inference_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "router/rpc/testing/fake_handler.h"
#include "router/rpc/testing/temp_server.h"
#include "services/grpc_status.h"

namespace phalanx::router::rpc {
namespace {

using core::Finish;
using testing::FakeCall;
using testing::FakeHandler;
using testing::Part;
using testing::TempServer;

v1::ChatRequest Hello() {
  v1::ChatRequest request;
  request.add_messages()->set_role("user");
  request.mutable_messages(0)->set_content("hi");
  return request;
}

class InferenceServiceTest : public ::testing::Test {
 protected:
  InferenceServiceTest() : service_({}, &handler_), server_({&service_}), stub_(v1::Inference::NewStub(server_.channel())) {}

  absl::Status ChatStatus(const v1::ChatRequest& request) {
    grpc::ClientContext context;
    auto reader = stub_->Chat(&context, request);
    v1::ChatChunk chunk;
    EXPECT_FALSE(reader->Read(&chunk));
    return services::FromGrpc(reader->Finish());
  }
  absl::Status CompleteStatus(const v1::CompleteRequest& request) {
    grpc::ClientContext context;
    auto reader = stub_->Complete(&context, request);
    v1::CompleteChunk chunk;
    EXPECT_FALSE(reader->Read(&chunk));
    return services::FromGrpc(reader->Finish());
  }

  FakeHandler handler_;
  InferenceService service_;
  TempServer server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(InferenceServiceTest, ChatStreamsTypedChunks) {
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "r9");
  auto reader = stub_->Chat(&context, Hello());
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  EXPECT_EQ(call->request.draft.request_id, "r9");
  EXPECT_EQ(call->request.draft.messages_json, R"([{"role":"user","content":"hi"}])");
  call->usage = {.prompt_tokens = 5, .cached_tokens = 4};

  core::ReplyPart part = Part(0, "Hel");
  part.reasoning = "hm";
  part.ids = {11, 12};
  part.logprobs = {{.id = 11, .bytes = "\xff", .logprob = -0.5f, .rank = 1, .top = {{3, "x", -0.25f}}},
                   {.id = 12, .bytes = "l", .logprob = -1}};
  call->Parts({part}, 2);
  v1::ChatChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(chunk.id(), "r9");
  EXPECT_EQ(chunk.model(), "demo");
  EXPECT_EQ(chunk.index(), 0u);
  EXPECT_EQ(chunk.content(), "Hel");
  EXPECT_EQ(chunk.reasoning_content(), "hm");
  EXPECT_THAT(chunk.token_ids(), ::testing::ElementsAre(11, 12));
  ASSERT_EQ(chunk.logprobs_size(), 2);
  EXPECT_EQ(chunk.logprobs(0).token(), "\xff");
  EXPECT_EQ(chunk.logprobs(0).logprob(), -0.5f);
  ASSERT_EQ(chunk.logprobs(0).top_size(), 1);
  EXPECT_EQ(chunk.logprobs(0).top(0).id(), 3u);
  EXPECT_EQ(chunk.logprobs(0).top(0).logprob(), -0.25f);
  EXPECT_EQ(chunk.finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
  EXPECT_FALSE(chunk.has_usage());
  EXPECT_TRUE(call->AwaitConsumed(2));

  part = Part(0, "lo", Finish::kStop);
  part.stop_string = "END";
  call->Parts({part}, 1);
  call->usage.reasoning_tokens = 1;
  call->End();
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(chunk.content(), "lo");
  EXPECT_EQ(chunk.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(chunk.stop_reason(), "END");
  ASSERT_TRUE(chunk.has_usage()) << "the last chunk carries the usage";
  EXPECT_EQ(chunk.usage().prompt_tokens(), 5u);
  EXPECT_EQ(chunk.usage().completion_tokens(), 3u);
  EXPECT_EQ(chunk.usage().reasoning_tokens(), 1u);
  EXPECT_EQ(chunk.usage().cached_tokens(), 4u);
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(InferenceServiceTest, CompleteWithChoices) {
  v1::CompleteRequest request;
  request.mutable_tokens()->add_ids(7);
  request.mutable_sampling()->set_n(2);
  request.set_echo(true);
  grpc::ClientContext context;
  auto reader = stub_->Complete(&context, request);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  EXPECT_EQ(call->request.sampling.n, 2);
  std::string text[2];
  v1::FinishReason finish[2] = {};
  std::string stop_reason[2];
  int usages = 0;
  core::ReplyPart first = Part(1, "b");
  first.echo_text = "prompt ";
  call->Parts({first, Part(0, "a")}, 2);
  core::ReplyPart last = Part(1, "c", Finish::kStop);
  last.stop_token = 42;
  call->Parts({last}, 1);
  call->Parts({Part(0, "d", Finish::kLength)}, 1);
  call->End();
  v1::CompleteChunk chunk;
  while (reader->Read(&chunk)) {
    ASSERT_LT(chunk.index(), 2u);
    text[chunk.index()] += chunk.text();
    if (chunk.finish_reason() != 0) finish[chunk.index()] = chunk.finish_reason();
    stop_reason[chunk.index()] += chunk.stop_reason();
    EXPECT_EQ(usages, 0) << "usage must come with the very last chunk";
    usages += chunk.has_usage();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text[0], "ad");
  EXPECT_EQ(text[1], "prompt bc");
  EXPECT_EQ(finish[0], v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(finish[1], v1::FINISH_REASON_STOP);
  EXPECT_EQ(stop_reason[0], "");
  EXPECT_EQ(stop_reason[1], "42");
  EXPECT_EQ(usages, 1);
}

TEST_F(InferenceServiceTest, ChatFieldErrors) {
  struct Row {
    const char* field;
    absl::StatusCode code;
    std::function<void(v1::ChatRequest&)> spoil;
  };
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  const Row rows[] = {
      {"messages", kBad, [](auto& r) { r.clear_messages(); }},
      {"messages[0].role", kBad, [](auto& r) { r.mutable_messages(0)->set_role("x"); }},
      {"template_kwargs_json", kBad, [](auto& r) { r.set_template_kwargs_json("7"); }},
      {"continue_final_message", kBad, [](auto& r) { r.set_continue_final_message(true); }},
      {"cache_salt", kBad, [](auto& r) { r.set_cache_salt("a/b"); }},
      {"temperature", kBad, [](auto& r) { r.mutable_sampling()->set_temperature(-1); }},
      {"top_p", kBad, [](auto& r) { r.mutable_sampling()->set_top_p(0); }},
      {"top_k", kBad, [](auto& r) { r.mutable_sampling()->set_top_k(-2); }},
      {"min_p", kBad, [](auto& r) { r.mutable_sampling()->set_min_p(2); }},
      {"repetition_penalty", kBad, [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); }},
      {"frequency_penalty", kBad, [](auto& r) { r.mutable_sampling()->set_frequency_penalty(3); }},
      {"presence_penalty", kBad, [](auto& r) { r.mutable_sampling()->set_presence_penalty(-3); }},
      {"n", kBad, [](auto& r) { r.mutable_sampling()->set_n(0); }},
      {"n", kBad, [](auto& r) { r.mutable_sampling()->set_n(1u << 31); }},
      {"max_tokens", kBad, [](auto& r) { r.mutable_sampling()->set_max_tokens(0); }},
      {"stop_token_ids", kBad, [](auto& r) { r.mutable_sampling()->add_stop_token_ids(1000); }},
      {"allowed_token_ids", kBad, [](auto& r) { r.mutable_sampling()->add_allowed_token_ids(4000000000u); }},
      {"logit_bias", kBad, [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[1000] = 1; }},
      {"temperature", kBad, [](auto& r) { r.mutable_sampling()->set_temperature(std::numeric_limits<float>::quiet_NaN()); }},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.field);
    v1::ChatRequest request = Hello();
    row.spoil(request);
    const absl::Status status = ChatStatus(request);
    EXPECT_EQ(status.code(), row.code) << status;
    EXPECT_EQ(core::FieldOf(status), row.field) << status;
    EXPECT_FALSE(status.message().empty());
  }
  EXPECT_EQ(handler_.started(), 0u);
}

TEST_F(InferenceServiceTest, CompleteFieldErrorsAndUnknownModel) {
  v1::CompleteRequest request;
  EXPECT_EQ(core::FieldOf(CompleteStatus(request)), "prompt");
  request.mutable_tokens();
  EXPECT_EQ(core::FieldOf(CompleteStatus(request)), "prompt");
  request.mutable_tokens()->add_ids(1000);
  EXPECT_EQ(core::FieldOf(CompleteStatus(request)), "prompt");
  request.set_text("x");
  request.set_model("nope");
  const absl::Status status = CompleteStatus(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(core::ErrorCodeOf(status), "model_not_found");
}

TEST_F(InferenceServiceTest, HandlersErrorsAreStatusesWithPayloads) {
  handler_.on_start = [](const auto& call) {
    call->End(core::WithRetryAfter(core::WithErrorCode(absl::ResourceExhaustedError("full"), "queue_full"), 7));
  };
  absl::Status status = ChatStatus(Hello());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "full");
  EXPECT_EQ(core::ErrorCodeOf(status), "queue_full");
  EXPECT_EQ(core::RetryAfterOf(status), 7);

  handler_.on_start = [](const auto& call) { call->End(absl::InternalError("/secret/path broke")); };
  status = ChatStatus(Hello());
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(status.message().find("secret"), std::string::npos);
}

TEST_F(InferenceServiceTest, ErrorInMidStreamComesAfterWhatWasMade) {
  grpc::ClientContext context;
  auto reader = stub_->Chat(&context, Hello());
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  call->Parts({Part(0, "half")}, 1);
  call->End(absl::UnavailableError("worker lost"));
  v1::ChatChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(chunk.content(), "half");
  EXPECT_FALSE(chunk.has_usage());
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(InferenceServiceTest, CancelReachesTheCall) {
  for (int parts = 0; parts < 2; ++parts) {
    grpc::ClientContext context;
    auto reader = stub_->Chat(&context, Hello());
    auto call = handler_.AwaitCall(parts);
    ASSERT_NE(call, nullptr);
    v1::ChatChunk chunk;
    if (parts > 0) {
      call->Parts({Part(0, "a")}, 1);
      ASSERT_TRUE(reader->Read(&chunk));
    }
    context.TryCancel();
    EXPECT_TRUE(call->AwaitCancel());
    call->End(absl::CancelledError("left"));
    while (reader->Read(&chunk)) continue;
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
}

// A reader that does not read: chunks of a choice are merged, nothing is lost, tokens are consumed once.
TEST_F(InferenceServiceTest, SlowReaderGetsFewerLargerChunks) {
  v1::ChatRequest request = Hello();
  request.mutable_sampling()->set_n(3);
  grpc::ClientContext context;
  auto reader = stub_->Chat(&context, request);
  auto call = handler_.AwaitCall();
  ASSERT_NE(call, nullptr);
  const std::string text(1000, 'x');
  constexpr int kCredit = 96;
  int steps = 0;
  // As a relay does: no more than kCredit tokens beyond what was consumed. The windows on the way take a part, then it stands.
  for (int idle = 0; idle < 50 && steps < 100000;) {
    if (steps - call->consumed() < kCredit) {
      core::ReplyPart part = Part(steps % 3, text);
      part.ids = {steps % 1000};
      call->Parts({part}, 1);
      ++steps;
      idle = 0;
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      ++idle;
    }
  }
  ASSERT_LT(steps, 100000) << "a reader that does not read must run out of credit";
  call->Parts({Part(0, "", Finish::kStop), Part(1, "", Finish::kStop), Part(2, "", Finish::kStop)}, 0);
  std::thread relay([&] { call->End(); });
  std::vector<int> next = {0, 1, 2};
  size_t bytes = 0;
  int chunks = 0;
  v1::ChatChunk chunk;
  while (reader->Read(&chunk)) {
    ++chunks;
    bytes += chunk.content().size();
    for (const uint32_t id : chunk.token_ids()) {
      EXPECT_EQ(id, static_cast<uint32_t>(next[chunk.index()] % 1000));
      next[chunk.index()] += 3;
    }
  }
  relay.join();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(bytes, steps * text.size());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(next[i] % 3, i);
  EXPECT_EQ(next[0] + next[1] + next[2], 3 + 3 * steps);  // each id once
  EXPECT_LT(chunks, steps);
}

TEST_F(InferenceServiceTest, Tokenize) {
  handler_.on_tokenize = [](const core::Draft& draft) -> absl::StatusOr<core::TokenizeResult> {
    if (draft.prompts != std::vector<core::Prompt>{std::string("abc")}) return absl::InternalError("other prompt");
    if (draft.add_special_tokens == false) return core::TokenizeResult{{9}, {"x"}, 77};
    return core::FieldError("text", "no");
  };
  v1::TokenizeRequest request;
  request.set_text("abc");
  request.set_add_special_tokens(false);
  v1::TokenizeResponse response;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
    EXPECT_THAT(response.ids(), ::testing::ElementsAre(9));
    EXPECT_EQ(response.max_model_len(), 77u);
  }
  {
    request.clear_add_special_tokens();
    grpc::ClientContext context;
    EXPECT_EQ(core::FieldOf(services::FromGrpc(stub_->Tokenize(&context, request, &response))), "text");
  }
  request.set_model("nope");
  grpc::ClientContext context;
  EXPECT_EQ(stub_->Tokenize(&context, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(InferenceServiceTest, ListModels) {
  grpc::ClientContext context;
  v1::ListModelsResponse response;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &response).ok());
  ASSERT_EQ(response.models_size(), 2);
  EXPECT_EQ(response.models(0).id(), "demo");
  EXPECT_EQ(response.models(1).id(), "org/other");
  EXPECT_EQ(response.models(1).max_model_len(), 4096u);
}

}  // namespace
}  // namespace phalanx::router::rpc
