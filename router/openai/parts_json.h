// router/openai/parts_json.h: the JSON of what chat and text replies share: usage, log-probabilities, ids, finish reasons.
// Refuses to know: SSE, order of chunks. Thread: pure functions. Neighbours: the writers in chat_write.cc and completions_write.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "router/core/reply.h"
#include "router/openai/form.h"

namespace phalanx::router::openai {

// {"prompt_tokens":..,"total_tokens":..,"completion_tokens":..} and the details that the server or the reply has.
void AppendUsage(const core::Usage& usage, const WriteOptions& options, std::string* out);

// [1,2,3]
void AppendIds(const std::vector<int32_t>& ids, std::string* out);

// "stop", "length" or null.
void AppendFinish(core::Finish finish, std::string* out);
// The stop string, the request's own stop id, or null.
void AppendStopReason(const std::string& stop_string, int32_t stop_token, std::string* out);

// Items of a chat's logprobs.content, comma-separated, without brackets. A comma comes first if `out` does not end with '['.
void AppendChatLogprobs(const std::vector<core::TokenLogprob>& tokens, bool as_ids, std::string* out);

// A completion's logprobs object as four growing lists.
class CompletionLogprobs {
 public:
  void Append(const std::vector<core::TokenLogprob>& tokens, bool as_ids);
  void WriteTo(std::string* out) const;  // {"text_offset":[..],"token_logprobs":[..],"tokens":[..],"top_logprobs":[..]}

 private:
  std::string offsets_, logprobs_, tokens_, tops_;
};

// vLLM's prompt_logprobs: [null,{"17":{"logprob":-1.5,"rank":3,"decoded_token":"a"},...},...]
void AppendPromptLogprobs(const std::vector<core::TokenLogprob>& tokens, std::string* out);

}  // namespace phalanx::router::openai
