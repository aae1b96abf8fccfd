#include "services/supervisor/group.h"

#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/ready.h"

namespace phalanx::services::supervisor {
namespace {

std::vector<ChildPolicy> Policies(const std::vector<ChildSpec>& children) {
  std::vector<ChildPolicy> out;
  for (const ChildSpec& child : children) out.push_back(child.policy);
  return out;
}

}  // namespace

Group::Group(std::vector<ChildSpec> children, const LifecycleOptions& options, const Clock& clock)
    : clock_(clock), lifecycle_(Policies(children), options) {
  for (ChildSpec& spec : children) children_.push_back({std::move(spec), std::nullopt, {}});
}

void Group::Start() { lifecycle_.Start(clock_.Now()); }
void Group::Stop() { lifecycle_.Stop(clock_.Now()); }
void Group::StopNow() { lifecycle_.StopNow(); }

std::vector<Event> Group::Turn(Milliseconds limit, int wake_fd) {
  std::vector<Event> events;
  for (const Order& order : lifecycle_.Due(clock_.Now())) CarryOut(order, events);
  if (!events.empty() || lifecycle_.finished()) return events;
  Wait(limit, wake_fd);
  for (size_t i = 0; i < children_.size(); ++i) {
    if (children_[i].process) Hear(i, events);
  }
  return events;
}

void Group::CarryOut(const Order& order, std::vector<Event>& events) {
  Child& child = children_[order.child];
  if (order.kind != Order::Kind::kSpawn) {
    if (child.process) child.process->Signal(order.kind == Order::Kind::kKill ? SIGKILL : SIGTERM);
    return;
  }
  child.error.clear();
  absl::StatusOr<Process> process = Process::Spawn(child.spec.process);
  if (process.ok()) {
    child.process.emplace(*std::move(process));
  } else {
    child.error = std::string(process.status().message());
    Exited(order.child, child.error, events);
  }
}

void Group::Wait(Milliseconds limit, int wake_fd) const {
  std::vector<struct pollfd> items;
  if (wake_fd >= 0) items.push_back({wake_fd, POLLIN, 0});
  for (const Child& child : children_) {
    if (!child.process) continue;
    items.push_back({child.process->exit_fd(), POLLIN, 0});
    if (child.process->out_fd() >= 0) items.push_back({child.process->out_fd(), POLLIN, 0});
  }
  if (const std::optional<Time> due = lifecycle_.NextDue()) {
    limit = std::min(limit, std::chrono::ceil<Milliseconds>(std::max(*due - clock_.Now(), std::chrono::nanoseconds(0))));
  }
  poll(items.data(), items.size(), static_cast<int>(std::max<int64_t>(limit.count(), 0)));
}

// Reaped before its last lines are read: what it wrote before it ended is then surely in the pipe.
void Group::Hear(size_t index, std::vector<Event>& events) {
  Child& child = children_[index];
  const std::optional<ExitStatus> ended = child.process->Reap();
  for (std::string& line : child.process->ReadLines()) {
    std::optional<ReadyLine> told = ParseReadyLine(line);
    if (!told) {
      events.push_back({.kind = Event::Kind::kOutput, .child = index, .text = std::move(line)});
    } else if (told->kind == ReadyLine::Kind::kError) {
      child.error = std::move(told->text);
    } else if (told->kind == ReadyLine::Kind::kReady) {
      lifecycle_.OnReady(index);
      events.push_back({.kind = Event::Kind::kReady, .child = index, .fraction = 1, .text = std::move(told->text)});
    } else {
      events.push_back({.kind = Event::Kind::kProgress, .child = index, .fraction = told->fraction, .text = std::move(told->text)});
    }
  }
  if (ended) Exited(index, child.error.empty() ? ended->Text() : child.error, events);
}

void Group::Exited(size_t index, const std::string& how, std::vector<Event>& events) {
  Child& child = children_[index];
  child.process.reset();
  const std::optional<Milliseconds> wait = lifecycle_.OnExit(index, clock_.Now());
  if (failure_.empty() && lifecycle_.failed() == index) {
    failure_ = child.error.empty() ? absl::StrCat(child.spec.process.name, " ", how, " before it was ready") : how;
  }
  events.push_back({.kind = Event::Kind::kExited, .child = index, .text = how, .restart_in = wait});
}

}  // namespace phalanx::services::supervisor
