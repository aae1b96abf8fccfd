// router/rpc/testing/openai_fixture.h: the OpenAI door over a scripted handler, through a real gRPC server on a unix socket.
// Refuses to know: what a test wants. Thread: a test's own. Neighbours: openai_service_test.cc, openai_stream_test.cc.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "router/rpc/openai_service.h"
#include "router/rpc/testing/fake_handler.h"
#include "router/rpc/testing/temp_server.h"
#include "services/json.h"

namespace phalanx::router::rpc::testing {

using google::api::HttpBody;

inline constexpr char kChat[] = R"({"messages":[{"role":"user","content":"hi"}]})";
inline constexpr char kChatStream[] = R"({"messages":[{"role":"user","content":"hi"}],"stream":true})";

// A client's RPC, read step by step.
class OpenCall {
 public:
  using Method = std::unique_ptr<grpc::ClientReader<HttpBody>> (v1::OpenAI::Stub::*)(grpc::ClientContext*, const HttpBody&);

  OpenCall(v1::OpenAI::Stub& stub, Method method, const std::string& body, const std::string& request_id = "r1") {
    HttpBody request;
    request.set_content_type("application/json");
    request.set_data(body);
    if (!request_id.empty()) context.AddMetadata("x-request-id", request_id);
    reader_ = (stub.*method)(&context, request);
  }
  using StartCall = std::function<std::unique_ptr<grpc::ClientReader<HttpBody>>(grpc::ClientContext*)>;
  explicit OpenCall(const StartCall& start) : reader_(start(&context)) {}

  bool Next() {
    HttpBody message;
    if (!reader_->Read(&message)) return false;
    if (messages++ == 0) content_type = message.content_type();
    last = message.data();
    body += last;
    return true;
  }
  // Reads to the end.
  const grpc::Status& Finish() {
    while (Next()) continue;
    return status = reader_->Finish();
  }
  std::string header(const std::string& name) const {
    const auto& all = context.GetServerInitialMetadata();
    const auto it = all.find(name);
    return it == all.end() ? "" : std::string(it->second.data(), it->second.size());
  }

  grpc::ClientContext context;
  grpc::Status status;
  std::string body, last, content_type;
  int messages = 0;

 private:
  std::unique_ptr<grpc::ClientReader<HttpBody>> reader_;
};

inline constexpr OpenCall::Method kChatMethod = &v1::OpenAI::Stub::ChatCompletions;
inline constexpr OpenCall::Method kCompletionMethod = &v1::OpenAI::Stub::Completions;

inline OpenAiOptions TestOptions() {
  OpenAiOptions options;
  options.version = "1.2.3";
  options.model = {"models/demo", 1700000000};
  options.stall_check = std::chrono::milliseconds(20);
  return options;
}

class OpenAiFixture : public ::testing::Test {
 protected:
  // Before the first call.
  void Serve(OpenAiOptions options) {
    stub_.reset();
    server_.reset();
    service_ = std::make_unique<OpenAiService>(std::move(options), &handler_);
    server_ = std::make_unique<TempServer>(std::vector<grpc::Service*>{service_.get()});
    stub_ = v1::OpenAI::NewStub(server_->channel());
  }
  void SetUp() override { Serve(TestOptions()); }
  void TearDown() override {
    server_->Stop();
    EXPECT_EQ(service_->open_streams(), 0u);
  }

  static std::string Error(const std::string& body, const char* key) {
    const auto json = services::ParseJson(body);
    if (!json.ok() || !json->contains("error")) return "not an error: " + body;
    const auto& value = (*json)["error"][key];
    return value.is_string() ? value.get<std::string>() : value.dump();
  }

  FakeHandler handler_;
  std::unique_ptr<OpenAiService> service_;
  std::unique_ptr<TempServer> server_;
  std::unique_ptr<v1::OpenAI::Stub> stub_;
};

}  // namespace phalanx::router::rpc::testing
