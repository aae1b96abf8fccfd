// worker/core/mailbox.h: what a door may ask of the engine, and what the engine tells its door after each step.
// Refuses to know: gRPC, who the clients are, how a step is planned. Thread: Mailbox from any thread, no call blocks.
// Neighbours: worker/engine implements Mailbox and produces StepReport, worker/rpc uses both, main introduces them.
#pragma once

#include <cstdint>
#include <vector>

#include "services/status.h"
#include "worker/core/request.h"

namespace phalanx::worker::core {

class Mailbox {
 public:
  virtual ~Mailbox() = default;
  // Hands over a checked request. Everything later comes as SequenceEvents. Errors: kResourceExhausted (the waiting queue is full),
  // kInvalidArgument (it could never run here), kUnavailable (draining or stopped).
  virtual absl::Status Submit(Request request) = 0;
  // Ends a sequence at the next step boundary with kAbort; ignored when it is unknown or already finished.
  virtual void Cancel(SequenceId id) = 0;
  // Lets the sequence emit `tokens` more; ignored when it is unknown or unlimited.
  virtual void AddCredit(SequenceId id, uint32_t tokens) = 0;
  // From now on Submit refuses; what is there runs on.
  virtual void BeginDrain() = 0;
};

// What one step brought. Sent after every step, at once for aborts between steps, and once a second when idle.
struct StepReport {
  uint64_t step = 0;
  std::vector<SequenceEvent> events;
  LoadReport load;
};

}  // namespace phalanx::worker::core
