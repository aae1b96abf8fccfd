// Real processes as ranks, killed and stopped at every phase: who notices, how soon, and whether the right rank is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <map>
#include <thread>

#include "services/supervisor/process.h"
#include "worker/tp/tp_test_util.h"

namespace phalanx::worker::tp {
namespace {

using services::supervisor::Process;
using services::supervisor::ProcessSpec;
using ::testing::HasSubstr;

constexpr int kNoticedMs = 2000;         // what the group promises for any lost or hung rank
constexpr int kNoticedMsKilled = 1000;   // of a killed one: some 10 ms, if the machine is not busy
constexpr int kEndedMs = 3000;           // until the engine's thread is out of its call too

struct Line {
  std::string text;
  Time when;
};

// One rank as a process, with what it printed. The thread that made it must stay.
class Rank {
 public:
  Rank(int rank, int size, int port, const std::string& phase, int timeout_ms, const std::string& secret = "a secret of some length") {
    ProcessSpec spec;
    spec.name = "rank " + std::to_string(rank);
    spec.program = TP_RANK_PROGRAM;
    spec.args = {std::to_string(rank), std::to_string(size), std::to_string(port), phase, std::to_string(timeout_ms)};
    spec.set_env = {{"PHALANX_TP_SECRET", secret}};
    process_.emplace(*Process::Spawn(spec));
  }
  // The first line that begins with `word`, without it; waits at most `limit_ms`.
  std::optional<Line> Wait(const std::string& word, int limit_ms) {
    const Time deadline = In(limit_ms);
    while (true) {
      for (std::string& text : process_->ReadLines()) lines_.push_back({std::move(text), Now()});
      for (const Line& line : lines_) {
        if (line.text.starts_with(word)) return Line{line.text.substr(std::min(line.text.size(), word.size() + 1)), line.when};
      }
      if (Now() >= deadline) return std::nullopt;
      std::this_thread::sleep_for(milliseconds(2));
    }
  }
  int Port() {
    const auto line = Wait("PORT", 5000);
    return line ? std::atoi(line->text.c_str()) : 0;
  }
  void Signal(int number) { process_->Signal(number); }

 private:
  std::optional<Process> process_;
  std::vector<Line> lines_;
};

struct Case {
  std::string phase;
  int signal = SIGKILL;
  int victim = 0;
  int size = 3;
};

struct Times {
  int64_t noticed_ms = -1;  // by the last survivor
  int64_t ended_ms = -1;
};

Times RunCase(const Case& c) {
  SCOPED_TRACE(c.phase + " signal " + std::to_string(c.signal) + " rank " + std::to_string(c.victim) + " of " + std::to_string(c.size));
  std::vector<std::unique_ptr<Rank>> ranks;
  ranks.push_back(std::make_unique<Rank>(0, c.size, 0, c.phase, 10000));
  const int port = ranks[0]->Port();
  for (int rank = 1; rank < c.size; ++rank) ranks.push_back(std::make_unique<Rank>(rank, c.size, port, c.phase, 10000));
  for (auto& rank : ranks) {
    if (!rank->Wait("READY", 10000)) {
      ADD_FAILURE() << "a rank was not ready";
      return {};
    }
  }
  std::this_thread::sleep_for(milliseconds(50));
  const Time begin = Now();
  ranks[static_cast<size_t>(c.victim)]->Signal(c.signal);
  Times out;
  std::vector<std::string> reasons(ranks.size());
  for (const char* word : {"NOTICED", "ENDED"}) {
    int64_t& last = word == std::string_view("NOTICED") ? out.noticed_ms : out.ended_ms;
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      if (static_cast<int>(rank) == c.victim) continue;
      const auto line = ranks[rank]->Wait(word, 5000);
      if (!line) {
        ADD_FAILURE() << "rank " << rank << " never said " << word;
        return out;
      }
      if (reasons[rank].empty()) reasons[rank] = line->text;
      EXPECT_EQ(line->text, reasons[rank]);
      EXPECT_THAT(line->text, HasSubstr("rank " + std::to_string(c.victim)));
      last = std::max<int64_t>(last, (line->when - begin) / milliseconds(1));
    }
  }
  if (c.signal == SIGSTOP) {
    // One that wakes up finds the group ended, not a place in it.
    ranks[static_cast<size_t>(c.victim)]->Signal(SIGCONT);
    EXPECT_TRUE(ranks[static_cast<size_t>(c.victim)]->Wait("ENDED", 5000));
  }
  return out;
}

void Report(const Case& c, const Times& times) {
  std::printf("  %-4s %s rank %d of %d: noticed after %lld ms, ended after %lld ms\n", c.phase.c_str(),
              c.signal == SIGKILL ? "kill" : "stop", c.victim, c.size, static_cast<long long>(times.noticed_ms),
              static_cast<long long>(times.ended_ms));
}

TEST(RankProcess, AKilledRankIsNoticedAtOnce) {
  for (const char* phase : {"idle", "plan", "sum"}) {
    for (const int victim : {0, 3}) {
      const Case c = {phase, SIGKILL, victim, 4};
      const Times times = RunCase(c);
      Report(c, times);
      EXPECT_LE(times.noticed_ms, kNoticedMsKilled);
      EXPECT_LE(times.ended_ms, kNoticedMsKilled);
    }
  }
}

TEST(RankProcess, AStoppedRankIsNoticedInTime) {
  for (const char* phase : {"idle", "plan", "sum"}) {
    std::vector<Case> cases = {{phase, SIGSTOP, 0, 2}, {phase, SIGSTOP, 2, 3}};
    std::vector<Times> times(cases.size());
    OnAllRanks(static_cast<int>(cases.size()), [&](int i) { times[static_cast<size_t>(i)] = RunCase(cases[static_cast<size_t>(i)]); });
    for (size_t i = 0; i < cases.size(); ++i) {
      Report(cases[i], times[i]);
      EXPECT_LE(times[i].noticed_ms, kNoticedMs);
      EXPECT_LE(times[i].ended_ms, kEndedMs);
    }
  }
}

TEST(RankProcess, ARankKilledInTheRendezvousMayBeStartedAgain) {
  Rank leader(0, 3, 0, "idle", 10000);
  const int port = leader.Port();
  {
    Rank killed(1, 3, port, "idle", 10000);
    std::this_thread::sleep_for(milliseconds(150));
    killed.Signal(SIGKILL);
  }
  Rank one(1, 3, port, "idle", 10000);
  Rank two(2, 3, port, "idle", 10000);
  EXPECT_TRUE(leader.Wait("READY", 5000));
  EXPECT_TRUE(one.Wait("READY", 5000));
  EXPECT_TRUE(two.Wait("READY", 5000));
}

TEST(RankProcess, ALeaderKilledInTheRendezvousIsNoticedAtOnce) {
  Rank leader(0, 3, 0, "idle", 10000);
  Rank one(1, 3, leader.Port(), "idle", 10000);
  std::this_thread::sleep_for(milliseconds(150));
  const Time begin = Now();
  leader.Signal(SIGKILL);
  const auto ended = one.Wait("ENDED", 5000);
  ASSERT_TRUE(ended);
  EXPECT_THAT(ended->text, HasSubstr("closed the connection"));
  EXPECT_LE(MillisSince(begin), kNoticedMsKilled);
}

TEST(RankProcess, NobodyWaitsForAStoppedLeaderForEver) {
  Rank leader(0, 2, 0, "idle", 10000);
  const int port = leader.Port();
  leader.Signal(SIGSTOP);
  const Time begin = Now();
  Rank one(1, 2, port, "idle", 500);
  const auto ended = one.Wait("ENDED", 5000);
  ASSERT_TRUE(ended);
  EXPECT_THAT(ended->text, HasSubstr("found no rank 0 within 0.5 s"));
  EXPECT_LE(MillisSince(begin), kEndedMs);
}

TEST(RankProcess, ARankStoppedInTheRendezvousEndsTheGroup) {
  Rank leader(0, 3, 0, "idle", 10000);
  const int port = leader.Port();
  Rank stopped(1, 3, port, "idle", 10000);
  std::this_thread::sleep_for(milliseconds(150));
  stopped.Signal(SIGSTOP);
  Rank two(2, 3, port, "idle", 10000);  // the last to come: the group starts, with one that cannot
  const auto noticed = leader.Wait("NOTICED", 5000);
  ASSERT_TRUE(noticed);
  EXPECT_THAT(noticed->text, HasSubstr("rank 1"));
  const auto there = two.Wait("NOTICED", 5000);
  ASSERT_TRUE(there);
  EXPECT_EQ(there->text, noticed->text);
}

TEST(RankProcess, WrongSecretAndWrongWorldSize) {
  Rank leader(0, 2, 0, "idle", 10000);
  const int port = leader.Port();
  Rank liar(1, 2, port, "idle", 10000, "not the secret of rank 0");
  const auto ended = liar.Wait("ENDED", 5000);
  ASSERT_TRUE(ended);
  EXPECT_THAT(ended->text, HasSubstr("does not have the secret"));
  Rank other(1, 4, port, "idle", 10000);
  const auto size = other.Wait("ENDED", 5000);
  ASSERT_TRUE(size);
  EXPECT_THAT(size->text, HasSubstr("world size is 2 at rank 0 and 4 at rank 1"));
  Rank right(1, 2, port, "idle", 10000);
  EXPECT_TRUE(right.Wait("READY", 5000));
  EXPECT_TRUE(leader.Wait("READY", 5000));
}

}  // namespace
}  // namespace phalanx::worker::tp
