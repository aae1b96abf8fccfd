// worker/rpc/worker_service.h: the worker's gRPC door: sessions of routers, drain, information, metrics.
// Refuses to know: the engine's inside. Thread: RPC methods on gRPC threads; Deliver from the engine thread, never blocks; one sender
// thread of its own turns reports into messages.
// Neighbours: main connects it to the engine through core::Mailbox and Deliver; rpc/session is one stream.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "phalanx/worker/v1/worker.grpc.pb.h"
#include "services/queue.h"
#include "worker/core/mailbox.h"
#include "worker/rpc/admit.h"
#include "worker/rpc/session.h"

namespace phalanx::worker::rpc {

struct ServiceOptions {
  AdmitLimits limits;
  SessionLimits outbox;
  v1::GetInfoResponse info;                    // what GetInfo says; `draining` is filled in
  std::function<std::string()> metrics_text;   // Prometheus text; any thread
  size_t max_reports = 4096;                   // engine steps the sender thread may lag behind
  std::chrono::milliseconds load_interval{100};  // a router without events in a step gets the load at most this often
};

class WorkerService final : public v1::Worker::CallbackService {
 public:
  WorkerService(ServiceOptions options, core::Mailbox* mailbox);
  ~WorkerService() override;  // Stop()

  // From the engine thread, after every step.
  void Deliver(core::StepReport&& report);
  // From now on submissions are refused with UNAVAILABLE.
  void BeginDrain();
  bool draining() const { return draining_.load(); }
  // Sequences that some router still waits for.
  size_t live() const;
  // Seconds since the engine last reported.
  double seconds_since_report() const;
  // Sends what is queued (for at most `flush`), ends every stream and the sender thread. The engine has stopped before.
  void Stop(std::chrono::milliseconds flush);

  grpc::ServerBidiReactor<v1::RouterMessage, v1::WorkerMessage>* Attach(grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* GetInfo(grpc::CallbackServerContext* context, const v1::GetInfoRequest* request,
                                    v1::GetInfoResponse* response) override;
  grpc::ServerUnaryReactor* GetMetrics(grpc::CallbackServerContext* context, const v1::GetMetricsRequest* request,
                                       v1::GetMetricsResponse* response) override;

 private:
  using Clock = std::chrono::steady_clock;
  struct PendingDrain {
    grpc::ServerUnaryReactor* reactor;
    v1::DrainResponse* response;
    Clock::time_point deadline;
    bool aborted = false;
  };
  struct Peer {
    std::shared_ptr<Session> session;
    Clock::time_point last_load;
  };

  void SendLoop();
  void Route(const core::StepReport& report);
  void CheckDrains();
  void FinishDrains();
  std::vector<std::shared_ptr<Session>> sessions() const;

  const ServiceOptions options_;
  core::Mailbox* const mailbox_;
  services::Queue<core::StepReport> reports_;
  std::atomic<bool> draining_{false};
  std::atomic<bool> overrun_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> last_report_ns_{0};
  mutable std::mutex mutex_;
  absl::flat_hash_map<uint64_t, Peer> peers_;
  std::vector<PendingDrain> drains_;
  uint64_t next_session_ = 1;
  std::thread sender_;
};

}  // namespace phalanx::worker::rpc
