// services/admin_http.h: the one side port of a process: GET /metrics, /healthz and /readyz over HTTP.
// Refuses to know: what the metrics mean. Thread: Start and the destructor from main; answers come on its own threads.
// Neighbours: metrics.h and health.h. It never waits for the work the process does.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "services/health.h"
#include "services/status.h"

struct mg_context;

namespace phalanx::services {

struct AdminOptions {
  std::string listen;                         // HOST:PORT; port 0 = any free one
  std::function<std::string()> metrics_text;  // called for each GET /metrics, from any thread
  const Health* health = nullptr;             // must outlive the server
};

class AdminServer {
 public:
  // Errors: kUnavailable, naming the address, if it cannot be bound.
  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(AdminOptions options);
  ~AdminServer();

  int port() const { return port_; }

 private:
  explicit AdminServer(AdminOptions options) : options_(std::move(options)) {}
  const AdminOptions options_;
  mg_context* context_ = nullptr;
  int port_ = 0;

  friend struct AdminHandlers;
};

}  // namespace phalanx::services
