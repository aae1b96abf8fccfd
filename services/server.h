// services/server.h: the life of a gRPC server: listen, answer health, drain, stop.
// Refuses to know: what is served. Thread: Start and Stop from main; the rest from any thread.
// Neighbours: health.h says what grpc.health.v1 answers; channel.h is the other end. Private networks only: gRPC 1.51 stops
// accepting for good once file descriptors run out, so a public port belongs to another program.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "services/health.h"
#include "services/status.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace phalanx::services {

struct ServerOptions {
  std::string listen;                          // "unix:PATH" or "HOST:PORT"; port 0 = any free one
  std::vector<std::string> also_listen;        // further addresses, same forms
  int message_bytes_max = 64 << 20;            // of one message, each way
  int streams_max = 4096;                      // of one connection
  std::chrono::milliseconds ping_min{200};     // fastest ping a client may send without being sent away
  Health* health = nullptr;                    // what the health service answers; must outlive the server; null = always serving
};

class Server {
 public:
  // Starts to serve `services`, which must outlive the server. Errors: kInvalidArgument for a malformed address,
  // kUnavailable (naming it) for one that cannot be bound.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options, const std::vector<grpc::Service*>& services);
  ~Server();

  // What `listen` became, with the real port, in the order of ServerOptions::listen and also_listen.
  const std::vector<std::string>& addresses() const { return addresses_; }
  const std::string& address() const { return addresses_.front(); }

  // Takes no new calls, lets running ones finish for `grace`, then cancels them, and returns when all are over.
  void Stop(std::chrono::milliseconds grace);

 private:
  // Whether the health service may still be told; a Health outlives its server.
  struct Alive {
    std::mutex mutex;
    bool value = true;
  };
  Server();
  std::shared_ptr<Alive> alive_ = std::make_shared<Alive>();
  std::unique_ptr<grpc::Server> server_;
  std::vector<std::string> addresses_;
};

}  // namespace phalanx::services
