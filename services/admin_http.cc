#include "services/admin_http.h"

#include <civetweb.h>

#include <cstring>
#include <mutex>

#include "absl/strings/str_cat.h"

namespace phalanx::services {

struct AdminHandlers {
  static int Reply(mg_connection* connection, int code, const char* type, const std::string& body) {
    const mg_request_info* request = mg_get_request_info(connection);
    const bool readable = std::strcmp(request->request_method, "GET") == 0 || std::strcmp(request->request_method, "HEAD") == 0;
    if (!readable) {
      mg_printf(connection, "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\nAllow: GET, HEAD\r\n\r\n");
      return 405;
    }
    mg_printf(connection, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", code,
              code == 200 ? "OK" : "Service Unavailable", type, body.size());
    if (std::strcmp(request->request_method, "HEAD") != 0) mg_write(connection, body.data(), body.size());
    return code;
  }

  static int Metrics(mg_connection* connection, void* self) {
    const AdminOptions& options = static_cast<AdminServer*>(self)->options_;
    return Reply(connection, 200, "text/plain; version=0.0.4; charset=utf-8", options.metrics_text ? options.metrics_text() : "");
  }

  // Alive: anything but a failed process. A full queue or a long step does not make it dead.
  static int Alive(mg_connection* connection, void* self) {
    const Health* health = static_cast<AdminServer*>(self)->options_.health;
    const HealthState state = health == nullptr ? HealthState::kReady : health->state();
    return Reply(connection, state == HealthState::kFailed ? 503 : 200, "text/plain", absl::StrCat(std::string(HealthStateName(state)), "\n"));
  }

  static int Ready(mg_connection* connection, void* self) {
    const Health* health = static_cast<AdminServer*>(self)->options_.health;
    const HealthState state = health == nullptr ? HealthState::kReady : health->state();
    return Reply(connection, state == HealthState::kReady ? 200 : 503, "text/plain", absl::StrCat(std::string(HealthStateName(state)), "\n"));
  }
};

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(AdminOptions options) {
  static std::once_flag once;
  std::call_once(once, [] { mg_init_library(0); });
  std::unique_ptr<AdminServer> server(new AdminServer(std::move(options)));
  const std::string& listen = server->options_.listen;
  const char* settings[] = {"listening_ports", listen.c_str(), "num_threads", "2", "request_timeout_ms", "5000", nullptr};
  mg_callbacks callbacks = {};
  callbacks.log_message = [](const mg_connection*, const char*) { return 1; };  // its own text on stderr is not wanted
  server->context_ = mg_start(&callbacks, nullptr, settings);
  if (server->context_ == nullptr) return absl::UnavailableError(absl::StrCat("cannot listen on ", listen, ": the address is in use or not allowed"));
  mg_server_port bound[4] = {};
  if (mg_get_server_ports(server->context_, 4, bound) > 0) server->port_ = bound[0].port;
  mg_set_request_handler(server->context_, "/metrics$", AdminHandlers::Metrics, server.get());
  mg_set_request_handler(server->context_, "/healthz$", AdminHandlers::Alive, server.get());
  mg_set_request_handler(server->context_, "/readyz$", AdminHandlers::Ready, server.get());
  return server;
}

AdminServer::~AdminServer() {
  if (context_ != nullptr) mg_stop(context_);
}

}  // namespace phalanx::services
