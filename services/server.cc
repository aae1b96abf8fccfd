#include "services/server.h"

#include <mutex>

#include <grpc/grpc.h>
#include <grpcpp/ext/health_check_service_server_builder_option.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace phalanx::services {
namespace {

absl::Status CheckAddress(const std::string& address) {
  if (absl::StartsWith(address, "unix:")) {
    if (address.size() == 5) return absl::InvalidArgumentError("a unix address needs a path after 'unix:'");
    // sockaddr_un holds 107 bytes; gRPC's own refusal does not say so.
    if (address.size() - 5 > 107) return absl::InvalidArgumentError(absl::StrCat("the socket path '", address.substr(5), "' is longer than 107 bytes"));
    return absl::OkStatus();
  }
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("'", address, "' is not unix:PATH or HOST:PORT"));
  }
  return absl::OkStatus();
}

std::string BoundAddress(const std::string& asked, int port) {
  if (absl::StartsWith(asked, "unix:")) return asked;
  return absl::StrCat(asked.substr(0, asked.rfind(':')), ":", port);
}

void ApplyLimits(const ServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.message_bytes_max);
  builder.SetMaxSendMessageSize(options.message_bytes_max);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.streams_max);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second server on the port must fail, not share
  // Clients on the private network ping every second, with no call too; by default they would be sent away for it.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, static_cast<int>(options.ping_min.count()));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, const std::vector<grpc::Service*>& services) {
  static std::once_flag library_once;
  std::call_once(library_once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc_init();  // for the life of the process: the library's own end waits up to 10 s if a write was stuck shortly before
  });

  std::vector<std::string> asked = {options.listen};
  asked.insert(asked.end(), options.also_listen.begin(), options.also_listen.end());
  grpc::ServerBuilder builder;
  std::vector<int> ports(asked.size(), 0);
  for (size_t i = 0; i < asked.size(); ++i) {
    PHX_RETURN_IF_ERROR(CheckAddress(asked[i]));
    builder.AddListeningPort(asked[i], grpc::InsecureServerCredentials(), &ports[i]);
  }
  ApplyLimits(options, builder);
  for (grpc::Service* service : services) builder.RegisterService(service);

  std::unique_ptr<Server> out(new Server());
  out->server_ = builder.BuildAndStart();
  for (size_t i = 0; i < asked.size(); ++i) {
    if (out->server_ == nullptr || ports[i] == 0) return absl::UnavailableError(absl::StrCat("cannot listen on ", asked[i], ": the address is in use or not allowed"));
    out->addresses_.push_back(BoundAddress(asked[i], ports[i]));
  }
  // The service is told from the Health object; it holds no pointer back into this server's callers.
  grpc::HealthCheckServiceInterface* service = out->server_->GetHealthCheckService();
  if (service != nullptr) service->SetServingStatus(options.health == nullptr);
  if (service != nullptr && options.health != nullptr) {
    options.health->Watch([service, alive = out->alive_](HealthState state) {
      std::lock_guard lock(alive->mutex);
      if (alive->value) service->SetServingStatus(state == HealthState::kReady);
    });
  }
  return out;
}

Server::Server() = default;
Server::~Server() { Stop(std::chrono::milliseconds(0)); }

void Server::Stop(std::chrono::milliseconds grace) {
  {
    std::lock_guard lock(alive_->mutex);
    alive_->value = false;
  }
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now() + grace);
  server_->Wait();
  server_.reset();
}

}  // namespace phalanx::services
