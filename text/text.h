// text/text.h: text in and out of token ids: tokenizer, incremental detokenizer, chat template, over the Rust library's C ABI.
// Refuses to know: HTTP, batches, devices. Thread: Tokenizer and ChatTemplate are immutable and shared by threads;
// a Detokenizer belongs to one sequence. Neighbours: router renders and encodes, router/reply decodes, formats reads a GGUF.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "services/status.h"

namespace phalanx::text {

enum class SpecialTokens { kAdd, kNone };

class Tokenizer {
 public:
  // `path`: a model folder (tokenizer.json [+ tokenizer_config.json]), a tokenizer.json, or a .gguf file.
  // Errors: kNotFound, kInvalidArgument (names the file and what is wrong), kUnimplemented (unknown GGUF pre-tokenizer, by name).
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Load(const std::string& path);
  ~Tokenizer();

  // Errors: kInvalidArgument on invalid UTF-8.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view utf8, SpecialTokens special) const;
  // Whole decode of ids, as HF `decode(ids, skip_special_tokens)`. Unknown ids decode to nothing. One difference: a run of
  // byte-fallback tokens that mixes whole characters with invalid bytes keeps the characters (the library gives up the whole
  // run, which no stream could know in time).
  std::string Decode(const std::vector<int32_t>& ids, bool skip_special) const;

  int32_t vocab_size() const;                                   // ids are in [0, vocab_size), added tokens included
  std::string_view TokenBytes(int32_t id) const;                // raw bytes of one token; empty for unknown ids
  std::string TokenText(int32_t id) const;                      // for logprobs: the token's bytes as UTF-8 with U+FFFD for invalid parts
  bool IsSpecial(int32_t id) const;
  std::optional<int32_t> IdOf(std::string_view token) const;    // exact content of a token or added token
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::string bos_token() const;                                // "" if none
  std::string eos_token() const;

 private:
  friend class Detokenizer;
  friend class ChatTemplate;
  friend class GrammarEnv;
  Tokenizer();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Text of generated ids, chunk by chunk, never splitting a character. Joined chunks equal Decode of all ids.
class Detokenizer {
 public:
  struct Options {
    bool skip_special = true;
    // The ids follow a prompt: a decoder that strips the first space of a text (Llama 2, Mistral v1) keeps it here.
    bool after_prompt = false;
  };
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, Options options);
  ~Detokenizer();
  Detokenizer(Detokenizer&&) noexcept;
  // The text that is now certain; may be empty (a character is not complete: at most 3 bytes are held).
  std::string Append(int32_t id);
  // What was held back, with U+FFFD for an unfinished character. The detokenizer is then empty.
  std::string Flush();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What a template sees. JSON texts are passed as they are (key order kept); empty = None for tools. Changed on the way in:
// tool-call arguments given as JSON strings become objects; absent or null content becomes ""; content parts become one string
// joined by newlines where the template only takes strings (other types than text are refused).
struct TemplateInput {
  std::string messages_json;               // array of message objects
  std::string tools_json;                  // array or empty
  std::string kwargs_json;                 // object or empty: chat_template_kwargs; may not overwrite internal names
  bool add_generation_prompt = true;
  bool continue_final_message = false;
};

class ChatTemplate {
 public:
  struct Options {
    std::string override_path;             // --chat-template: a file, or the template text itself
    std::function<int64_t()> unix_time;    // clock of strftime_now; null = now
  };
  // Looks in vLLM's order: override, chat_template.jinja, chat_template.json, tokenizer_config.json, GGUF metadata. kNotFound if none.
  static absl::StatusOr<std::shared_ptr<const ChatTemplate>> Load(const std::string& model_path, const Tokenizer& tokenizer,
                                                                  const Options& options);
  ~ChatTemplate();
  // Equal to Python jinja2 as transformers sets it up, byte for byte. Errors: kInvalidArgument with raise_exception's text or the
  // template's own error, kResourceExhausted when fuel or the output cap is spent.
  absl::StatusOr<std::string> Render(const TemplateInput& input) const;

 private:
  ChatTemplate();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::text
