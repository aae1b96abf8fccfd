// text/impl.h: what the room's sources share: the library's handle, its status codes, and joining bytes into UTF-8.
// Refuses to know: files' formats. Thread: see text.h. Neighbours: private to text/.
#pragma once

#include <string>
#include <string_view>

#include "absl/strings/string_view.h"
#include "text/abi.h"
#include "text/text.h"

namespace phalanx::text {

inline PhxSlice Slice(std::string_view text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

// Debian's abseil has its own string_view; its StrCat takes no other.
inline absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

// Takes the library's bytes and frees them.
std::string TakeBytes(PhxBytes bytes);
// `where` names the file or is empty. Frees `error`.
absl::Status StatusOf(int32_t code, PhxBytes error, std::string_view where);
// The folder of a file.
std::string ParentOf(const std::string& path);
// Errors: kNotFound; kInvalidArgument above `max_bytes`.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes);
// A fixed limit on what is read from a model folder.
constexpr size_t kMaxTokenizerBytes = 256u << 20;

struct TokenizerData {
  TokenizerData() = default;
  TokenizerData(const TokenizerData&) = delete;
  TokenizerData& operator=(const TokenizerData&) = delete;
  ~TokenizerData() { phx_tokenizer_free(handle); }

  bool Known(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < vocab.size && (vocab.flags[id] & 1) != 0; }
  bool Special(int32_t id) const { return Known(id) && (vocab.flags[id] & 2) != 0; }
  std::string_view Piece(int32_t id) const { return At(vocab.bytes, vocab.ends, id); }
  std::string_view First(int32_t id) const { return At(vocab.first_bytes, vocab.first_ends, id); }
  std::string_view Name(int32_t id) const { return At(vocab.name_bytes, vocab.name_ends, id); }

  static std::string_view At(const uint8_t* bytes, const uint32_t* ends, int32_t id) {
    const uint32_t start = id == 0 ? 0 : ends[id - 1];
    return {reinterpret_cast<const char*>(bytes) + start, ends[id] - start};
  }

  PhxTokenizer* handle = nullptr;
  PhxVocab vocab = {};
  bool byte_fallback = false;   // some token stands for one byte
};

struct Tokenizer::Impl : TokenizerData {};

// Joins the bytes of tokens into valid UTF-8. Holds at most 3 bytes between calls.
class Utf8Joiner {
 public:
  // replace_each_byte: an unfinished or broken character becomes one U+FFFD a byte, else one for its maximal valid prefix.
  explicit Utf8Joiner(bool replace_each_byte) : replace_each_byte_(replace_each_byte) {}
  // Appends to `out` what is certain.
  void Append(std::string_view bytes, std::string* out);
  void Flush(std::string* out);

 private:
  void Scan(std::string_view bytes, std::string* out);
  void Replace(size_t bytes, std::string* out) const;

  bool replace_each_byte_;
  uint8_t held_size_ = 0;
  char held_[3] = {};
};

// One text's worth of decoding: which bytes each id adds, joined.
class TokenJoiner {
 public:
  TokenJoiner(const TokenizerData* data, Detokenizer::Options options);
  void Append(int32_t id, std::string* out);
  void Flush(std::string* out);

 private:
  void StripFirst(size_t start, std::string* out);

  const TokenizerData* data_;
  bool skip_special_;
  bool at_start_;
  uint32_t strip_left_;
  Utf8Joiner utf8_;
};

}  // namespace phalanx::text
