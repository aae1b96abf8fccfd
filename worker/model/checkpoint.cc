#include "worker/model/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

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

// One-dimensional tensors count as one row.
SourceTensor ShapeOf(const std::vector<int64_t>& shape) { return {nullptr, shape.size() == 1 ? 1 : shape[0], shape.back()}; }

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
  if (tensor.permuted_heads == 0) return {begin, end};
  const int64_t head_rows = tensor.rows / tensor.permuted_heads;
  return {begin / head_rows * head_rows, (end + head_rows - 1) / head_rows * head_rows};
}

// Where Hugging Face's row lies in the file: GGUF interleaves the two halves of each head.
int64_t FileRow(const SourceTensor& tensor, int64_t row) {
  if (tensor.permuted_heads == 0) return row;
  const int64_t head_rows = tensor.rows / tensor.permuted_heads;
  const int64_t in_head = row % head_rows;
  const int64_t half = head_rows / 2;
  return row - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
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
  SourceTensor tensor = ShapeOf(shape);
  tensor.range = entry.range;
  tensor.permuted_heads = entry.permuted_heads;
  if (shape.size() == 1 && entry.permuted_heads > 0) std::swap(tensor.rows, tensor.columns);  // a bias is permuted like rows
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

absl::Status Checkpoint::ReadRows(const SourceTensor& tensor, int64_t begin, int64_t count, kernels::DType dtype, void* out,
                                  int64_t stride, ReadScratch* scratch) const {
  const uint64_t size = kernels::DTypeBytes(dtype);
  auto* to = static_cast<char*>(out);
  if (tensor.range == nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      dummy_->Copy(tensor.dummy_place, uint64_t(begin + i) * tensor.columns, tensor.columns, dtype, to + i * stride * size);
    }
    return absl::OkStatus();
  }
  const formats::TensorRange& range = *tensor.range;
  const uint64_t row_bytes = formats::EncodedBytes(range.encoding, tensor.columns);
  const bool as_stored = (range.encoding == Encoding::kBF16 && dtype == kernels::kBF16) ||
                         (range.encoding == Encoding::kF32 && dtype == kernels::kF32);
  if (as_stored && tensor.permuted_heads == 0) {
    return range.file->ReadRows(range.bytes.data() + begin * row_bytes, count, {to, row_bytes, stride * size});
  }
  const RowRange stored = FileRows(tensor, begin, begin + count);
  const uint64_t rows = stored.end - stored.begin;
  if (scratch->stored.size() < rows * row_bytes) scratch->stored.resize(rows * row_bytes);
  if (scratch->row.size() < static_cast<size_t>(tensor.columns)) scratch->row.resize(tensor.columns);
  PHX_RETURN_IF_ERROR(range.file->ReadRows(range.bytes.data() + stored.begin * row_bytes, rows,
                                           {scratch->stored.data(), row_bytes, row_bytes}));
  for (int64_t i = 0; i < count; ++i) {
    const char* from = scratch->stored.data() + (FileRow(tensor, begin + i) - stored.begin) * row_bytes;
    PHX_CHECK(formats::DecodeToF32(range.encoding, from, tensor.columns, scratch->row.data()).ok());  // else Expect had refused it
    StoreRow(scratch->row.data(), tensor.columns, dtype, to, i * stride);
  }
  return absl::OkStatus();
}

}  // namespace phalanx::worker::model
