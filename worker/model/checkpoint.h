// worker/model/checkpoint.h: a checkpoint's tensors under Hugging Face names, whichever container holds them.
// Refuses to know: layers, devices. Thread: immutable after Open; ReadRows from any thread.
// Neighbours: formats opens the containers; weights.cc asks for tensors and rows.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "formats/gguf.h"
#include "formats/safetensors.h"
#include "worker/model/model.h"

namespace phalanx::worker::model {

// A tensor as the loader sees it: a matrix [rows, columns] in Hugging Face row order.
struct SourceTensor {
  const formats::TensorRange* range = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int32_t permuted_heads = 0;   // > 0: rows are interleaved per head as GGUF converters leave llama's q and k
};

class Checkpoint {
 public:
  // Errors: those of the container.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path, const ModelConfig& config);

  bool Has(std::string_view name) const { return tensors_.contains(name); }
  // The tensor `name` of exactly this shape ([n] counts as one row of n). Marks it as used.
  // Errors: kInvalidArgument naming file and tensor if it is missing or has another shape or an integer type.
  absl::StatusOr<SourceTensor> Expect(std::string_view name, const std::vector<int64_t>& shape);
  // kInvalidArgument naming the first tensor that nobody expected.
  absl::Status CheckAllUsed() const;
  void WillNeed() const;

  // Writes rows [begin, begin + count) of `tensor` as `dtype` (kBF16 or kF32); row i goes to `out` + i * `stride` elements.
  // `scratch` is grown to one row and may be reused.
  static void ReadRows(const SourceTensor& tensor, int64_t begin, int64_t count, kernels::DType dtype, void* out, int64_t stride,
                       std::vector<float>* scratch);

 private:
  Checkpoint() = default;
  absl::Status AddGgufNames(const ModelConfig& config);

  struct Entry {
    const formats::TensorRange* range;
    std::string file;
    int32_t permuted_heads = 0;
  };
  std::unique_ptr<formats::SafetensorsCheckpoint> safetensors_;
  std::unique_ptr<formats::GgufFile> gguf_;
  std::map<std::string, Entry, std::less<>> tensors_;   // by Hugging Face name
  std::set<std::string, std::less<>> used_;
  std::string path_;
};

}  // namespace phalanx::worker::model
