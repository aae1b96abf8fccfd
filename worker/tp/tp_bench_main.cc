// tp_bench [RANKS [busy]]: what the ranks of one host pay for a plan and for a sum: processes over loopback, medians in microseconds.
//   tp_bench 4
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "worker/tp/gloo_group.h"

namespace phalanx::worker::tp {
namespace {

double Micros(std::chrono::nanoseconds span) { return std::chrono::duration<double, std::micro>(span).count(); }

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "tp_bench: %s\n", std::string(status.message()).c_str());
  _exit(1);
}

void Must(const absl::Status& status) {
  if (!status.ok()) Die(status);
}

Time Soon() { return Now() + std::chrono::seconds(10); }

// The median and the 90th percentile of `runs` calls, after some to warm up.
template <typename Action>
std::pair<double, double> Measure(int runs, Action action) {
  std::vector<double> times;
  for (int i = -runs / 5; i < runs; ++i) {
    const Time begin = Now();
    action();
    if (i >= 0) times.push_back(Micros(Now() - begin));
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[times.size() * 9 / 10]};
}

void Plans(Control& control, size_t bytes) {
  const std::string plan(bytes, 'p');
  uint64_t step = control.rank() == 0 ? control.step_of(1) : 0;
  std::vector<double> sends;
  constexpr int kRuns = 1000;
  const auto [median, high] = Measure(kRuns, [&] {
    if (control.rank() != 0) {
      const absl::StatusOr<Message> message = control.Receive(Soon());
      Must(message.status());
      Must(control.Reply(message->step, "ok", Soon()));
      return;
    }
    const Time begin = Now();
    Must(control.Broadcast(++step, plan, Soon()));
    sends.push_back(Micros(Now() - begin));
    Must(control.Collect(step, Soon()).status());
  });
  std::sort(sends.begin(), sends.end());
  if (control.rank() == 0) {
    std::printf("ranks %d  plan %7zu B  broadcast %7.1f us  to the last reply %7.1f us (p90 %.1f)\n", control.size(), bytes,
                sends[sends.size() / 2], median, high);
  }
}

void Sums(Group& group, kernels::DType dtype, size_t bytes) {
  std::vector<char> data(bytes, 0);
  const kernels::Tensor tensor = kernels::Dense(data.data(), dtype, 1, static_cast<int64_t>(bytes / kernels::DTypeBytes(dtype)));
  const auto [median, high] = Measure(bytes > 100000 ? 200 : 1000, [&] { Must(group.AllReduce(tensor, nullptr)); });
  if (group.rank() == 0) {
    const char* const name = dtype == kernels::kF32 ? "f32 " : "bf16";
    std::printf("ranks %d  sum  %7zu B  %s  %9.1f us (p90 %.1f)\n", group.size(), bytes, name, median, high);
  }
}

void RunRank(RendezvousOptions options, Rendezvous* leader, bool busy_poll) {
  absl::StatusOr<Meeting> meeting = leader != nullptr ? leader->Gather({}) : Join(options, {});
  if (!meeting.ok()) Die(meeting.status());
  Control control(*std::move(meeting), {});
  for (const size_t bytes : {1 << 10, 10 << 10, 50 << 10}) Plans(control, bytes);
  absl::StatusOr<std::unique_ptr<Group>> group = MakeGlooGroup(control, {.busy_poll = busy_poll});
  if (!group.ok()) Die(group.status());
  for (const size_t bytes : {1 << 10, 4 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20}) {
    Sums(**group, kernels::kF32, bytes);
  }
  for (const size_t bytes : {1 << 10, 16 << 10, 256 << 10, 1 << 20}) Sums(**group, kernels::kBF16, bytes);
  std::fflush(stdout);
}

}  // namespace
}  // namespace phalanx::worker::tp

int main(int argc, char** argv) {
  using namespace phalanx::worker::tp;
  RendezvousOptions options;
  options.size = argc > 1 ? std::atoi(argv[1]) : 2;
  const bool busy_poll = argc > 2 && std::string_view(argv[2]) == "busy";
  absl::StatusOr<Rendezvous> leader = Rendezvous::Listen(options);
  if (!leader.ok()) Die(leader.status());
  options.master_port = leader->port();
  for (int rank = 1; rank < options.size; ++rank) {
    if (fork() != 0) continue;
    options.rank = rank;
    RunRank(options, nullptr, busy_poll);
    _exit(0);
  }
  RunRank(options, &*leader, busy_poll);
  while (wait(nullptr) > 0) continue;
  return 0;
}
