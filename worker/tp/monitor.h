// worker/tp/monitor.h: one thread a rank that keeps the pulse of the group: heartbeats with the step number, ends of connections, the
// verdict told to everybody, and the store.
// Refuses to know: plans, tensors. Thread: its own; the public methods from any thread.
// Neighbours: control.h owns it and tells it the step; fault.h holds the verdict.
//
// Each rank sends its step every `heartbeat_ms`. Rank 0 hears all, the others hear rank 0.
// A peer whose connection ends is lost at once; one that says nothing for `silence_ms` is hung (a stopped process, a dead host, a cut
// cable). A live process whose engine stands still still beats, so rank 0 also compares steps: a rank that has not taken the plan of the
// present step within `progress_ms` is hung.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "worker/tp/fault.h"
#include "worker/tp/frame.h"
#include "worker/tp/store.h"

namespace phalanx::worker::tp {

struct MonitorOptions {
  int heartbeat_ms = 250;
  int silence_ms = 1500;
  // 0 = steps are not compared. Above the longest step, if plans are sent while the step before them still runs.
  int progress_ms = 2000;
  // Called once, on the monitor's thread, when the group is broken and the others have been told (or cannot be, within 200 ms). Not
  // called when this rank is the one that leaves. May end the process.
  std::function<void(const absl::Status&)> on_broken;
};

// One end of a pulse connection.
struct PulseLink {
  int rank = 0;  // at the other end
  Socket socket;
};

class Monitor final : public Store {
 public:
  // `links` as in Meeting; `fault` outlives the monitor.
  Monitor(int rank, std::vector<PulseLink> links, const MonitorOptions& options, Fault& fault);
  // Tells the others that this rank leaves, if the group is still whole.
  ~Monitor() override;

  // Rank 0: this step's plan was sent. The others: it was taken.
  void SetStep(uint64_t step);
  // The step a peer last told; 0 before the first heartbeat.
  uint64_t step_of(int rank) const;

  absl::Status Set(std::string_view key, std::string_view value) override;
  absl::StatusOr<std::string> Get(std::string_view key, Time deadline) override;

 private:
  struct Peer {
    int rank = 0;
    Socket socket;
    FrameReader reader;
    std::string outbox;            // not yet taken by the socket
    Time heard;                    // when its last bytes came
    Time advanced;                 // when its step last changed, or was ours
    std::atomic<uint64_t> step{0};
    explicit Peer(PulseLink link);
  };

  void Run();
  void Beat(Time now);
  void CheckPeers(Time now);
  void TellVerdict();
  bool Flushed();
  void Wait(Time until);
  void Hear(Peer& peer);
  void Take(Peer& peer, const Frame& frame);
  void Flush(Peer& peer);
  void Post(Peer& peer, FrameKind kind, std::string_view bytes);
  void TakeStoreRequests();
  bool Keep(const std::string& key, const std::string& value);
  void Wake();

  const int rank_;
  const MonitorOptions options_;
  Fault& fault_;
  std::vector<std::unique_ptr<Peer>> peers_;  // fixed after the constructor; all but `step` belong to the thread
  Socket wake_;
  std::atomic<uint64_t> step_{0};
  std::atomic<bool> leaving_{false};

  std::mutex mutex_;
  std::condition_variable store_changed_;
  std::map<std::string, std::string, std::less<>> values_;       // guarded by mutex_; rank 0: all, the others: what was asked for
  std::vector<std::pair<FrameKind, std::string>> store_outbox_;  // guarded by mutex_; requests to rank 0
  std::vector<std::pair<Peer*, std::string>> waiters_;           // of the thread; rank 0: who waits for which key
  std::thread thread_;
};

}  // namespace phalanx::worker::tp
