#include "worker/model/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/check.h"
#include "worker/model/convert.h"
#include "worker/model/family.h"
#include "worker/model/fields.h"

namespace phalanx::worker::model {
namespace {

using formats::Encoding;

constexpr std::pair<std::string_view, std::string_view> kGgufTop[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

// Stems after "blk.N." and after "model.layers.N.".
constexpr std::pair<std::string_view, std::string_view> kGgufLayer[] = {
    {"attn_norm", "input_layernorm"},          {"attn_q", "self_attn.q_proj"},       {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},            {"attn_output", "self_attn.o_proj"},  {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},       {"ffn_norm", "post_attention_layernorm"}, {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},                 {"ffn_down", "mlp.down_proj"},
};

// Tensors that older checkpoints carry and nobody needs.
bool IsHarmless(std::string_view name) { return name.ends_with(".self_attn.rotary_emb.inv_freq"); }

// The Hugging Face name of a GGUF tensor; a name without one keeps its own (and is later refused as unexpected).
std::string HfName(std::string_view name) {
  for (const auto& [gguf, hf] : kGgufTop) {
    if (name == gguf) return std::string(hf);
  }
  std::string_view rest = name;
  if (!rest.starts_with("blk.")) return std::string(name);
  rest.remove_prefix(4);
  const size_t dot = rest.find('.');
  const size_t last = rest.rfind('.');
  if (dot == std::string_view::npos || last == dot) return std::string(name);
  for (const auto& [gguf, hf] : kGgufLayer) {
    if (rest.substr(dot + 1, last - dot - 1) == gguf) {
      return "model.layers." + std::string(rest.substr(0, dot)) + "." + std::string(hf) + std::string(rest.substr(last));
    }
  }
  return std::string(name);
}

SourceTensor MatrixOf(int64_t rows, int64_t columns) {
  SourceTensor tensor;
  tensor.rows = rows;
  tensor.columns = tensor.stored_columns = columns;
  tensor.row_cut = Whole(rows);
  tensor.column_cut = Whole(columns);
  return tensor;
}

// One-dimensional tensors count as one row.
SourceTensor ShapeOf(const std::vector<int64_t>& shape) { return MatrixOf(shape.size() == 1 ? 1 : shape[0], shape.back()); }

void StoreRow(const float* row, int64_t columns, kernels::DType dtype, void* out, int64_t at) {
  if (dtype == kernels::kF32) {
    std::memcpy(static_cast<float*>(out) + at, row, columns * sizeof(float));
    return;
  }
  auto* to = static_cast<uint16_t*>(out) + at;
  for (int64_t i = 0; i < columns; ++i) to[i] = ToBf16(row[i]);
}

// Rows [begin, end) of the file.
struct RowRange {
  int64_t begin;
  int64_t end;
};

// What must be read for the rows [begin, end) of Hugging Face's order: whole heads where these are interleaved.
RowRange FileRows(const SourceTensor& tensor, int64_t begin, int64_t end) {
  const int64_t head = tensor.permuted_rows;
  if (head == 0) return {begin, end};
  return {begin / head * head, (end + head - 1) / head * head};
}

// Where Hugging Face's row lies in the file: GGUF interleaves the two halves of each head.
int64_t FileRow(const SourceTensor& tensor, int64_t row) {
  if (tensor.permuted_rows == 0) return row;
  const int64_t in_head = row % tensor.permuted_rows;
  const int64_t half = tensor.permuted_rows / 2;
  return row - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
}

// The bytes of a tensor's columns within each stored row, whole blocks of them.
struct ColumnBytes {
  uint64_t row_bytes;   // a whole stored row
  uint64_t first;       // of the row's bytes
  uint64_t count;
  int64_t elements;     // in these bytes
  int64_t skipped;      // of the elements, before the first wanted one
};

ColumnBytes BytesOfColumns(const SourceTensor& tensor) {
  const formats::Encoding encoding = tensor.range->encoding;
  const int64_t block = formats::BlockElements(encoding);
  const int64_t from = tensor.column_cut.first / block * block;
  const int64_t end = (tensor.column_cut.first + tensor.column_cut.count + block - 1) / block * block;
  return {formats::EncodedBytes(encoding, tensor.stored_columns), formats::EncodedBytes(encoding, from),
          formats::EncodedBytes(encoding, end - from), end - from, tensor.column_cut.first - from};
}

// Reads the tensor's columns of `count` rows from row `row` of the file on.
absl::Status ReadFile(const SourceTensor& tensor, const ColumnBytes& columns, int64_t row, int64_t count, char* out, uint64_t stride) {
  const formats::MappedFile& file = *tensor.range->file;
  const char* from = tensor.range->bytes.data() + row * columns.row_bytes + columns.first;
  if (columns.count == columns.row_bytes) return file.ReadRows(from, count, {out, columns.count, stride});
  for (int64_t i = 0; i < count; ++i) {
    PHX_RETURN_IF_ERROR(file.ReadRows(from + i * columns.row_bytes, 1, {out + i * stride, columns.count, columns.count}));
  }
  return absl::OkStatus();
}

}  // namespace

void ReadAhead(const std::string& path) {
  std::vector<std::string> files;
  std::error_code error;
  if (IsGguf(path)) {
    files.push_back(path);
  } else {
    for (std::filesystem::directory_iterator at(path, error), end; !error && at != end; at.increment(error)) {
      if (at->path().extension() == ".safetensors") files.push_back(at->path().string());
    }
  }
  for (const std::string& file : files) {
    const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    ::posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
    ::close(fd);
  }
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path, const ModelConfig& config, LoadFormat format) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->path_ = path;
  if (format == LoadFormat::kDummy) {
    checkpoint->dummy_ = std::make_unique<DummyValues>();
    return checkpoint;
  }
  if (format == LoadFormat::kGguf && !IsGguf(path)) {
    return absl::InvalidArgumentError(absl::StrCat("--load-format gguf: '", path, "' is not a .gguf file"));
  }
  if (format == LoadFormat::kSafetensors && IsGguf(path)) {
    return absl::InvalidArgumentError(absl::StrCat("--load-format safetensors: '", path, "' is a .gguf file"));
  }
  if (IsGguf(path)) {
    PHX_ASSIGN_OR_RETURN(checkpoint->gguf_, formats::GgufFile::Open(path));
    PHX_RETURN_IF_ERROR(checkpoint->AddGgufNames(config));
    return checkpoint;
  }
  PHX_ASSIGN_OR_RETURN(checkpoint->safetensors_, formats::SafetensorsCheckpoint::Open(path));
  for (const auto& [name, range] : checkpoint->safetensors_->tensors()) {
    checkpoint->tensors_[name] = {&range, checkpoint->safetensors_->FileOf(name)};
  }
  return checkpoint;
}

absl::Status Checkpoint::AddGgufNames(const ModelConfig& config) {
  const Family* family = FindFamily(config.architecture);
  PHX_CHECK(family != nullptr);
  for (const auto& [name, range] : gguf_->tensors()) {
    if (name == "rope_freqs.weight") continue;  // part of the configuration
    const std::string hf_name = HfName(name);
    Entry entry{&range, gguf_->path()};
    if (family->gguf_permutes_qk) {
      if (hf_name.find(".self_attn.q_proj.") != std::string::npos) entry.permuted_heads = config.num_heads;
      if (hf_name.find(".self_attn.k_proj.") != std::string::npos) entry.permuted_heads = config.num_kv_heads;
    }
    tensors_[hf_name] = entry;
  }
  return absl::OkStatus();
}

SourceTensor Checkpoint::ExpectDummy(std::string_view name, const std::vector<int64_t>& shape) const {
  SourceTensor tensor = ShapeOf(shape);
  tensor.dummy_place = DummyValues::PlaceOf(name);
  return tensor;
}

absl::StatusOr<SourceTensor> Checkpoint::Expect(std::string_view name, const std::vector<int64_t>& shape) {
  if (dummy_ != nullptr) return ExpectDummy(name, shape);
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor ", std::string(name), " is missing"));
  const Entry& entry = it->second;
  const auto bad = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(entry.file, ": tensor ", entry.range->name, " ", what));
  };
  if (entry.range->shape != shape) {
    return bad(absl::StrCat("has shape [", absl::StrJoin(entry.range->shape, ", "), "], the configuration needs [",
                            absl::StrJoin(shape, ", "), "]"));
  }
  switch (entry.range->encoding) {
    case Encoding::kI8: case Encoding::kU8: case Encoding::kI32: case Encoding::kI64:
      return bad(absl::StrCat("is stored as ", formats::EncodingName(entry.range->encoding), ", which is no weight"));
    default: break;
  }
  used_.insert(it->first);
  // A bias is permuted like rows.
  SourceTensor tensor = shape.size() == 1 && entry.permuted_heads > 0 ? MatrixOf(shape[0], 1) : ShapeOf(shape);
  tensor.range = entry.range;
  if (entry.permuted_heads > 0) tensor.permuted_rows = tensor.rows / entry.permuted_heads;
  return tensor;
}

absl::Status Checkpoint::CheckAllUsed() const {
  for (const auto& [name, entry] : tensors_) {
    if (used_.contains(name) || IsHarmless(name)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(entry.file, ": tensor ", entry.range->name, " is not part of this architecture or configuration"));
  }
  return absl::OkStatus();
}

SourceTensor SourceTensor::Part(const Cut& part_rows, const Cut& part_columns) const {
  PHX_CHECK(part_rows.first + part_rows.count <= rows && part_columns.first + part_columns.count <= stored_columns);
  SourceTensor part = *this;
  part.row_cut = part_rows;
  part.column_cut = part_columns;
  part.rows = part_rows.width;
  part.columns = part_columns.width;
  return part;
}

absl::Status Checkpoint::ReadRows(const SourceTensor& tensor, int64_t begin, int64_t count, kernels::DType dtype, void* out,
                                  int64_t stride, ReadScratch* scratch) const {
  const uint64_t size = kernels::DTypeBytes(dtype);
  auto* to = static_cast<char*>(out);
  const int64_t stored = std::clamp<int64_t>(tensor.row_cut.count - begin, 0, count);
  const int64_t columns = stored > 0 ? tensor.column_cut.count : 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t there = i < stored ? columns : 0;
    std::memset(to + (i * stride + there) * size, 0, (tensor.columns - there) * size);
  }
  if (columns == 0) return absl::OkStatus();
  if (tensor.range != nullptr) return ReadStored(tensor, begin, stored, dtype, to, stride, scratch);
  for (int64_t i = 0; i < stored; ++i) {
    const auto at = static_cast<uint64_t>((tensor.row_cut.first + begin + i) * tensor.stored_columns + tensor.column_cut.first);
    dummy_->Copy(tensor.dummy_place, at, columns, dtype, to + i * stride * size);
  }
  return absl::OkStatus();
}

// Rows that are in a file.
absl::Status Checkpoint::ReadStored(const SourceTensor& tensor, int64_t begin, int64_t count, kernels::DType dtype, char* out,
                                    int64_t stride, ReadScratch* scratch) {
  const Encoding encoding = tensor.range->encoding;
  const ColumnBytes columns = BytesOfColumns(tensor);
  const int64_t first = tensor.row_cut.first + begin;
  const bool as_stored = (encoding == Encoding::kBF16 && dtype == kernels::kBF16) || (encoding == Encoding::kF32 && dtype == kernels::kF32);
  if (as_stored && tensor.permuted_rows == 0) {
    return ReadFile(tensor, columns, first, count, out, stride * kernels::DTypeBytes(dtype));
  }
  const RowRange stored = FileRows(tensor, first, first + count);
  const int64_t rows = stored.end - stored.begin;
  if (scratch->stored.size() < rows * columns.count) scratch->stored.resize(rows * columns.count);
  if (scratch->row.size() < static_cast<size_t>(columns.elements)) scratch->row.resize(columns.elements);
  PHX_RETURN_IF_ERROR(ReadFile(tensor, columns, stored.begin, rows, scratch->stored.data(), columns.count));
  for (int64_t i = 0; i < count; ++i) {
    const char* from = scratch->stored.data() + (FileRow(tensor, first + i) - stored.begin) * columns.count;
    PHX_CHECK(formats::DecodeToF32(encoding, from, columns.elements, scratch->row.data()).ok());  // else Expect had refused it
    StoreRow(scratch->row.data() + columns.skipped, tensor.column_cut.count, dtype, out, i * stride);
  }
  return absl::OkStatus();
}

}  // namespace phalanx::worker::model
