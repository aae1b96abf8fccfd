// formats/safetensors.h: strict reader of safetensors checkpoints: one file, or shards named by an index.
// Refuses to know: what the names mean. Thread: immutable after Open.
// Neighbours: worker/model takes tensors. Source: the safetensors format description (huggingface/safetensors README).
#pragma once

#include "formats/tensor_file.h"

namespace phalanx::formats {

class SafetensorsCheckpoint {
 public:
  // `path`: a .safetensors file or a folder holding model.safetensors or model.safetensors.index.json. Checks offsets, overlaps,
  // holes, overflow, dtypes, product(shape) x size = length, and that index and shards agree.
  // Errors: kNotFound; kInvalidArgument naming file and tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsCheckpoint>> Open(const std::string& path);

  // The same checks on one file that is already mapped or lies in memory.
  static absl::StatusOr<std::unique_ptr<SafetensorsCheckpoint>> Parse(std::shared_ptr<MappedFile> file);

  const std::map<std::string, TensorRange, std::less<>>& tensors() const { return tensors_; }
  // Asks the kernel to read all files ahead; does not wait.
  void WillNeed() const;
  // The file a tensor lies in, for error messages.
  const std::string& FileOf(std::string_view tensor) const;

 private:
  SafetensorsCheckpoint() = default;
  absl::Status AddFile(std::shared_ptr<MappedFile> file);
  absl::Status AddShards(const std::string& folder, const std::string& index_path);
  std::vector<std::shared_ptr<MappedFile>> files_;
  std::map<std::string, TensorRange, std::less<>> tensors_;
  std::map<std::string, size_t, std::less<>> file_of_;
};

}  // namespace phalanx::formats
