// worker/tp/socket.h: TCP sockets that never block: listen, connect, and waits that end at a deadline.
// Refuses to know: what is sent. Thread: a socket belongs to one thread at a time.
// Neighbours: rendezvous makes the connections, control and monitor use them.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "services/clock.h"
#include "services/status.h"

namespace phalanx::worker::tp {

using services::Time;
using std::chrono::milliseconds;

inline Time Now() { return std::chrono::steady_clock::now(); }

// A descriptor that closes itself.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~Socket() { Close(); }

  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  void Close();

 private:
  int fd_ = -1;
};

// A numeric address with a port.
struct Endpoint {
  sockaddr_storage address = {};
  socklen_t length = 0;

  std::string Host() const;  // "127.0.0.1", "::1"
  int Port() const;
  std::string Text() const;  // "127.0.0.1:7000", "[::1]:7000"
  bool IsLoopback() const;
  bool IsAny() const;        // 0.0.0.0 or ::
};

// A name or number to the first address it stands for. Asks the system's resolver, which has time limits of its own (by default
// some 10 s) and no other. Errors: kNotFound.
absl::StatusOr<Endpoint> Resolve(const std::string& host, int port);
// The address of an interface ("eth0", IPv4 before IPv6) or a numeric address as it stands. Errors: kNotFound.
absl::StatusOr<Endpoint> InterfaceEndpoint(const std::string& interface, int port);
Endpoint LocalEndpoint(const Socket& socket);
Endpoint RemoteEndpoint(const Socket& socket);

// Errors: kUnavailable naming address and reason.
absl::StatusOr<Socket> Listen(const Endpoint& endpoint);
// The next waiting connection, with Nagle's delay off; a closed Socket if there is none.
Socket Accept(const Socket& listener);
// Errors: kUnavailable naming address and reason, also when `deadline` passes first. `from` binds the near end unless its length is 0.
absl::StatusOr<Socket> Connect(const Endpoint& to, const Endpoint& from, Time deadline);

// poll(2) until something happens or `deadline` passes; how many entries have events.
int PollUntil(std::span<pollfd> entries, Time deadline);

// How a read or write that does not wait went.
enum class Transfer { kDone, kWouldBlock, kClosed };

// Reads at most `size` bytes; `*count` says how many came.
Transfer ReadSome(int fd, char* to, size_t size, size_t* count);
// Writes what the socket takes of `pieces` in order; `*count` says how many bytes it took.
Transfer WriteSome(int fd, std::span<const iovec> pieces, size_t* count);

}  // namespace phalanx::worker::tp
