// formats/tensor_file.h: a model file's named byte ranges and how they are encoded, whatever the container.
// Refuses to know: what the names mean. Thread: immutable after opening; any thread may read.
// Neighbours: safetensors.cc and gguf.cc make it, worker/model reads tensors, text reads a GGUF's metadata.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "services/status.h"

namespace phalanx::formats {

// Element encodings. The quantised ones are GGUF's blocks (sizes in gguf.cc).
enum class Encoding { kF32, kF16, kBF16, kI8, kU8, kI32, kI64, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ4_K, kQ5_K, kQ6_K };

const char* EncodingName(Encoding encoding);
// Bytes of `count` elements; count must be a multiple of the encoding's block (1, 32 or 256).
uint64_t EncodedBytes(Encoding encoding, uint64_t count);
// Elements of one block: 1, 32 or 256.
int BlockElements(Encoding encoding);

// Decodes `count` elements to fp32. Bit-equal to the published `gguf` package for the block encodings.
// Errors: kUnimplemented for integer encodings.
absl::Status DecodeToF32(Encoding encoding, const void* bytes, uint64_t count, float* out);

class MappedFile;

struct TensorRange {
  std::string name;
  Encoding encoding;
  std::vector<int64_t> shape;       // slowest dimension first, in both containers
  std::string_view bytes;           // memory-mapped; lives as long as the file
  const MappedFile* file = nullptr;  // that holds `bytes`
};

// Where rows are read to: row i at `data` + i * `stride` bytes.
struct RowTarget {
  char* data = nullptr;
  uint64_t row_bytes = 0;
  uint64_t stride = 0;              // >= row_bytes
};

// A read-only memory-mapped file.
class MappedFile {
 public:
  // Errors: kNotFound if there is none; kInvalidArgument if it is empty, no regular file, or cannot be read or mapped.
  static absl::StatusOr<std::shared_ptr<MappedFile>> Open(const std::string& path);
  // A file that lies in memory, copied to a buffer of exactly its size (so that a sanitizer sees any read past its end).
  static std::shared_ptr<MappedFile> FromBytes(std::string name, std::string_view bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  // Asks the kernel to read the file ahead; does not wait.
  void WillNeed() const;
  // Reads `rows` rows that lie one after another from `from` on, a place in bytes(). By system calls, in large pieces: a mapping costs a
  // page fault every few pages, and turns a file that has shrunk or a bad disk into a signal. Any thread; blocks.
  // Errors: kDataLoss naming the file.
  absl::Status ReadRows(const char* from, uint64_t rows, const RowTarget& to) const;
  std::string_view bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

 private:
  MappedFile() = default;
  std::string path_;
  std::string_view bytes_;
  int fd_ = -1;                     // of a mapped file
  std::unique_ptr<char[]> owned_;
};

}  // namespace phalanx::formats
