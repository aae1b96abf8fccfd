// services/check.h: how our own bugs die: loudly, with file, line and the broken condition.
// Refuses to know: what was being done. Thread: any. Neighbours: every room. The world's failures are absl::Status instead.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace phalanx::services {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::fflush(stderr);
  std::abort();
}

}  // namespace phalanx::services

#define PHX_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::phalanx::services::CheckFailed(__FILE__, __LINE__, #condition))
