// router/rpc/parse.h: the native messages as drafts.
// Refuses to know: limits and defaults (core::Validate), streams. Thread: pure functions.
// Neighbours: inference_service.cc calls these; router/openai does the same for JSON bodies.
#pragma once

#include "phalanx/v1/inference.pb.h"
#include "router/core/request.h"
#include "services/status.h"

namespace phalanx::router::rpc {

// Errors: kInvalidArgument with the field's name (core::FieldOf). Ranges are core::Validate's task.
absl::StatusOr<core::Draft> ParseChat(const v1::ChatRequest& request);
absl::StatusOr<core::Draft> ParseComplete(const v1::CompleteRequest& request);
core::Draft ParseTokenize(const v1::TokenizeRequest& request);

}  // namespace phalanx::router::rpc
