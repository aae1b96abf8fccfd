// cli/probe.h: asks a gateway for its health the way a client would.
// Refuses to know: what makes it healthy. Thread: any; blocks for at most about a second.
// Neighbours: serve.cc, before it says that the server is ready.
#pragma once

#include <string>

namespace phalanx::cli {

enum class Scheme { kHttp, kHttps };

// Where this host reaches an address that was listened on: "[::]:8000" and "0.0.0.0:8000" -> "127.0.0.1:8000"; others stay.
std::string Reachable(const std::string& address);

// True if GET /health answers 200. A certificate is not checked: the answer comes from our own child and carries nothing.
bool IsHealthy(const std::string& address, Scheme scheme);

}  // namespace phalanx::cli
