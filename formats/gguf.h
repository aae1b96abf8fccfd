// formats/gguf.h: strict reader of GGUF v3 files: metadata and tensor ranges.
// Refuses to know: what keys and names mean. Thread: immutable after Open.
// Neighbours: worker/model takes tensors and the architecture's numbers, text the tokenizer and the chat template.
// Source: the GGUF specification, version 3.
#pragma once

#include "formats/tensor_file.h"

namespace phalanx::formats {

// A metadata value. All integer types widen to int64 (uint64 above 2^63 - 1 is refused), f32 and f64 to double.
using GgufValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>, std::vector<double>, std::vector<bool>,
                               std::vector<std::string>>;

class GgufFile {
 public:
  // Checks everything before use: magic, version, counts, lengths, overflow, alignment, overlaps, ranges inside the file.
  // Errors: kNotFound, kInvalidArgument naming the file and the key or tensor, kUnimplemented naming a tensor type.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  // The same checks on a file that is already mapped or lies in memory.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Parse(std::shared_ptr<MappedFile> file);

  const std::string& path() const { return file_->path(); }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const std::map<std::string, TensorRange, std::less<>>& tensors() const { return tensors_; }

  // Typed look-ups. kNotFound names the key; kInvalidArgument if it has another type. FindX returns null if absent.
  absl::StatusOr<int64_t> GetInt(std::string_view key) const;
  absl::StatusOr<double> GetFloat(std::string_view key) const;      // accepts integers
  absl::StatusOr<std::string> GetString(std::string_view key) const;
  const GgufValue* Find(std::string_view key) const;

 private:
  GgufFile() = default;
  std::shared_ptr<MappedFile> file_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::map<std::string, TensorRange, std::less<>> tensors_;
};

}  // namespace phalanx::formats
