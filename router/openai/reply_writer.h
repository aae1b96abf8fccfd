// router/openai/reply_writer.h: one reply on its way to the client: parts in, bytes of JSON or SSE out.
// Refuses to know: gRPC, workers, tokenizers. Thread: one caller at a time. Neighbours: chat.cc and completions.cc implement it,
// router/rpc holds one per request and sends what it appends.
//
//   auto writer = MakeReplyWriter(form, head, options);
//   OnParts:  std::string out;  writer->Write(parts, so_far, &out);  if (!out.empty()) Send(out);
//   OnEnd:    std::string out;  FinishedReply end = writer->Finish(status, usage, &out);
//             if nothing was sent: set x-http-code to end.http_code and retry-after; Send(out);  end the RPC with OK.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "router/core/reply.h"
#include "router/openai/form.h"
#include "services/status.h"

namespace phalanx::router::openai {

// Headers of a reply of which nothing has been sent before Finish. Meaningless for a stream that has begun (200 is on the wire).
struct FinishedReply {
  int http_code = 200;
  int retry_after_s = 0;                     // 0 = no header
  bool should_retry = true;                  // false: send "x-should-retry: false"
  const char* content_type = "application/json";
};

class ReplyWriter {
 public:
  virtual ~ReplyWriter() = default;
  // Appends what the client gets now. A plain reply appends nothing; it is kept until Finish.
  virtual void Write(const std::vector<core::ReplyPart>& parts, const core::Usage& so_far, std::string* out) = 0;
  // Appends the rest, once: the whole plain reply; or the stream's end (usage chunk, [DONE]); or the error, as a body when nothing has
  // been appended before, else as an error event and [DONE].
  virtual FinishedReply Finish(const absl::Status& status, const core::Usage& usage, std::string* out) = 0;
  // "text/event-stream" or "application/json": of what Write appends.
  virtual const char* content_type() const = 0;
};

// The writer for form.kind.
std::unique_ptr<ReplyWriter> MakeReplyWriter(const ReplyForm& form, const ReplyHead& head, const WriteOptions& options);

// "chatcmpl-<request_id>" or "cmpl-<request_id>".
std::string NewReplyId(core::Kind kind, const std::string& request_id);

}  // namespace phalanx::router::openai
