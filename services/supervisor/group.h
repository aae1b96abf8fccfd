// services/supervisor/group.h: some children that serve together: starts them, hears their ready lines, restarts them, ends them.
// Refuses to know: what the children do. Thread: one owner, which must outlive the group (see process.h).
// Neighbours: lifecycle.h decides, process.h acts, services/ready.h is what the children say. The owner calls Turn in a loop.
//
//   Group group(specs, options, clock);
//   group.Start();
//   while (!group.finished()) {
//     for (const Event& event : group.Turn(kSecond, stop.fd())) Show(event);
//   }
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "services/clock.h"
#include "services/supervisor/lifecycle.h"
#include "services/supervisor/process.h"

namespace phalanx::services::supervisor {

struct ChildSpec {
  ProcessSpec process;
  ChildPolicy policy;
};

// What happened to one child.
struct Event {
  enum class Kind {
    kProgress,  // fraction, and text: what is being done
    kReady,     // text: its address
    kOutput,    // text: a line of its standard output that is not for us
    kExited,    // text: why, in one sentence without the child's name
  };
  Kind kind = Kind::kProgress;
  size_t child = 0;
  double fraction = 0;
  std::string text;
  std::optional<Milliseconds> restart_in;  // of kExited: absent if it is not started again
};

class Group {
 public:
  // `clock` must outlive the group.
  Group(std::vector<ChildSpec> children, const LifecycleOptions& options, const Clock& clock);

  void Start();
  // Carries out what is due, then waits until a child says something or ends, `limit` is over, or `wake_fd` (-1 = none) is readable.
  std::vector<Event> Turn(Milliseconds limit, int wake_fd);
  void Stop();     // in order, with grace; see Lifecycle
  void StopNow();  // kills

  // The words a later restart of the child uses.
  void SetArgs(size_t child, std::vector<std::string> args) { children_[child].spec.process.args = std::move(args); }
  const ProcessSpec& spec(size_t child) const { return children_[child].spec.process; }
  bool launched() const { return lifecycle_.launched(); }
  bool stopping() const { return lifecycle_.stopping(); }
  bool finished() const { return lifecycle_.finished(); }
  // Why the start failed: the child's own sentence, or how it ended. Empty if it did not fail.
  const std::string& failure() const { return failure_; }

 private:
  struct Child {
    ChildSpec spec;
    std::optional<Process> process;
    std::string error;  // its PHALANX_ERROR line
  };
  void CarryOut(const Order& order, std::vector<Event>& events);
  void Wait(Milliseconds limit, int wake_fd) const;
  void Hear(size_t index, std::vector<Event>& events);
  void Exited(size_t index, const std::string& how, std::vector<Event>& events);

  const Clock& clock_;
  std::vector<Child> children_;
  Lifecycle lifecycle_;
  std::string failure_;
};

}  // namespace phalanx::services::supervisor
