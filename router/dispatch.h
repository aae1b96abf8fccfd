// router/dispatch.h: every running request and the fleet: places sequences on workers, feeds what comes back to replies, survives losses.
// Refuses to know: threads, prompts' text, JSON. Thread: the relay's alone; no lock, no clock of its own. No call blocks.
// Neighbours: relay.h turns notes into calls, fleet/ and policy/ choose the worker, reply/ makes text, metrics.h counts.
//
// A sequence whose worker is lost goes to another (or to the same, restarted) with the ids that were received, apart from the prompt:
// the client sees a pause and then the very same tokens. Events of a stream that has ended, and of submissions given up, are dropped.
// A client that does not read stops its own sequences alone: they run out of credit.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "router/core/worker.h"
#include "router/fleet/fleet.h"
#include "router/metrics.h"
#include "router/running.h"

namespace phalanx::router {

struct DispatchOptions {
  int32_t credit_window = 512;                    // output tokens a streamed sequence may be ahead of its client; at least 2
  std::chrono::milliseconds resume_wait{5000};    // a sequence without a worker waits so long for one
  int losses_max = 2;                             // workers that may be lost under one request; then it ends with kUnavailable
};

class Dispatch {
 public:
  // `links` in the fleet's order. Links and metrics outlive this. `on_end` is told of each request right before its OnEnd.
  Dispatch(const DispatchOptions& options, std::vector<core::WorkerLink*> links, std::shared_ptr<const text::Tokenizer> tokenizer,
           RouterMetrics* metrics, std::function<void(const Running&, const absl::Status&)> on_end);

  // A request with its prompts as ids. If no worker is ready it ends with kUnavailable.
  void Begin(std::shared_ptr<Running> request, PreparedRequest prepared, services::Time now);
  // Ends a request in any state, begun or not, with `status`; its sequences are cancelled. Nothing if it has ended.
  void End(Running& request, const absl::Status& status, services::Time now);
  // The client has read on: more credit where it was held back.
  void Consumed(Running& request);

  // Errors: the worker serves something else than the fleet; it stays unready.
  absl::Status Up(int worker, uint64_t epoch, const core::WorkerInfo& info);
  void Batch(int worker, uint64_t epoch, std::vector<core::WorkerEvent> events, const core::WorkerLoad& load, services::Time now);
  void Down(int worker, uint64_t epoch, services::Time now);

  // Ends what has waited too long for a worker. Call at next_deadline().
  void Expire(services::Time now);
  std::optional<services::Time> next_deadline() const;
  void EndAll(const absl::Status& status, services::Time now);

  const fleet::Fleet& fleet() const { return fleet_; }
  size_t live() const { return live_.size(); }    // requests begun and not ended

 private:
  struct Address {
    Running* request;
    size_t choice;
  };

  void MakeChoices(Running& request);
  // False when no worker is ready.
  bool Place(Running& request, size_t choice);
  void Send(Running& request, size_t choice, int worker);
  // The choice has no worker any more; the worker is not told.
  void Forget(Choice& choice);
  void CancelAt(Choice& choice);

  void Take(Running& request, size_t choice, core::WorkerEvent& event, services::Time now);
  void Feed(Running& request, Choice& choice, core::WorkerEvent& event, services::Time now);
  void Started(Running& request, Choice& choice, const core::WorkerEvent& event);
  void Lose(Running& request);
  void Touch(Running& request);
  // What this batch brought, to every request it touched.
  void Flush(services::Time now);
  void PlaceHomeless(Running& request);
  void Grant(Running& request, Choice& choice);
  void RecordChoice(const Running& request, const Choice& choice, FinishedReason reason, services::Time now);
  void RecordPrompts(const Running& request);

  const DispatchOptions options_;
  const std::vector<core::WorkerLink*> links_;
  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  RouterMetrics* const metrics_;
  const std::function<void(const Running&, const absl::Status&)> on_end_;
  fleet::Fleet fleet_;
  uint64_t next_id_ = 1;
  uint64_t turn_ = 0;
  std::unordered_map<Running*, std::shared_ptr<Running>> live_;
  absl::flat_hash_map<uint64_t, Address> by_id_;  // submissions at workers
  std::vector<Running*> touched_;                 // by the batch in hand
  std::unordered_map<Running*, services::Time> homeless_;  // have a choice that waits for a worker, until then
};

}  // namespace phalanx::router
