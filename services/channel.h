// services/channel.h: client channels with keepalive, quick reconnects and message caps, and deadlines for calls.
// Refuses to know: what is called. Thread: any.
// Neighbours: server.h is the other end and allows these pings. A stopped peer is noticed within ping_every + ping_timeout.
#pragma once

#include <chrono>
#include <memory>
#include <string>

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace phalanx::services {

struct ChannelOptions {
  int message_bytes_max = 64 << 20;              // of one message, each way
  std::chrono::milliseconds ping_every{1000};
  std::chrono::milliseconds ping_timeout{1000};
  std::chrono::milliseconds reconnect_min{100};  // first wait after a failed connect; grows
  std::chrono::milliseconds reconnect_max{2000};
};

// A channel to "unix:PATH" or "HOST:PORT". Does not connect or block; never shares its connection with another channel.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target, const ChannelOptions& options = {});

// Ends the call `limit` from now.
void SetDeadline(grpc::ClientContext& context, std::chrono::milliseconds limit);

}  // namespace phalanx::services
