// worker/tp/tp_test_util.h: a group whose ranks are threads of a test, met over loopback.
// Refuses to know: what is tested. Thread: the test's; each rank's object is then used by one thread. Neighbours: *_test.cc here.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "worker/tp/control.h"

namespace phalanx::worker::tp {

inline std::string Message(const absl::Status& status) { return std::string(status.message()); }
inline Time In(int ms) { return Now() + milliseconds(ms); }
inline int64_t MillisSince(Time begin) { return (Now() - begin) / milliseconds(1); }

// The connections of `size` ranks, by rank.
inline std::vector<Meeting> MeetAll(int size) {
  RendezvousOptions options;
  options.size = size;
  options.timeout_ms = 5000;
  Rendezvous leader = *Rendezvous::Listen(options);
  options.master_port = leader.port();
  std::vector<std::future<absl::StatusOr<Meeting>>> others;
  for (options.rank = 1; options.rank < size; ++options.rank) {
    others.push_back(std::async(std::launch::async, [options] { return Join(options, {}); }));
  }
  std::vector<Meeting> out;
  out.push_back(*leader.Gather({}));
  for (auto& other : others) out.push_back(*other.get());
  return out;
}

inline std::vector<std::unique_ptr<Control>> MakeControls(int size, const ControlOptions& options = {}) {
  std::vector<std::unique_ptr<Control>> out;
  for (Meeting& meeting : MeetAll(size)) out.push_back(std::make_unique<Control>(std::move(meeting), options));
  return out;
}

// Runs `action(rank)` on a thread a rank and waits for all.
inline void OnAllRanks(int size, const std::function<void(int)>& action) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back([&action, rank] { action(rank); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace phalanx::worker::tp
