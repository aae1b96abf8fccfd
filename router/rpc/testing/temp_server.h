// router/rpc/testing/temp_server.h: services on a unix socket in a folder of their own, and a channel to them.
// Refuses to know: which services. Thread: one. Neighbours: the tests of this room.
#pragma once

#include <grpcpp/grpcpp.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "services/channel.h"
#include "services/check.h"
#include "services/server.h"

namespace phalanx::router::rpc::testing {

class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "phalanx-XXXXXX").string();
    PHX_CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class TempServer {
 public:
  explicit TempServer(std::vector<grpc::Service*> services) : services_(std::move(services)) { Start(); }

  void Start() {
    auto started = services::Server::Start({.listen = address()}, services_);
    PHX_CHECK(started.ok());
    server_ = *std::move(started);
  }
  void Stop(std::chrono::milliseconds grace = std::chrono::milliseconds(0)) {
    if (server_ != nullptr) server_->Stop(grace);
    server_.reset();
  }
  ~TempServer() { Stop(); }

  std::string address() const { return "unix:" + dir_.path() + "/socket"; }
  std::shared_ptr<grpc::Channel> channel() const { return services::MakeChannel(address()); }

 private:
  TempDir dir_;
  const std::vector<grpc::Service*> services_;
  std::unique_ptr<services::Server> server_;
};

}  // namespace phalanx::router::rpc::testing
