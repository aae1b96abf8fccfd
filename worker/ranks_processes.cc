#include "worker/ranks_processes.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/check.h"
#include "services/log.h"
#include "services/ready.h"

namespace phalanx::worker {

using services::supervisor::ExitStatus;
using services::supervisor::Process;
using services::supervisor::ProcessSpec;

RankProcesses::RankProcesses(std::function<void(const std::string&)> lost)
    : lost_(std::move(lost)), wake_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  PHX_CHECK(wake_fd_ >= 0);
}

absl::StatusOr<std::unique_ptr<RankProcesses>> RankProcesses::Start(std::vector<ProcessSpec> specs,
                                                                    std::function<void(const std::string&)> lost) {
  std::unique_ptr<RankProcesses> out(new RankProcesses(std::move(lost)));
  for (ProcessSpec& spec : specs) {
    PHX_ASSIGN_OR_RETURN(Process process, Process::Spawn(spec));
    out->children_.push_back({std::move(spec), std::move(process), {}, {}});
  }
  out->thread_ = std::thread([raw = out.get()] { raw->Listen(); });
  return out;
}

RankProcesses::~RankProcesses() {
  ExpectEnd();
  eventfd_write(wake_fd_, 1);
  if (thread_.joinable()) thread_.join();
  close(wake_fd_);
}

std::string RankProcesses::NewsOf(int index, std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  const Child& child = children_[static_cast<size_t>(index)];
  changed_.wait_for(lock, limit, [&] { return child.ended; });
  return child.news;
}

void RankProcesses::ExpectEnd() {
  std::lock_guard lock(mutex_);
  expected_ = true;
}

void RankProcesses::WaitForEnd(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, limit, [this] { return AllEnded(); });
}

bool RankProcesses::AllEnded() const {
  return std::all_of(children_.begin(), children_.end(), [](const Child& child) { return child.ended; });
}

void RankProcesses::Listen() {
  while (true) {
    std::vector<pollfd> items = {{wake_fd_, POLLIN, 0}};
    for (const Child& child : children_) {
      if (child.ended) continue;
      items.push_back({child.process.exit_fd(), POLLIN, 0});
      if (child.process.out_fd() >= 0) items.push_back({child.process.out_fd(), POLLIN, 0});
    }
    poll(items.data(), items.size(), -1);
    if (items[0].revents != 0) return;
    for (Child& child : children_) {
      if (!child.ended) Hear(child);
    }
  }
}

void RankProcesses::Hear(Child& child) {
  const std::optional<ExitStatus> ended = child.process.Reap();
  for (const std::string& line : child.process.ReadLines()) {
    const std::optional<services::ReadyLine> told = services::ParseReadyLine(line);
    if (!told) {
      services::LogInfo("{}: {}", child.spec.name, line);
    } else if (told->kind == services::ReadyLine::Kind::kError) {
      child.error = told->text;
    }
  }
  if (ended) Ended(child, *ended);
}

void RankProcesses::Ended(Child& child, const ExitStatus& status) {
  std::string news = absl::StrCat(child.spec.name, " ", status.Text());
  if (!child.error.empty()) {
    news = absl::StartsWith(child.error, "rank ") ? child.error : absl::StrCat(child.spec.name, ": ", child.error);
  }
  bool lost = false;
  {
    std::lock_guard lock(mutex_);
    child.ended = true;
    child.news = news;
    lost = !expected_ && (status.code != 0 || status.signal != 0);
  }
  changed_.notify_all();
  if (lost) lost_(news);
}

void EndProcess(const absl::Status& why) {
  static std::mutex once;
  once.lock();  // for good
  services::LogError("{}", std::string(why.message()));
  services::PrintFailure(why);
  _exit(1);
}

}  // namespace phalanx::worker
