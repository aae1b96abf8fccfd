// router/core/reply.h: what is said back to a client, as plain data: pieces of text of one choice, then its end.
// Refuses to know: JSON, SSE, protobuf, workers. Thread: plain data.
// Neighbours: router/reply makes parts out of token ids, the doors write them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace phalanx::router::core {

// One token with its log-probability and its alternatives; `bytes` is the token's raw bytes.
struct TokenLogprob {
  int32_t id = 0;
  std::string bytes;
  float logprob = 0;
  int32_t rank = 0;                        // 1-based place among all tokens
  bool has_logprob = true;                 // false: the first prompt token
  struct Top {
    int32_t id = 0;
    std::string bytes;
    float logprob = 0;
  };
  std::vector<Top> top;                    // best first
  int64_t text_offset = 0;                 // UTF-8 characters before this token in prompt + output text
};

enum class Finish : uint8_t { kNone, kStop, kLength };

// New output of one choice. Parts of one choice come in order; `index` runs over prompts x n.
struct ReplyPart {
  int32_t index = 0;
  std::string text;                        // content
  std::string reasoning;                   // reasoning text
  std::vector<int32_t> ids;                // tokens behind this part (for native clients)
  std::vector<TokenLogprob> logprobs;
  std::vector<TokenLogprob> prompt_logprobs;  // with the choice's first part, when asked for (echo)
  std::vector<int32_t> prompt_ids;         // with the choice's first part, when return_token_ids was asked for
  std::string echo_text;                   // the prompt's text, with the first part of a completion with echo
  Finish finish = Finish::kNone;
  std::string stop_string;                 // the stop string that matched
  int32_t stop_token = -1;                 // or the request's own stop id
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;
  int32_t reasoning_tokens = 0;
  int32_t cached_tokens = 0;
};

}  // namespace phalanx::router::core
