// A server and its clients: addresses, health, statuses with payloads, message caps, drain and stop.
#include "services/server.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <future>
#include <thread>

#include "absl/strings/cord.h"
#include "phalanx/v1/inference.grpc.pb.h"
#include "services/channel.h"
#include "services/grpc_status.h"

namespace phalanx::services {
namespace {

using ::testing::HasSubstr;
using std::chrono::milliseconds;
using std::chrono::seconds;

// ListModels fails as `status` says, after `gate` opens; the other methods are not there.
class Service final : public v1::Inference::Service {
 public:
  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest*, v1::ListModelsResponse*) override {
    entered.set_value();
    if (gate.valid()) {
      while (gate.wait_for(milliseconds(5)) != std::future_status::ready) {
        if (context->IsCancelled()) return grpc::Status(grpc::StatusCode::CANCELLED, "cancelled");
      }
    }
    return ToGrpc(status);
  }
  std::promise<void> entered;
  std::shared_future<void> gate;
  absl::Status status;
};

class Folder {
 public:
  Folder() {
    std::string form = (std::filesystem::temp_directory_path() / "phalanx_server_XXXXXX").string();
    path_ = mkdtemp(form.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string Socket() const { return "unix:" + path_ + "/s.sock"; }

 private:
  std::string path_;
};

absl::Status CallListModels(const std::string& address, seconds limit = seconds(60)) {
  const auto stub = v1::Inference::NewStub(MakeChannel(address));
  grpc::ClientContext context;
  SetDeadline(context, limit);
  v1::ListModelsResponse response;
  return FromGrpc(stub->ListModels(&context, {}, &response));
}

// grpc.health.v1 by hand: the answer's one field is the state, 1 = SERVING, 2 = NOT_SERVING.
int HealthOf(const std::string& address) {
  const auto channel = MakeChannel(address);
  grpc::ClientContext context;
  SetDeadline(context, seconds(60));
  const grpc::Slice empty;
  const grpc::ByteBuffer request(&empty, 1);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  grpc::GenericStub(channel).UnaryCall(&context, "/grpc.health.v1.Health/Check", {}, &request, &response,
      [&](grpc::Status status) { done.set_value(status); });
  const grpc::Status status = done.get_future().get();
  EXPECT_TRUE(status.ok()) << status.error_message();
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (response.Dump(&slices).ok()) {
    for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes.size() == 2 && bytes[0] == 8 ? bytes[1] : -1;
}

TEST(Server, ListensOnSocketsAndFreePorts) {
  Folder folder;
  Service service;
  service.status = absl::NotFoundError("none");
  const auto server = Server::Start({.listen = folder.Socket(), .also_listen = {"127.0.0.1:0"}}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_EQ((*server)->addresses().size(), 2u);
  EXPECT_EQ((*server)->address(), folder.Socket());
  EXPECT_THAT((*server)->addresses()[1], ::testing::MatchesRegex("127.0.0.1:[1-9][0-9]*"));
  for (const std::string& address : (*server)->addresses()) {
    EXPECT_EQ(CallListModels(address).code(), absl::StatusCode::kNotFound) << address;
    EXPECT_EQ(HealthOf(address), 1);  // no health object: always serving
    service.entered = {};
  }
}

TEST(Server, StatusesTravelWithMessageAndPayloads) {
  Service service;
  const auto server = Server::Start({.listen = "127.0.0.1:0"}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  for (int code = 1; code <= 16; ++code) {
    service.entered = {};
    service.status = absl::Status(static_cast<absl::StatusCode>(code), "what é happened");
    service.status.SetPayload("a/url", absl::Cord(std::string("\0\xff bytes", 8)));
    service.status.SetPayload("b", absl::Cord());
    EXPECT_EQ(CallListModels((*server)->address()), service.status) << code;
  }
  service.entered = {};
  service.status = absl::OkStatus();
  EXPECT_TRUE(CallListModels((*server)->address()).ok());
}

TEST(Server, BadAddressesAreNamed) {
  Service service;
  for (const std::string& address : {std::string(), std::string("unix:"), std::string("nonsense"), std::string(":1"), std::string("x:"),
      std::string("x:70000"), std::string("x:-1"), std::string("x:1y"), "unix:/" + std::string(200, 'x')}) {
    const absl::Status status = Server::Start({.listen = address}, {&service}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
  }
  EXPECT_EQ(Server::Start({.listen = "unix:/no/such/folder/s.sock"}, {&service}).status().code(), absl::StatusCode::kUnavailable);
}

TEST(Server, ABusyAddressIsNamedAndTheFirstServerStays) {
  Service first_service, second_service;
  const auto first = Server::Start({.listen = "127.0.0.1:0"}, {&first_service});
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status status = Server::Start({.listen = (*first)->address()}, {&second_service}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr((*first)->address()));
  EXPECT_EQ(HealthOf((*first)->address()), 1);
}

TEST(Server, HealthFollowsTheProcess) {
  Service service;
  Health health;
  auto server = Server::Start({.listen = "127.0.0.1:0", .health = &health}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->address();
  EXPECT_EQ(HealthOf(address), 2);
  health.Set(HealthState::kReady);
  EXPECT_EQ(HealthOf(address), 1);
  health.Set(HealthState::kDraining);
  EXPECT_EQ(HealthOf(address), 2);
  server->reset();
  health.Set(HealthState::kStopped);  // a Health outlives its server
}

TEST(Server, StopLetsRunningCallsFinish) {
  Service service;
  std::promise<void> open;
  service.gate = open.get_future().share();
  service.status = absl::AlreadyExistsError("finished");
  auto server = Server::Start({.listen = "127.0.0.1:0"}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->address();
  auto call = std::async(std::launch::async, [&] { return CallListModels(address); });
  service.entered.get_future().wait();
  std::thread stopper([&] { (*server)->Stop(seconds(60)); });
  open.set_value();
  stopper.join();
  EXPECT_EQ(call.get(), service.status);
  EXPECT_EQ(CallListModels(address, seconds(1)).code(), absl::StatusCode::kUnavailable);
  (*server)->Stop(milliseconds(0));  // again is harmless
}

TEST(Server, StopCancelsWhatOutlivesTheGrace) {
  Service service;
  std::promise<void> never;
  service.gate = never.get_future().share();
  auto server = Server::Start({.listen = "127.0.0.1:0"}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->address();
  auto call = std::async(std::launch::async, [&] { return CallListModels(address); });
  service.entered.get_future().wait();
  (*server)->Stop(milliseconds(20));
  EXPECT_FALSE(call.get().ok());
}

TEST(Server, MessagesAboveTheCapAreRefused) {
  Service service;
  const auto server = Server::Start({.listen = "127.0.0.1:0", .message_bytes_max = 1 << 20}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto send = [&](const ChannelOptions& options, size_t bytes) {
    const auto stub = v1::Inference::NewStub(MakeChannel((*server)->address(), options));
    grpc::ClientContext context;
    SetDeadline(context, seconds(60));
    v1::TokenizeRequest request;
    request.set_text(std::string(bytes, 'x'));
    v1::TokenizeResponse response;
    return FromGrpc(stub->Tokenize(&context, request, &response)).code();
  };
  EXPECT_EQ(send({}, 1000), absl::StatusCode::kUnimplemented);           // reaches the service
  EXPECT_EQ(send({}, 2 << 20), absl::StatusCode::kResourceExhausted);   // the server's cap
  EXPECT_EQ(send({.message_bytes_max = 100}, 1000), absl::StatusCode::kResourceExhausted);  // the client's own
}

TEST(Channel, AnAbsentPeerIsUnavailableAndComesBack) {
  Folder folder;
  const auto stub = v1::Inference::NewStub(MakeChannel(folder.Socket()));
  {
    grpc::ClientContext context;
    SetDeadline(context, seconds(5));
    v1::ListModelsResponse response;
    EXPECT_EQ(FromGrpc(stub->ListModels(&context, {}, &response)).code(), absl::StatusCode::kUnavailable);
  }
  Service service;
  const auto server = Server::Start({.listen = folder.Socket()}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  SetDeadline(context, seconds(60));
  v1::ListModelsResponse response;
  EXPECT_TRUE(stub->ListModels(&context, {}, &response).ok());
}

TEST(Channel, DeadlinesEndACall) {
  Service service;
  std::promise<void> never;
  service.gate = never.get_future().share();
  const auto server = Server::Start({.listen = "127.0.0.1:0"}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = v1::Inference::NewStub(MakeChannel((*server)->address()));
  grpc::ClientContext context;
  SetDeadline(context, milliseconds(50));
  v1::ListModelsResponse response;
  EXPECT_EQ(FromGrpc(stub->ListModels(&context, {}, &response)).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(GrpcStatus, DetailsThatAreNotOursAreLeftOut) {
  const auto payloads = [](const std::string& details) {
    int count = 0;
    FromGrpc(grpc::Status(grpc::StatusCode::INTERNAL, "m", details)).ForEachPayload([&](absl::string_view, const absl::Cord&) { ++count; });
    return count;
  };
  EXPECT_EQ(payloads(""), 0);
  EXPECT_EQ(payloads("abc"), 0);
  EXPECT_EQ(payloads(std::string("\xff\xff\xff\xff", 4)), 0);
  EXPECT_EQ(payloads(std::string("\x01\0\0\0u", 5)), 0);            // a name without a value
  EXPECT_EQ(payloads(std::string("\x01\0\0\0u\x01\0\0\0v", 10)), 1);
  EXPECT_EQ(payloads(std::string("\x01\0\0\0u\x01\0\0\0v\x09", 11)), 1);
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
}

}  // namespace
}  // namespace phalanx::services
