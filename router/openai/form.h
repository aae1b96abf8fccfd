// router/openai/form.h: what a body asked for: the draft of the request, and how its reply is to be written.
// Refuses to know: gRPC, workers, tokenizers. Thread: plain data.
// Neighbours: chat.h, completions.h and tokenize.h fill it; router/rpc passes it from the parser to the writer unread.
#pragma once

#include <cstdint>
#include <string>

#include "router/core/request.h"

namespace phalanx::router::openai {

// How the reply of one request is written. Nothing here changes what is generated.
struct ReplyForm {
  core::Kind kind = core::Kind::kChat;
  bool stream = false;
  bool include_usage = false;                // stream_options.include_usage: `usage` null in each chunk, one usage chunk at the end
  bool continuous_usage = false;             // stream_options.continuous_usage_stats: usage in every chunk
  bool logprobs = false;                     // write log-probabilities
  bool prompt_logprobs = false;              // write vLLM's prompt_logprobs field
  bool echo = false;                         // completions: the prompt comes before the text
  bool return_token_ids = false;             // vLLM: token_ids and prompt_token_ids
  bool tokens_as_ids = false;                // vLLM's return_tokens_as_token_ids: "token_id:17" in place of the token's text
  bool include_reasoning = true;             // chat: reasoning text is written
  std::string echo_message;                  // chat with echo: content of a last assistant message, written before the new content
};

struct ParsedRequest {
  core::Draft draft;
  ReplyForm form;
};

// The fields that are the same in all chunks of a reply.
struct ReplyHead {
  std::string id;                            // "chatcmpl-..." or "cmpl-...", see NewReplyId
  int64_t created = 0;                       // seconds since 1970
  std::string model;                         // the served name
  int32_t choices = 1;                       // prompts x n
};

enum class ReasoningField : uint8_t { kReasoningContent, kReasoning, kBoth };

// Switches of the server that change how every reply is written.
struct WriteOptions {
  ReasoningField reasoning_field = ReasoningField::kReasoningContent;
  bool prompt_tokens_details = false;        // --enable-prompt-tokens-details: cached_tokens in usage
  bool force_include_usage = false;          // --enable-force-include-usage
  std::string system_fingerprint;            // "" = null
};

}  // namespace phalanx::router::openai
