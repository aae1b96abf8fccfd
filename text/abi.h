// text/abi.h: the C functions of the Rust static library (text/src). A test compares this file with the library's symbols.
// Refuses to know: files, sequences. Thread: handles are immutable and shared by threads, except a matcher (one sequence's).
// Neighbours: text.cc, template.cc and grammar.cc; no other room includes it.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// Every call that can fail returns one of these and, unless kPhxOk, may fill `error` (free it).
enum PhxStatus : int32_t {
  kPhxOk = 0,
  kPhxInvalid = 1,         // the caller's input
  kPhxLimit = 2,           // a limit of work or size was reached
  kPhxInternal = 3,        // a panic or a bug
  kPhxUnimplemented = 4,   // a feature that is known and not supported
  kPhxNotFound = 5,
};

// Borrowed input. Never NUL-terminated; may hold NUL bytes.
struct PhxSlice {
  const uint8_t* data;
  size_t size;
};

// Bytes owned by the library.
struct PhxBytes {
  uint8_t* data;
  size_t size;
};

struct PhxTokenizer;
struct PhxTemplate;
struct PhxGrammarEnv;
struct PhxMatcher;

// The vocabulary, borrowed from a tokenizer. String i of a table ends at ends[i] and starts where string i - 1 ends.
struct PhxVocab {
  size_t size;                 // ids are [0, size)
  const uint8_t* bytes;        // what a token adds to the text
  const uint32_t* ends;
  const uint8_t* first_bytes;  // the same at the start of a text
  const uint32_t* first_ends;
  const uint8_t* name_bytes;   // the token as the vocabulary spells it
  const uint32_t* name_ends;
  const uint8_t* flags;        // 1 known, 2 special, 4 byte-fallback
  int64_t bos_id;              // -1: none
  int64_t eos_id;
  uint32_t strip_count;        // leading strip_char that a whole text loses
  uint32_t strip_char;
  uint32_t join_with_space;    // no decoder: tokens are joined with one space
};

struct PhxRenderInput {
  PhxSlice messages;           // JSON array
  PhxSlice tools;              // JSON array, or empty
  PhxSlice kwargs;             // JSON object, or empty
  int32_t add_generation_prompt;
  int32_t continue_final_message;
  int64_t unix_time;           // seconds; what strftime_now shows
};

enum PhxGrammarKind : int32_t {
  kPhxJsonSchema = 0,
  kPhxJsonObject = 1,
  kPhxRegex = 2,
  kPhxChoice = 3,              // JSON array of strings
  kPhxLark = 4,
};

uint32_t phx_text_abi_version();
void phx_text_free_bytes(PhxBytes bytes);
void phx_text_free_ids(uint32_t* ids, size_t count);

// json: a tokenizer.json; config: a tokenizer_config.json, or empty.
int32_t phx_tokenizer_load(PhxSlice json, PhxSlice config, PhxTokenizer** out, PhxBytes* error);
void phx_tokenizer_free(PhxTokenizer* tokenizer);
int32_t phx_tokenizer_encode(const PhxTokenizer* tokenizer, PhxSlice text, int32_t add_special, uint32_t** ids, size_t* count,
                             PhxBytes* error);
int64_t phx_tokenizer_id(const PhxTokenizer* tokenizer, PhxSlice token);  // -1: no such token
void phx_tokenizer_vocab(const PhxTokenizer* tokenizer, PhxVocab* out);

// source: a template's text, or (is_config) a JSON object with a chat_template. kPhxNotFound if that has none.
int32_t phx_template_load(const PhxTokenizer* tokenizer, PhxSlice source, int32_t is_config, PhxTemplate** out, PhxBytes* error);
void phx_template_free(PhxTemplate* chat_template);
int32_t phx_template_render(const PhxTemplate* chat_template, const PhxRenderInput* input, PhxBytes* out, PhxBytes* error);

int32_t phx_grammar_env_new(const PhxTokenizer* tokenizer, size_t logits_width, const uint32_t* end_ids, size_t end_count,
                            PhxGrammarEnv** out, PhxBytes* error);
void phx_grammar_env_free(PhxGrammarEnv* env);
int32_t phx_matcher_new(const PhxGrammarEnv* env, int32_t kind, PhxSlice source, PhxMatcher** out, PhxBytes* error);
void phx_matcher_free(PhxMatcher* matcher);
// mask: bit id % 32 of word id / 32 is set if the token may follow; words = ceil(logits_width / 32).
int32_t phx_matcher_mask(PhxMatcher* matcher, uint32_t* mask, size_t words, PhxBytes* error);
int32_t phx_matcher_accept(PhxMatcher* matcher, uint32_t id, PhxBytes* error);
int32_t phx_matcher_state(PhxMatcher* matcher);  // 0 more must follow, 1 may end, 2 has ended, -1 failed

}  // extern "C"
