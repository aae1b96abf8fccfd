// router/rpc/translate.h: core's words for workers as messages of worker.proto, and back, with a check of what a worker says.
// Refuses to know: streams, which worker. Thread: pure functions. Neighbours: worker_client.cc; worker/rpc/translate is the other end.
#pragma once

#include <cstdint>
#include <vector>

#include "phalanx/worker/v1/worker.pb.h"
#include "router/core/worker.h"
#include "services/status.h"

namespace phalanx::router::rpc {

void ToProto(const core::Submission& submission, uint64_t epoch, worker::v1::Submit* out);

// Errors: kInternal for a worker that cannot be right (no vocabulary, no context, figures beyond int32).
absl::StatusOr<core::WorkerInfo> FromProto(const worker::v1::GetInfoResponse& in);

core::WorkerLoad FromProto(const worker::v1::Load& in);

// The events of `epoch`; those of others are left out. Errors: kInternal for what no worker may send: request 0, an id outside the
// vocabulary, another number of log-probabilities than of ids, an unknown finish reason. The peer is then not to be trusted.
absl::StatusOr<std::vector<core::WorkerEvent>> FromProto(const worker::v1::WorkerMessage& in, uint64_t epoch, int32_t vocab_size);

}  // namespace phalanx::router::rpc
