// router/openai/tokenize.h: POST /tokenize and /detokenize (vLLM's shapes).
// Refuses to know: tokenizers, templates. Thread: pure functions. Neighbours: router/rpc calls these around core::Handler.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "router/core/handler.h"
#include "router/core/request.h"
#include "services/status.h"

namespace phalanx::router::openai {

struct TokenizeForm {
  core::Draft draft;                         // kChat with messages_json, or kCompletion with one text prompt
  bool return_token_strs = false;
};
struct DetokenizeForm {
  std::string model;                         // "" = the served one
  std::vector<int64_t> tokens;
};

// Errors: kInvalidArgument with the field's name. Follow with core::ServedName (and core::CheckTokenIds for /detokenize).
absl::StatusOr<TokenizeForm> ParseTokenize(std::string_view body);
absl::StatusOr<DetokenizeForm> ParseDetokenize(std::string_view body);

std::string WriteTokenize(const core::TokenizeResult& result, bool return_token_strs);
std::string WriteDetokenize(std::string_view text);

}  // namespace phalanx::router::openai
