// router/relay.h: the life of every request between the doors and the workers: admission, tokenizer threads, and one relay thread.
// Refuses to know: JSON, gRPC, what a template says. Thread: Handler and WorkerListener from any thread, none blocks (but Metrics and
// Tokenize, as core/handler.h says). The relay thread alone owns Dispatch and calls every sink.
// Neighbours: router/rpc's doors call Handler, its worker clients call WorkerListener, dispatch.h does the work, main owns all.
//
//   Relay relay(options, prompt_maker, &metrics);
//   ... make the worker links with &relay as their listener ...
//   relay.Run(links);
//   relay.BeginDrain();  while (relay.live() > 0) ...;  relay.Stop();
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "router/admission.h"
#include "router/core/handler.h"
#include "router/core/worker.h"
#include "router/dispatch.h"
#include "router/mailbox.h"
#include "router/metrics.h"
#include "router/prompt.h"
#include "services/clock.h"
#include "services/queue.h"

namespace phalanx::router {

struct RelayOptions {
  std::vector<std::string> served_names;      // at least one
  core::GenerationDefaults defaults;
  int32_t max_logprobs = 20;                  // -1 = all that the workers give
  AdmissionLimits admission;
  DispatchOptions dispatch;
  std::optional<uint64_t> seed;               // --seed: requests without one of their own draw from it in order of arrival
  int prompt_threads = 2;
  size_t prompt_queue_max = 4096;             // requests that wait to be encoded; more are refused
  std::chrono::milliseconds metrics_wait{500};  // for each worker's text
  // Told on the relay thread when requests can be served from now on, or no longer. May be null.
  std::function<void(bool)> on_ready;
};

class Relay final : public core::Handler, public core::WorkerListener {
 public:
  // `metrics` and `clock` outlive this.
  Relay(RelayOptions options, std::shared_ptr<const PromptMaker> prompts, RouterMetrics* metrics, const services::Clock* clock);
  ~Relay() override;  // stops

  // Starts the threads. The links, in the fleet's order, outlive Stop; what they have said before is heard now.
  void Run(std::vector<core::WorkerLink*> links);
  // From now on new requests are refused with kUnavailable; what is there runs on.
  void BeginDrain();
  // Requests in the router.
  int64_t live() const;
  // Ends what is left with kUnavailable and joins the threads. Idempotent.
  void Stop();

  core::Limits limits() const override;
  std::shared_ptr<core::Call> Start(core::ValidRequest request, std::shared_ptr<core::ReplySink> sink) override;
  absl::StatusOr<core::TokenizeResult> Tokenize(const core::Draft& draft) override;
  absl::StatusOr<std::string> Detokenize(const std::vector<int64_t>& ids) override;
  std::string Metrics() override;
  bool Ready() const override { return !draining_ && ready_workers_ > 0; }

  void OnUp(int worker, uint64_t epoch, core::WorkerInfo info) override;
  void OnBatch(int worker, uint64_t epoch, std::vector<core::WorkerEvent> events, const core::WorkerLoad& load) override;
  void OnDown(int worker, uint64_t epoch, absl::Status why) override;

 private:
  using Request = std::shared_ptr<Running>;
  struct PreparedNote {
    Request request;
    absl::StatusOr<PreparedRequest> prepared;  // an error ends the request
  };
  struct CancelNote { Request request; };
  struct ConsumedNote { Request request; };
  struct DrainNote {};
  struct UpNote {
    int worker;
    uint64_t epoch;
    core::WorkerInfo info;
  };
  struct BatchNote {
    int worker;
    uint64_t epoch;
    std::vector<core::WorkerEvent> events;
    core::WorkerLoad load;
  };
  struct DownNote {
    int worker;
    uint64_t epoch;
    absl::Status why;
  };
  using Note = std::variant<PreparedNote, CancelNote, ConsumedNote, DrainNote, UpNote, BatchNote, DownNote>;
  using Notes = Mailbox<Note>;
  class RunningCall;

  absl::Status Admit(Running& request);
  uint64_t NextSeed();
  void PromptLoop();
  void Loop();
  void Handle(PreparedNote&& note);
  void Handle(CancelNote&& note);
  void Handle(ConsumedNote&& note);
  void Handle(DrainNote&& note);
  void Handle(UpNote&& note);
  void Handle(BatchNote&& note);
  void Handle(DownNote&& note);
  void Ended(const Running& request, const absl::Status& status);
  void LogRequest(const Running& request, const absl::Status& status) const;
  void PublishLimits();
  void PublishReadiness();

  const RelayOptions options_;
  const std::shared_ptr<const PromptMaker> prompts_;
  RouterMetrics* const metrics_;
  const services::Clock* const clock_;
  const std::shared_ptr<Notes> notes_ = std::make_shared<Notes>();  // calls may outlive the relay
  services::Queue<Request> jobs_;
  std::vector<core::WorkerLink*> links_;
  std::unique_ptr<Dispatch> dispatch_;            // the relay thread's
  std::vector<std::thread> prompt_threads_;
  std::thread thread_;

  const uint64_t seed_base_;
  std::atomic<uint64_t> seeds_{0};
  std::atomic<bool> draining_{false}, stopping_{false};
  std::atomic<int> ready_workers_{0};
  std::unique_ptr<std::atomic<bool>[]> up_;       // by worker: its metrics can be asked for
  bool told_ready_ = false;                       // the relay thread's

  mutable std::mutex limits_mutex_;
  core::Limits limits_;                           // under limits_mutex_
  mutable std::mutex admission_mutex_;
  AdmissionState admitted_;                       // requests, choices and turn: under admission_mutex_
  FinishRate finish_rate_;                        // likewise
};

}  // namespace phalanx::router
