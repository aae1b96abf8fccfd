// router/prompt.h: what a client wrote becomes token ids: chat template, tokenizer, truncation, length check, bad words.
// Refuses to know: workers, JSON, which door asked. Thread: immutable; Prepare runs on the tokenizer threads, Tokenize on any.
// Neighbours: relay.h calls it, text/ renders and encodes, running.h keeps what it made.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "router/core/handler.h"
#include "services/status.h"
#include "text/text.h"

namespace phalanx::router {

// One prompt, ready to be sent to a worker as often as the request has choices of it.
struct PreparedPrompt {
  std::shared_ptr<const std::vector<int32_t>> ids;  // never empty
  std::string echo_text;                            // completions with echo: the prompt's text
  bool opens_reasoning = false;                     // chat: the rendered text ends inside an open <think>
  int32_t max_tokens = 1;                           // of each choice, at least 1; prompt and output fit the context
};

struct PreparedRequest {
  std::vector<PreparedPrompt> prompts;
  std::vector<std::vector<int32_t>> bad_words;      // id sequences that must not be completed
};

// Of the model now served, as the workers report it; 0 = not known, then it is not checked.
struct PromptLimits {
  int32_t max_model_len = 0;
  int32_t vocab_size = 0;
};

class PromptMaker {
 public:
  // `chat_template` null: the model has none, and chat requests are refused.
  PromptMaker(std::shared_ptr<const text::Tokenizer> tokenizer, std::shared_ptr<const text::ChatTemplate> chat_template);

  // Errors: kInvalidArgument that names the field: a template that fails, invalid UTF-8, an empty prompt, ids outside the vocabulary;
  // with code context_length_exceeded when prompt and output do not fit.
  absl::StatusOr<PreparedRequest> Prepare(const core::ValidRequest& request, const PromptLimits& limits) const;

  // The ids of a draft with one prompt or with messages, without any length check.
  absl::StatusOr<std::vector<int32_t>> Encode(const core::Draft& draft) const;

  const std::shared_ptr<const text::Tokenizer>& tokenizer() const { return tokenizer_; }

 private:
  struct Encoded {
    std::vector<int32_t> ids;
    std::string text;                               // rendered or given; empty for a prompt of ids
    bool special_added = false;
  };
  absl::StatusOr<Encoded> EncodeChat(const core::Draft& draft) const;
  absl::StatusOr<Encoded> EncodePrompt(const core::Draft& draft, const core::Prompt& prompt) const;
  // Keeps the last ids, and the tokenizer's own first token if it put one there.
  void Truncate(int64_t keep, Encoded* encoded) const;
  absl::StatusOr<PreparedPrompt> Finish(const core::ValidRequest& request, const PromptLimits& limits, Encoded encoded) const;
  absl::StatusOr<std::vector<std::vector<int32_t>>> BadWords(const std::vector<std::string>& words) const;

  std::shared_ptr<const text::Tokenizer> tokenizer_;
  std::shared_ptr<const text::ChatTemplate> template_;
};

// Output tokens of each choice of a prompt of `prompt_tokens`. Errors: kInvalidArgument, code context_length_exceeded.
absl::StatusOr<int32_t> OutputBudget(const core::ValidRequest& request, int64_t prompt_tokens, int32_t max_model_len);

}  // namespace phalanx::router
