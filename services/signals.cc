#include "services/signals.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "services/check.h"

namespace phalanx::services {
namespace {

int g_pipe[2] = {-1, -1};
std::atomic<int> g_count{0};

// Async-signal-safe: an atomic and a write. The byte is never read, so the pipe stays readable.
void OnSignal(int) {
  const int saved = errno;
  g_count.fetch_add(1);
  [[maybe_unused]] const ssize_t written = write(g_pipe[1], "s", 1);
  errno = saved;
}

}  // namespace

StopSignal::StopSignal() {
  PHX_CHECK(pipe2(g_pipe, O_CLOEXEC | O_NONBLOCK) == 0);
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  PHX_CHECK(sigaction(SIGINT, &action, nullptr) == 0);
  PHX_CHECK(sigaction(SIGTERM, &action, nullptr) == 0);
  signal(SIGPIPE, SIG_IGN);
}

StopSignal& StopSignal::Install() {
  static StopSignal signal;
  return signal;
}

void StopSignal::Wait() {
  while (!WaitFor(std::chrono::hours(24))) {
  }
}

bool StopSignal::WaitFor(std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (count() == 0) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    if (left <= 0) return false;
    struct pollfd item = {g_pipe[0], POLLIN, 0};
    poll(&item, 1, static_cast<int>(left));
  }
  return true;
}

int StopSignal::count() const { return g_count.load(); }
int StopSignal::fd() const { return g_pipe[0]; }

}  // namespace phalanx::services
