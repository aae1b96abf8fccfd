// The admin port over a plain socket: codes, bodies, methods, states.
#include "services/admin_http.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace phalanx::services {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Exchange(int port, const std::string& request) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string out;
  char block[4096];
  ssize_t got;
  while ((got = recv(fd, block, sizeof block, 0)) > 0) out.append(block, got);
  close(fd);
  return out;
}
std::string Ask(int port, const std::string& method, const std::string& path) {
  return Exchange(port, method + " " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
}

TEST(AdminHttp, MetricsAndStates) {
  Health health;
  int asked = 0;
  const auto server = AdminServer::Start({.listen = "127.0.0.1:0", .metrics_text = [&] { ++asked; return std::string("m 1\n"); },
      .health = &health});
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  ASSERT_GT(port, 0);
  std::string reply = Ask(port, "GET", "/metrics");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(reply, HasSubstr("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
  EXPECT_THAT(reply, EndsWith("\r\n\r\nm 1\n"));
  EXPECT_EQ(asked, 1);
  const auto code = [&](const char* path) { return Ask(port, "GET", path).substr(9, 3); };
  EXPECT_EQ(code("/healthz") + code("/readyz"), "200503");  // starting
  health.Set(HealthState::kReady);
  EXPECT_EQ(code("/healthz") + code("/readyz"), "200200");
  EXPECT_THAT(Ask(port, "GET", "/readyz"), EndsWith("ready\n"));
  health.Set(HealthState::kDraining);
  EXPECT_EQ(code("/healthz") + code("/readyz"), "200503");
  health.Set(HealthState::kFailed);
  EXPECT_EQ(code("/healthz") + code("/readyz"), "503503");
  reply = Ask(port, "HEAD", "/healthz");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(reply, EndsWith("\r\n\r\n"));
  EXPECT_THAT(Ask(port, "POST", "/metrics"), StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Ask(port, "GET", "/other"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Ask(port, "GET", "/metrics/../etc/passwd"), StartsWith("HTTP/1.1 404"));
}

TEST(AdminHttp, ABusyPortIsNamed) {
  const auto first = AdminServer::Start({.listen = "127.0.0.1:0"});
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string taken = "127.0.0.1:" + std::to_string((*first)->port());
  const absl::Status status = AdminServer::Start({.listen = taken}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(taken));
  EXPECT_FALSE(AdminServer::Start({.listen = "nonsense"}).ok());
  EXPECT_THAT(Ask((*first)->port(), "GET", "/readyz"), StartsWith("HTTP/1.1 200"));  // no health object: always ready
}

}  // namespace
}  // namespace phalanx::services
