// router/core/request.h: what a client asked, whichever door it came through, as plain data.
// Refuses to know: JSON, protobuf, gRPC. Thread: plain data.
// Neighbours: router/openai and router/rpc make drafts, validate.h turns a draft into a ValidRequest, the relay runs it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace phalanx::router::core {

// nullopt = the client did not say; the server's defaults (generation_config.json, then OpenAI's) fill it in.
struct SamplingDraft {
  std::optional<double> temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
  std::optional<int64_t> top_k, seed, n, max_tokens, min_tokens;
  std::optional<int64_t> logprobs;          // unset = none, 0 = chosen only, N = top N
  std::optional<int64_t> prompt_logprobs;
  std::vector<std::pair<int64_t, double>> logit_bias;
  std::vector<int64_t> allowed_token_ids, stop_token_ids;
  std::vector<std::string> bad_words, stop;
  bool ignore_eos = false;
  bool include_stop_in_output = false;
  bool skip_special_tokens = true;
};

// The prompt of a completion: text or ids. One entry per prompt.
using Prompt = std::variant<std::string, std::vector<int64_t>>;

enum class Kind { kChat, kCompletion };

struct Draft {
  Kind kind = Kind::kChat;
  std::string request_id;                   // for logs and headers
  std::string model;                        // "" = the served model
  // chat
  std::string messages_json;                // checked array of message objects, kept as text for the template
  std::string tools_json;                   // "" = none
  std::string template_kwargs_json;         // "" = none
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  bool include_reasoning = true;
  // completion
  std::vector<Prompt> prompts;
  bool echo = false;
  std::optional<bool> add_special_tokens;   // false for chat, true for completions
  std::optional<int64_t> truncate_prompt_tokens;
  std::string cache_salt;
  int64_t priority = 0;
  bool stream = false;
  bool return_token_ids = false;            // vLLM: parts carry ids, the first one the prompt's ids too
  SamplingDraft sampling;
};

}  // namespace phalanx::router::core
