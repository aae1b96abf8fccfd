// tp_rank RANK SIZE PORT PHASE TIMEOUT_MS: one rank as a process, for rank_process_test. Meets the others (rank 0 prints its port first),
// says READY, does what PHASE says until the group breaks, and prints how it learnt of that:
//   PORT 43121
//   READY
//   NOTICED rank 1 is gone, its last step was 12     from the monitor
//   ENDED rank 1 is gone, its last step was 12       when the engine's thread came out of what it did
// PHASE: idle, plan (a plan and a reply every millisecond), sum (a plan, then a sum in which rank 0 is always the last).
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/tp/gloo_group.h"

namespace phalanx::worker::tp {
namespace {

void Print(const std::string& line) {
  const std::string bytes = line + "\n";
  [[maybe_unused]] const ssize_t written = write(STDOUT_FILENO, bytes.data(), bytes.size());
}

Time Soon() { return Now() + std::chrono::seconds(20); }

absl::StatusOr<Meeting> MeetOthers(const RendezvousOptions& options) {
  if (options.rank != 0) return Join(options, {{"model", "test"}});
  PHX_ASSIGN_OR_RETURN(Rendezvous rendezvous, Rendezvous::Listen(options));
  Print(absl::StrCat("PORT ", rendezvous.port()));
  return rendezvous.Gather({{"model", "test"}});
}

absl::Status Step(Control& control, Group& group, std::string_view phase, uint64_t step, std::vector<float>& data) {
  const bool idle = phase == "idle";
  if (control.rank() == 0) {
    if (idle) {
      std::this_thread::sleep_for(milliseconds(1));
      return control.status();
    }
    PHX_RETURN_IF_ERROR(control.Broadcast(step, std::string(2000, 'p'), Soon()));
    std::this_thread::sleep_for(milliseconds(1));
    if (phase == "plan") return control.Collect(step, Soon()).status();
  } else {
    PHX_ASSIGN_OR_RETURN(const Message message, control.Receive(Soon()));
    if (phase == "plan") return control.Reply(message.step, "ok", Soon());
  }
  return group.AllReduce(kernels::Dense(data.data(), kernels::kF32, 1, static_cast<int64_t>(data.size())), nullptr);
}

absl::Status Run(RendezvousOptions options, std::string_view phase) {
  PHX_ASSIGN_OR_RETURN(options.secret, ReadSecret(""));
  PHX_ASSIGN_OR_RETURN(Meeting meeting, MeetOthers(options));
  ControlOptions control_options;
  control_options.monitor.on_broken = [](const absl::Status& status) { Print(absl::StrCat("NOTICED ", std::string(status.message()))); };
  Control control(std::move(meeting), control_options);
  PHX_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, MakeGlooGroup(control, {}));
  Print("READY");
  std::vector<float> data(40000, 1e-30f);
  for (uint64_t step = 1;; ++step) PHX_RETURN_IF_ERROR(Step(control, *group, phase, step, data));
}

}  // namespace
}  // namespace phalanx::worker::tp

int main(int argc, char** argv) {
  using namespace phalanx::worker::tp;
  if (argc != 6) return 2;
  RendezvousOptions options;
  options.rank = std::atoi(argv[1]);
  options.size = std::atoi(argv[2]);
  options.master_port = std::atoi(argv[3]);
  options.timeout_ms = std::atoi(argv[5]);
  options.handshake_ms = 1000;
  const absl::Status status = Run(options, argv[4]);
  Print(absl::StrCat("ENDED ", std::string(status.message())));
  return 1;
}
