// services/supervisor/process.h: one child process: started, heard, signalled, reaped; it never outlives the thread that started it.
// Refuses to know: what the program is, when it should run. Thread: one owner; the thread that calls Spawn must stay alive, because
// the kernel kills the child when that thread ends (also when it is killed itself).
// Neighbours: group.h. The child's standard output is a pipe to here, its standard error is ours, its standard input is empty, and it
// has its own process group: a Ctrl-C on the terminal reaches only the one who decides the order of the stop.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "services/status.h"

namespace phalanx::services::supervisor {

struct ProcessSpec {
  std::string name;                                         // for log lines and errors
  std::string program;                                      // path of the file
  std::vector<std::string> args;                            // without the program's own name
  std::vector<std::pair<std::string, std::string>> set_env;  // added to our environment
  std::vector<std::string> unset_env;                       // left out of it
};

struct ExitStatus {
  int code = 0;    // when signal is 0
  int signal = 0;  // what killed it
  std::string Text() const;  // "ended with exit status 1", "was killed by signal 9 (Killed)"
};

class Process {
 public:
  // Errors: kNotFound or kPermissionDenied naming the file, kResourceExhausted when the system has no room for one more process.
  static absl::StatusOr<Process> Spawn(const ProcessSpec& spec);
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();  // kills and reaps what still runs

  pid_t pid() const { return pid_; }
  int exit_fd() const { return exit_fd_; }  // readable when it has ended; for poll(2)
  int out_fd() const { return out_fd_; }    // its standard output; -1 once closed

  void Signal(int signal) const;
  // Whole lines of its standard output, without waiting. The last one may lack its newline if the output ended there. A line longer
  // than 64 KiB comes in pieces.
  std::vector<std::string> ReadLines();
  // Reaps it if it has ended. Its last lines stay readable. After that only ReadLines may be called.
  std::optional<ExitStatus> Reap();

 private:
  Process(pid_t pid, int exit_fd, int out_fd) : pid_(pid), exit_fd_(exit_fd), out_fd_(out_fd) {}
  void End();

  pid_t pid_ = -1;
  int exit_fd_ = -1;
  int out_fd_ = -1;
  std::string partial_;
};

}  // namespace phalanx::services::supervisor
