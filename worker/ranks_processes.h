// worker/ranks_processes.h: the ranks that the first rank of a host has started: heard, watched, ended with it. And a rank's last word.
// Refuses to know: what ranks do, how they meet. Thread: main makes it, and must stay alive (services/supervisor/process.h); it has a
// thread of its own that listens. Neighbours: ranks.h.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "services/status.h"
#include "services/supervisor/process.h"

namespace phalanx::worker {

class RankProcesses {
 public:
  // Starts them all. `lost` is told, on the listening thread, of the first one that ends with anything but exit status 0 before ExpectEnd:
  // "rank 1 was killed by signal 9 (Killed)", or the process' own PHALANX_ERROR sentence. Errors: the supervisor's.
  static absl::StatusOr<std::unique_ptr<RankProcesses>> Start(std::vector<services::supervisor::ProcessSpec> specs,
                                                              std::function<void(const std::string&)> lost);
  ~RankProcesses();  // kills what still runs

  // How a process ended, once it has, within `limit`; "" if it has not.
  std::string NewsOf(int index, std::chrono::milliseconds limit);
  // From now on an end is no loss.
  void ExpectEnd();
  // Until all have ended.
  void WaitForEnd(std::chrono::milliseconds limit);

 private:
  struct Child {
    services::supervisor::ProcessSpec spec;
    services::supervisor::Process process;  // of the thread
    std::string error;                      // of the thread: its PHALANX_ERROR line
    std::string news;                       // guarded by mutex_
    bool ended = false;                     // guarded by mutex_
  };
  explicit RankProcesses(std::function<void(const std::string&)> lost);
  void Listen();
  void Hear(Child& child);
  void Ended(Child& child, const services::supervisor::ExitStatus& status);
  bool AllEnded() const;

  const std::function<void(const std::string&)> lost_;
  std::vector<Child> children_;  // fixed once the thread runs
  int wake_fd_ = -1;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool expected_ = false;  // guarded by mutex_
  std::thread thread_;
};

// The last word of a rank whose group is broken: logs it, tells it to the parent, and ends the process with status 1 at once, whatever its
// other threads are in. What is open is closed by the kernel, which is how routers and other ranks learn of it. Any thread; the first wins.
[[noreturn]] void EndProcess(const absl::Status& why);

}  // namespace phalanx::worker
