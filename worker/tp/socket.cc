#include "worker/tp/socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace phalanx::worker::tp {
namespace {

Endpoint FromSockaddr(const sockaddr* address, socklen_t length) {
  Endpoint out;
  std::memcpy(&out.address, address, length);
  out.length = length;
  return out;
}

void SetPort(Endpoint& endpoint, int port) {
  const auto big = htons(static_cast<uint16_t>(port));
  if (endpoint.address.ss_family == AF_INET) reinterpret_cast<sockaddr_in&>(endpoint.address).sin_port = big;
  if (endpoint.address.ss_family == AF_INET6) reinterpret_cast<sockaddr_in6&>(endpoint.address).sin6_port = big;
}

const sockaddr* Raw(const Endpoint& endpoint) { return reinterpret_cast<const sockaddr*>(&endpoint.address); }

void NoDelay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

absl::Status Unreachable(const char* what, const Endpoint& endpoint, int reason) {
  return absl::UnavailableError(absl::StrCat("cannot ", what, " ", endpoint.Text(), ": ", std::strerror(reason)));
}

}  // namespace

void Socket::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

std::string Endpoint::Host() const {
  char text[INET6_ADDRSTRLEN] = "?";
  if (address.ss_family == AF_INET) inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text, sizeof(text));
  if (address.ss_family == AF_INET6) inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text, sizeof(text));
  return text;
}

int Endpoint::Port() const {
  if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  return 0;
}

std::string Endpoint::Text() const {
  return address.ss_family == AF_INET6 ? absl::StrCat("[", Host(), "]:", Port()) : absl::StrCat(Host(), ":", Port());
}

bool Endpoint::IsLoopback() const {
  if (address.ss_family == AF_INET) return (ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr) >> 24) == 127;
  return address.ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
}

bool Endpoint::IsAny() const {
  if (address.ss_family == AF_INET) return reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr == 0;
  return address.ss_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
}

absl::StatusOr<Endpoint> Resolve(const std::string& host, int port) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int reason = getaddrinfo(host.c_str(), nullptr, &hints, &list);
  if (reason != 0) return absl::NotFoundError(absl::StrCat("cannot resolve '", host, "': ", gai_strerror(reason)));
  Endpoint out = FromSockaddr(list->ai_addr, list->ai_addrlen);
  freeaddrinfo(list);
  SetPort(out, port);
  return out;
}

absl::StatusOr<Endpoint> InterfaceEndpoint(const std::string& interface, int port) {
  Endpoint out;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return absl::NotFoundError(absl::StrCat("cannot list the interfaces: ", std::strerror(errno)));
  for (const int family : {AF_INET, AF_INET6}) {
    for (const ifaddrs* entry = list; entry != nullptr && out.length == 0; entry = entry->ifa_next) {
      if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != family || interface != entry->ifa_name) continue;
      out = FromSockaddr(entry->ifa_addr, family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
    }
  }
  freeifaddrs(list);
  if (out.length == 0) {
    addrinfo hints = {};
    hints.ai_flags = AI_NUMERICHOST;
    addrinfo* numeric = nullptr;
    if (getaddrinfo(interface.c_str(), nullptr, &hints, &numeric) != 0) {
      return absl::NotFoundError(absl::StrCat("'", interface, "' is neither an interface with an address nor an address"));
    }
    out = FromSockaddr(numeric->ai_addr, numeric->ai_addrlen);
    freeaddrinfo(numeric);
  }
  SetPort(out, port);
  return out;
}

Endpoint LocalEndpoint(const Socket& socket) {
  Endpoint out;
  out.length = sizeof(out.address);
  if (getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&out.address), &out.length) != 0) return {};
  return out;
}

Endpoint RemoteEndpoint(const Socket& socket) {
  Endpoint out;
  out.length = sizeof(out.address);
  if (getpeername(socket.fd(), reinterpret_cast<sockaddr*>(&out.address), &out.length) != 0) return {};
  return out;
}

absl::StatusOr<Socket> Listen(const Endpoint& endpoint) {
  Socket out(socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  // A group that is started again must get its port back while old connections still linger.
  if (!out.open() || setsockopt(out.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      bind(out.fd(), Raw(endpoint), endpoint.length) != 0 || listen(out.fd(), 128) != 0) {
    return Unreachable("listen on", endpoint, errno);
  }
  return out;
}

Socket Accept(const Socket& listener) {
  Socket out(accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (out.open()) NoDelay(out.fd());
  return out;
}

absl::StatusOr<Socket> Connect(const Endpoint& to, const Endpoint& from, Time deadline) {
  Socket out(socket(to.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!out.open()) return Unreachable("reach", to, errno);
  NoDelay(out.fd());
  if (from.length != 0 && bind(out.fd(), Raw(from), from.length) != 0) return Unreachable("connect from", from, errno);
  if (connect(out.fd(), Raw(to), to.length) == 0) return out;
  if (errno != EINPROGRESS) return Unreachable("reach", to, errno);
  pollfd entry = {out.fd(), POLLOUT, 0};
  if (PollUntil({&entry, 1}, deadline) == 0) return Unreachable("reach", to, ETIMEDOUT);
  int reason = 0;
  socklen_t size = sizeof(reason);
  if (getsockopt(out.fd(), SOL_SOCKET, SO_ERROR, &reason, &size) != 0) reason = errno;
  if (reason != 0) return Unreachable("reach", to, reason);
  // On loopback a socket that looks for a port where nobody listens may be given that very port, and then finds itself.
  if (LocalEndpoint(out).Text() == RemoteEndpoint(out).Text()) return Unreachable("reach", to, ECONNREFUSED);
  return out;
}

int PollUntil(std::span<pollfd> entries, Time deadline) {
  while (true) {
    const auto left = std::max<std::chrono::nanoseconds>(deadline - Now(), std::chrono::nanoseconds(0));
    const auto whole = std::chrono::duration_cast<std::chrono::seconds>(left);
    const timespec limit = {static_cast<time_t>(whole.count()), static_cast<long>((left - whole).count())};
    const int ready = ppoll(entries.data(), entries.size(), &limit, nullptr);
    if (ready >= 0) return ready;
    if (errno != EINTR) return 0;
  }
}

Transfer ReadSome(int fd, char* to, size_t size, size_t* count) {
  *count = 0;
  ssize_t got = 0;
  do {
    got = recv(fd, to, size, MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  if (got > 0) {
    *count = static_cast<size_t>(got);
    return Transfer::kDone;
  }
  return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? Transfer::kWouldBlock : Transfer::kClosed;
}

Transfer WriteSome(int fd, std::span<const iovec> pieces, size_t* count) {
  *count = 0;
  msghdr message = {};
  message.msg_iov = const_cast<iovec*>(pieces.data());
  message.msg_iovlen = pieces.size();
  ssize_t sent = 0;
  do {
    sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) {
    *count = static_cast<size_t>(sent);
    return Transfer::kDone;
  }
  return errno == EAGAIN || errno == EWOULDBLOCK ? Transfer::kWouldBlock : Transfer::kClosed;
}

}  // namespace phalanx::worker::tp
