// worker/rpc/admit.h: the worker's own check of what comes over the wire: Submit -> core::Request, or a Status that names the field.
// Refuses to know: who sent it, what the engine does with it. Thread: any; pure.
// Neighbours: rpc/session calls it for every submission. There is no other way into the engine.
#pragma once

#include <cstdint>
#include <vector>

#include "phalanx/worker/v1/worker.pb.h"
#include "services/status.h"
#include "worker/core/request.h"

namespace phalanx::worker::rpc {

struct AdmitLimits {
  int32_t vocab_size = 0;             // ids must lie in [0, vocab_size)
  int32_t max_model_len = 0;          // prompt and resumed output must leave room for one token
  int32_t max_logprobs = 20;          // highest logprobs and prompt_logprobs
  std::vector<int32_t> eos_ids;       // the model's own end ids
};

// Errors: kInvalidArgument, the message begins with the field's name.
absl::StatusOr<core::Request> Admit(const v1::Submit& submit, const AdmitLimits& limits, core::SequenceId id);

}  // namespace phalanx::worker::rpc
