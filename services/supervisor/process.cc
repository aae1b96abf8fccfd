#include "services/supervisor/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "services/check.h"

extern char** environ;

namespace phalanx::services::supervisor {
namespace {

constexpr size_t kLineBytesMax = 64 << 10;
constexpr int kReadsMax = 64;  // of 4 KiB at a time: more than a pipe holds, so that an ended child is heard out

void Close(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

// Both ends of a pipe that no exec inherits.
struct Pipe {
  int read = -1;
  int write = -1;
  bool Open() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return false;
    read = ends[0];
    write = ends[1];
    return true;
  }
  ~Pipe() {
    Close(read);
    Close(write);
  }
};

std::vector<std::string> Environment(const ProcessSpec& spec) {
  std::vector<std::string> out;
  for (char** item = environ; *item != nullptr; ++item) {
    const std::string_view text(*item);
    const std::string_view name = text.substr(0, text.find('='));
    const bool set = std::any_of(spec.set_env.begin(), spec.set_env.end(), [&](const auto& pair) { return pair.first == name; });
    const bool unset = std::find(spec.unset_env.begin(), spec.unset_env.end(), name) != spec.unset_env.end();
    if (!set && !unset) out.emplace_back(text);
  }
  for (const auto& [name, value] : spec.set_env) out.push_back(absl::StrCat(name, "=", value));
  return out;
}

std::vector<char*> Pointers(std::vector<std::string>& words) {
  std::vector<char*> out;
  for (std::string& word : words) out.push_back(word.data());
  out.push_back(nullptr);
  return out;
}

// Between fork and exec: nothing but system calls. Never returns; the reason goes through `error_fd`.
[[noreturn]] void BecomeChild(const char* program, char* const* argv, char* const* envp, pid_t parent, int out_fd, int error_fd) {
  setpgid(0, 0);
  const int null = open("/dev/null", O_RDONLY);
  struct sigaction standard = {};
  standard.sa_handler = SIG_DFL;
  for (int number : {SIGINT, SIGTERM, SIGPIPE, SIGHUP, SIGCHLD}) sigaction(number, &standard, nullptr);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  // If the parent died before prctl, nobody would ever tell this process.
  const bool ok = null >= 0 && dup2(null, STDIN_FILENO) >= 0 && dup2(out_fd, STDOUT_FILENO) >= 0 &&
                  prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent;
  if (ok) execve(program, argv, envp);
  const int reason = errno;
  [[maybe_unused]] const ssize_t written = write(error_fd, &reason, sizeof(reason));
  _exit(127);
}

// What exec said; 0 if it went well (its end of the pipe closed by itself).
int ReadReason(int fd) {
  int reason = 0;
  ssize_t got = 0;
  do {
    got = read(fd, &reason, sizeof(reason));
  } while (got < 0 && errno == EINTR);
  return got == sizeof(reason) ? reason : 0;
}

absl::Status CannotStart(const ProcessSpec& spec, int reason) {
  const std::string text = absl::StrCat("cannot start ", spec.name, ": '", spec.program, "': ", std::strerror(reason));
  if (reason == ENOENT || reason == ENOTDIR) return absl::NotFoundError(text);
  if (reason == EACCES || reason == ENOEXEC) return absl::PermissionDeniedError(text);
  return absl::ResourceExhaustedError(text);
}

}  // namespace

std::string ExitStatus::Text() const {
  if (signal != 0) return absl::StrCat("was killed by signal ", signal, " (", strsignal(signal), ")");
  return absl::StrCat("ended with exit status ", code);
}

absl::StatusOr<Process> Process::Spawn(const ProcessSpec& spec) {
  std::vector<std::string> words = spec.args;
  words.insert(words.begin(), spec.program);
  std::vector<std::string> environment = Environment(spec);
  const std::vector<char*> argv = Pointers(words);
  const std::vector<char*> envp = Pointers(environment);
  Pipe out;
  Pipe error;
  if (!out.Open() || !error.Open()) return CannotStart(spec, errno);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return CannotStart(spec, errno);
  if (pid == 0) BecomeChild(spec.program.c_str(), argv.data(), envp.data(), parent, out.write, error.write);
  Close(error.write);
  const int exit_fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));  // close-on-exec by itself
  const int no_fd = exit_fd < 0 ? errno : 0;
  const int reason = ReadReason(error.read);
  if (reason != 0 || exit_fd < 0) {
    if (exit_fd >= 0) close(exit_fd);
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return CannotStart(spec, reason != 0 ? reason : no_fd);
  }
  fcntl(out.read, F_SETFL, O_NONBLOCK);
  return Process(pid, exit_fd, std::exchange(out.read, -1));
}

Process::Process(Process&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      exit_fd_(std::exchange(other.exit_fd_, -1)),
      out_fd_(std::exchange(other.out_fd_, -1)),
      partial_(std::move(other.partial_)) {}

Process& Process::operator=(Process&& other) noexcept {
  if (this == &other) return *this;
  End();
  pid_ = std::exchange(other.pid_, -1);
  exit_fd_ = std::exchange(other.exit_fd_, -1);
  out_fd_ = std::exchange(other.out_fd_, -1);
  partial_ = std::move(other.partial_);
  return *this;
}

Process::~Process() { End(); }

void Process::End() {
  if (pid_ > 0) {
    Signal(SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  pid_ = -1;
  Close(exit_fd_);
  Close(out_fd_);
}

void Process::Signal(int signal) const {
  if (pid_ > 0) kill(pid_, signal);
}

std::vector<std::string> Process::ReadLines() {
  std::vector<std::string> lines;
  char buffer[4096];
  for (int reads = 0; out_fd_ >= 0 && reads < kReadsMax; ++reads) {
    const ssize_t got = read(out_fd_, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) break;
    if (got <= 0) {
      Close(out_fd_);
      if (!partial_.empty()) lines.push_back(std::exchange(partial_, {}));
      break;
    }
    partial_.append(buffer, static_cast<size_t>(got));
    for (size_t end; (end = partial_.find('\n')) != std::string::npos;) {
      lines.push_back(partial_.substr(0, end));
      partial_.erase(0, end + 1);
    }
    if (partial_.size() > kLineBytesMax) lines.push_back(std::exchange(partial_, {}));
  }
  return lines;
}

std::optional<ExitStatus> Process::Reap() {
  int status = 0;
  pid_t got = 0;
  do {
    got = waitpid(pid_, &status, WNOHANG);
  } while (got < 0 && errno == EINTR);
  if (got == 0) return std::nullopt;
  PHX_CHECK(got == pid_);
  pid_ = -1;
  Close(exit_fd_);
  if (WIFSIGNALED(status)) return ExitStatus{0, WTERMSIG(status)};
  return ExitStatus{WEXITSTATUS(status), 0};
}

}  // namespace phalanx::services::supervisor
