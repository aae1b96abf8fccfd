// worker/rpc/translate.h: core's answers as messages of worker.proto.
// Refuses to know: streams, which router. Thread: any; pure.
// Neighbours: rpc/session and rpc/worker_service send what this makes.
#pragma once

#include "phalanx/worker/v1/worker.pb.h"
#include "worker/core/request.h"

namespace phalanx::worker::rpc {

// Fills everything but request_id, epoch and output_tokens, which belong to the router's claim. `want_logprobs` says whether the
// request asked for log-probabilities of its output.
void ToProto(const core::SequenceEvent& event, bool want_logprobs, v1::SequenceEvent* out);
void ToProto(const core::LoadReport& load, v1::Load* out);

}  // namespace phalanx::worker::rpc
