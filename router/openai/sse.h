// router/openai/sse.h: the frame of a server-sent event stream and its end.
// Refuses to know: what an event holds. Thread: pure functions. Neighbours: the stream writers.
#pragma once

#include <string>

#include "router/openai/error.h"

namespace phalanx::router::openai {

inline constexpr char kEventStream[] = "text/event-stream";
inline constexpr char kEventStart[] = "data: ";
inline constexpr char kEventEnd[] = "\n\n";
inline constexpr char kDone[] = "data: [DONE]\n\n";

// The end of a stream that had begun and failed: one error event, then [DONE]. Clients raise on the event's `error` key.
inline void AppendErrorEvent(const absl::Status& status, std::string* out) {
  out->append(kEventStart).append(ToErrorReply(status).body).append(kEventEnd).append(kDone);
}

}  // namespace phalanx::router::openai
