// text/grammar.h: constrained output: which tokens may follow, by a JSON schema, a regex, a list of choices or a Lark grammar.
// Refuses to know: sampling, batches, requests. Thread: GrammarEnv is immutable and shared; a Matcher belongs to one sequence.
// Neighbours: worker fills mask rows with it; compile off the engine's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "services/status.h"
#include "text/text.h"

namespace phalanx::text {

enum class GrammarKind { kJsonSchema, kJsonObject, kRegex, kChoice, kLark };

class Matcher {
 public:
  Matcher(Matcher&& other) noexcept;
  Matcher& operator=(Matcher&& other) noexcept;
  ~Matcher();

  // mask: mask_words() words; bit id % 32 of word id / 32 is set if the token may come next (only end tokens once it has ended).
  // Where the grammar leaves one text only, the mask shows that text's usual token; Accept takes its other spellings too.
  // Errors: kInvalidArgument when a limit of work is reached; the matcher is then dead.
  absl::Status FillMask(uint32_t* mask);
  // Errors: kInvalidArgument if the token is not allowed (nothing changes) or the matcher is dead.
  absl::Status Accept(int32_t id);
  bool may_end() const;
  bool has_ended() const;                  // nothing but an end token can follow, or one has come
  size_t mask_words() const { return words_; }

 private:
  friend class GrammarEnv;
  Matcher(void* handle, size_t words) : handle_(handle), words_(words) {}
  void* handle_;
  size_t words_;
};

// A vocabulary prepared for grammars. Building one takes some 100 ms.
class GrammarEnv {
 public:
  // logits_width: columns of the model's logits, at least the vocabulary's size; the columns in between are never allowed.
  // end_ids: every id that ends a reply; at least one.
  static absl::StatusOr<std::shared_ptr<const GrammarEnv>> Create(std::shared_ptr<const Tokenizer> tokenizer, int32_t logits_width,
                                                                  const std::vector<int32_t>& end_ids);
  ~GrammarEnv();
  // source: a schema's JSON, a regex, a JSON array of strings, or a Lark grammar; ignored for kJsonObject.
  // Errors: kInvalidArgument with the reason when the grammar is malformed, not supported or too large.
  absl::StatusOr<Matcher> Compile(GrammarKind kind, std::string_view source) const;

 private:
  GrammarEnv() = default;
  std::shared_ptr<const Tokenizer> tokenizer_;
  void* handle_ = nullptr;
  size_t words_ = 0;
};

}  // namespace phalanx::text
