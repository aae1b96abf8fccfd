// router/openai/completions.h: POST /v1/completions: body to draft, reply parts to JSON or SSE.
// Refuses to know: gRPC, workers, tokenizers. Thread: ParseCompletion is pure; a writer belongs to one reply.
// Neighbours: sampling_fields (shared fields), reply_writer.h (the interface), router/rpc calls both.
#pragma once

#include <memory>
#include <string_view>

#include "router/openai/form.h"
#include "router/openai/reply_writer.h"
#include "services/status.h"

namespace phalanx::router::openai {

// Errors: kInvalidArgument with the field's name (core::FieldOf) and one clear sentence. Ranges are core::Validate's task.
absl::StatusOr<ParsedRequest> ParseCompletion(std::string_view body);

std::unique_ptr<ReplyWriter> MakeCompletionWriter(const ReplyForm& form, const ReplyHead& head, const WriteOptions& options);

}  // namespace phalanx::router::openai
