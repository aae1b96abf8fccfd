// Real processes: small shell scripts that say the ready lines.
#include "services/supervisor/group.h"

#include <signal.h>
#include <unistd.h>

#include <functional>

#include <gtest/gtest.h>

namespace phalanx::services::supervisor {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = Event::Kind;

ChildSpec Shell(const std::string& name, const std::string& script, ChildPolicy policy = {}) {
  return {.process = {.name = name, .program = "/bin/sh", .args = {"-c", script}}, .policy = policy};
}

constexpr char kServe[] = "echo PHALANX_READY here; exec sleep 600";

struct Case {
  SteadyClock clock;
  Group group;
  std::vector<Event> events;
  explicit Case(std::vector<ChildSpec> children, LifecycleOptions options = {.backoff = {.first = milliseconds(1)}})
      : group(std::move(children), options, clock) {
    group.Start();
  }
  ~Case() { End(); }
  // Turns until `done` or, so that a failing test ends, for 20 s.
  bool Until(const std::function<bool()>& done) {
    const Time end = clock.Now() + seconds(20);
    while (!done()) {
      if (clock.Now() > end) return false;
      for (Event& event : group.Turn(milliseconds(100), -1)) events.push_back(std::move(event));
    }
    return true;
  }
  void End() {
    group.StopNow();
    EXPECT_TRUE(Until([this] { return group.finished(); }));
  }
  const Event* Last(Kind kind, size_t child) const {
    const Event* found = nullptr;
    for (const Event& event : events) {
      if (event.kind == kind && event.child == child) found = &event;
    }
    return found;
  }
};

TEST(Group, TellsWhatTheChildrenSay) {
  const std::string talk = "echo PHALANX_PROGRESS 0.25 reading; echo hello; echo PHALANX_READY unix:x; exec sleep 600";
  Case run(std::vector<ChildSpec>{Shell("a", talk), Shell("b", kServe)});
  ASSERT_TRUE(run.Until([&] { return run.group.launched(); }));
  EXPECT_EQ(run.Last(Kind::kReady, 0)->text, "unix:x");
  EXPECT_EQ(run.Last(Kind::kProgress, 0)->fraction, 0.25);
  EXPECT_EQ(run.Last(Kind::kProgress, 0)->text, "reading");
  EXPECT_EQ(run.Last(Kind::kOutput, 0)->text, "hello");
  EXPECT_EQ(run.Last(Kind::kReady, 1)->text, "here");
}

TEST(Group, AFailedStartGivesTheChildsSentenceAndEndsTheOthers) {
  Case run(std::vector<ChildSpec>{Shell("a", kServe), Shell("b", "echo PHALANX_ERROR port 7 is taken; exit 1")});
  ASSERT_TRUE(run.Until([&] { return run.group.finished(); }));
  EXPECT_EQ(run.group.failure(), "port 7 is taken");
  EXPECT_EQ(run.Last(Kind::kExited, 0)->text, "was killed by signal 9 (Killed)");
}

TEST(Group, AFailedStartWithoutASentenceIsTold) {
  Case exit(std::vector<ChildSpec>{Shell("a", kServe), Shell("b", "exit 3")});
  ASSERT_TRUE(exit.Until([&] { return exit.group.finished(); }));
  EXPECT_EQ(exit.group.failure(), "b ended with exit status 3 before it was ready");
  Case signal(std::vector<ChildSpec>{Shell("b", "kill -SEGV $$")});
  ASSERT_TRUE(signal.Until([&] { return signal.group.finished(); }));
  EXPECT_EQ(signal.group.failure(), "b was killed by signal 11 (Segmentation fault) before it was ready");
  Case missing(std::vector<ChildSpec>{{.process = {.name = "b", .program = "/nowhere/b"}, .policy = {}}});
  ASSERT_TRUE(missing.Until([&] { return missing.group.finished(); }));
  EXPECT_EQ(missing.group.failure(), "cannot start b: '/nowhere/b': No such file or directory");
}

TEST(Group, RestartsWithTheNewWords) {
  Case run(std::vector<ChildSpec>{Shell("a", "echo PHALANX_READY $$; exec sleep 600"), Shell("b", kServe, {.unit = 1})});
  ASSERT_TRUE(run.Until([&] { return run.group.launched(); }));
  run.group.SetArgs(0, {"-c", "echo PHALANX_READY again; exec sleep 600"});
  ASSERT_EQ(kill(std::stoi(run.Last(Kind::kReady, 0)->text), SIGKILL), 0);
  ASSERT_TRUE(run.Until([&] { return run.Last(Kind::kReady, 0)->text == "again"; }));
  EXPECT_EQ(run.Last(Kind::kExited, 0)->text, "was killed by signal 9 (Killed)");
  EXPECT_EQ(run.Last(Kind::kExited, 0)->restart_in, milliseconds(1));
  EXPECT_EQ(run.Last(Kind::kExited, 1), nullptr);
}

TEST(Group, StopsInOrderAndKillsTheDeaf) {
  const std::string deaf = "trap '' TERM; echo PHALANX_READY deaf; while :; do sleep 0.1; done";
  Case run(std::vector<ChildSpec>{Shell("last", kServe, {0, 1}), Shell("first", deaf, {1, 0})},
           {.backoff = {}, .grace = milliseconds(0), .slack = milliseconds(200)});
  ASSERT_TRUE(run.Until([&] { return run.group.launched(); }));
  run.group.Stop();
  ASSERT_TRUE(run.Until([&] { return run.group.finished(); }));
  EXPECT_EQ(run.Last(Kind::kExited, 1)->text, "was killed by signal 9 (Killed)");
  EXPECT_EQ(run.Last(Kind::kExited, 0)->text, "was killed by signal 15 (Terminated)");
  EXPECT_EQ(run.events.back().child, 0u);
  EXPECT_EQ(run.group.failure(), "");
}

TEST(Group, AWakeUpEndsTheWait) {
  Case run(std::vector<ChildSpec>{Shell("a", kServe)});
  ASSERT_TRUE(run.Until([&] { return run.group.launched(); }));
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(write(ends[1], "x", 1), 1);
  const Time before = run.clock.Now();
  run.group.Turn(seconds(60), ends[0]);
  EXPECT_LT(run.clock.Now() - before, seconds(30));
  close(ends[0]);
  close(ends[1]);
}

TEST(Process, HasTheGivenEnvironmentAndAnEmptyInput) {
  setenv("PHALANX_GROUP_TEST_SECRET", "s", 1);
  ChildSpec spec = Shell("a", "echo \"$ADDED[$PHALANX_GROUP_TEST_SECRET]$(cat)\"; echo PHALANX_READY x; exec sleep 600");
  spec.process.set_env = {{"ADDED", "yes"}};
  spec.process.unset_env = {"PHALANX_GROUP_TEST_SECRET"};
  Case run(std::vector<ChildSpec>{spec});
  ASSERT_TRUE(run.Until([&] { return run.group.launched(); }));
  EXPECT_EQ(run.Last(Kind::kOutput, 0)->text, "yes[]");
  unsetenv("PHALANX_GROUP_TEST_SECRET");
}

TEST(Process, AnEndlessLineComesInPieces) {
  Case run(std::vector<ChildSpec>{Shell("a", "head -c 200000 /dev/zero | tr '\\0' x; echo; echo PHALANX_READY x; exec sleep 600")});
  ASSERT_TRUE(run.Until([&] { return run.group.launched(); }));
  size_t bytes = 0;
  for (const Event& event : run.events) {
    if (event.kind == Kind::kOutput) bytes += event.text.size();
  }
  EXPECT_EQ(bytes, 200000u);
}

}  // namespace
}  // namespace phalanx::services::supervisor
