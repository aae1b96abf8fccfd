// worker/model/checkpoint.h: a checkpoint's tensors under Hugging Face names, whichever container holds them.
// Refuses to know: layers, devices. Thread: immutable after the last Expect; ReadRows from any thread.
// Neighbours: formats opens the containers, dummy.h makes weights up; weights.cc asks for tensors, stage.cc for rows.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "formats/gguf.h"
#include "formats/safetensors.h"
#include "worker/model/cut.h"
#include "worker/model/dummy.h"
#include "worker/model/model.h"

namespace phalanx::worker::model {

// A tensor as the loader sees it: a matrix [rows, columns] in Hugging Face row order; or a part of one.
struct SourceTensor {
  const formats::TensorRange* range = nullptr;   // null: made up
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t permuted_rows = 0;    // > 0: heads of so many rows are interleaved as GGUF converters leave llama's q and k
  uint64_t dummy_place = 0;     // of a made-up tensor, see dummy.h
  int64_t stored_columns = 0;   // of the whole matrix
  Cut row_cut;                  // where `rows` and `columns` lie in the whole matrix; what they have beyond it reads as zeros
  Cut column_cut;

  // The part of a whole tensor that is cut out.
  SourceTensor Part(const Cut& part_rows, const Cut& part_columns) const;
  // Orders tensors as they lie in their files.
  const char* place() const { return range == nullptr ? nullptr : range->bytes.data(); }
};

// Memory of one reading thread that is used again.
struct ReadScratch {
  std::vector<char> stored;
  std::vector<float> row;
};

class Checkpoint {
 public:
  // Errors: those of the container; kInvalidArgument if `format` is another container than `path` is.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path, const ModelConfig& config,
                                                          LoadFormat format = LoadFormat::kAuto);

  // A made-up checkpoint has whatever it is asked for.
  bool Has(std::string_view name) const { return dummy_ != nullptr || tensors_.contains(name); }
  // The tensor `name` of exactly this shape ([n] counts as one row of n). Marks it as used.
  // Errors: kInvalidArgument naming file and tensor if it is missing or has another shape or an integer type.
  absl::StatusOr<SourceTensor> Expect(std::string_view name, const std::vector<int64_t>& shape);
  // kInvalidArgument naming the first tensor that nobody expected.
  absl::Status CheckAllUsed() const;

  // Writes rows [begin, begin + count) of `tensor` as `dtype` (kBF16 or kF32); row i goes to `out` + i * `stride` elements. What is stored
  // as it is wanted is read straight to its place. Of a part only its own bytes are read; a cut through a quantised block reads that block
  // whole. Errors: kDataLoss naming the file.
  absl::Status ReadRows(const SourceTensor& tensor, int64_t begin, int64_t count, kernels::DType dtype, void* out, int64_t stride,
                        ReadScratch* scratch) const;

 private:
  Checkpoint() = default;
  SourceTensor ExpectDummy(std::string_view name, const std::vector<int64_t>& shape) const;
  absl::Status AddGgufNames(const ModelConfig& config);
  static absl::Status ReadStored(const SourceTensor& tensor, int64_t begin, int64_t count, kernels::DType dtype, char* out, int64_t stride,
                                 ReadScratch* scratch);

  struct Entry {
    const formats::TensorRange* range;
    std::string file;
    int32_t permuted_heads = 0;
  };
  std::unique_ptr<formats::SafetensorsCheckpoint> safetensors_;
  std::unique_ptr<formats::GgufFile> gguf_;
  std::unique_ptr<DummyValues> dummy_;
  std::map<std::string, Entry, std::less<>> tensors_;   // by Hugging Face name
  std::set<std::string, std::less<>> used_;
  std::string path_;
};

}  // namespace phalanx::worker::model
