#include "formats/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "services/check.h"
#include "services/json.h"

namespace phalanx::formats {
namespace {

using services::Json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxTensors = 1 << 16;
constexpr size_t kMaxDimensions = 8;

std::optional<Encoding> EncodingOf(std::string_view dtype) {
  if (dtype == "F32") return Encoding::kF32;
  if (dtype == "F16") return Encoding::kF16;
  if (dtype == "BF16") return Encoding::kBF16;
  if (dtype == "I8") return Encoding::kI8;
  if (dtype == "U8" || dtype == "BOOL") return Encoding::kU8;
  if (dtype == "I32") return Encoding::kI32;
  if (dtype == "I64") return Encoding::kI64;
  return std::nullopt;
}

services::JsonLimits HeaderLimits() {
  services::JsonLimits limits;
  limits.max_bytes = kMaxHeaderBytes;
  limits.max_depth = 8;
  limits.max_members = kMaxTensors;
  return limits;
}

std::optional<uint64_t> AsUint(const Json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  return value.get<uint64_t>();
}

// One entry of the header, checked against the `data` section it points into.
absl::StatusOr<TensorRange> ParseTensor(const std::string& where, const std::string& name, const Json& entry, std::string_view data) {
  const auto bad = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": tensor ", name, ": ", what));
  };
  if (!entry.is_object()) return bad("the entry is not an object");
  const auto dtype = entry.find("dtype");
  const auto shape = entry.find("shape");
  const auto offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string()) return bad("dtype is missing or not a string");
  if (shape == entry.end() || !shape->is_array() || shape->size() > kMaxDimensions) return bad("shape is missing or not a short list");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2) return bad("data_offsets is missing or not a pair");
  const auto encoding = EncodingOf(dtype->get_ref<const std::string&>());
  if (!encoding) {
    return absl::UnimplementedError(
        absl::StrCat(where, ": tensor ", name, ": dtype ", dtype->get_ref<const std::string&>(), " is not supported"));
  }
  TensorRange tensor{name, *encoding, {}, {}};
  uint64_t count = 1;
  for (const Json& dimension : *shape) {
    const auto size = AsUint(dimension);
    if (!size || *size > INT64_MAX) return bad("a dimension is not a whole number");
    if (__builtin_mul_overflow(count, *size, &count) || count > INT64_MAX / 8) return bad("the shape is too large");
    tensor.shape.push_back(static_cast<int64_t>(*size));
  }
  const auto begin = AsUint((*offsets)[0]);
  const auto end = AsUint((*offsets)[1]);
  if (!begin || !end || *begin > *end) return bad("data_offsets are not rising whole numbers");
  if (*end > data.size()) {
    return bad(absl::StrCat("ends at byte ", *end, " of the data, but the file has only ", data.size(), " (truncated?)"));
  }
  if (*end - *begin != EncodedBytes(*encoding, count)) {
    return bad(absl::StrCat("has ", *end - *begin, " bytes, its shape and dtype need ", EncodedBytes(*encoding, count)));
  }
  tensor.bytes = data.substr(*begin, *end - *begin);
  return tensor;
}

// The tensors must cover the data exactly: no overlap, no hole, nothing left over.
absl::Status CheckCoverage(const std::string& where, std::vector<const TensorRange*> tensors, std::string_view data) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorRange* a, const TensorRange* b) {
    return std::make_pair(a->bytes.data(), a->bytes.size()) < std::make_pair(b->bytes.data(), b->bytes.size());
  });
  const char* at = data.data();
  for (const TensorRange* tensor : tensors) {
    if (tensor->bytes.data() < at) return absl::InvalidArgumentError(absl::StrCat(where, ": tensor ", tensor->name, " overlaps another"));
    if (tensor->bytes.data() > at) return absl::InvalidArgumentError(absl::StrCat(where, ": a hole lies before tensor ", tensor->name));
    at = tensor->bytes.data() + tensor->bytes.size();
  }
  if (at != data.data() + data.size()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", data.data() + data.size() - at, " bytes after the last tensor"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SafetensorsCheckpoint::AddFile(std::shared_ptr<MappedFile> file) {
  const std::string& where = file->path();
  const std::string_view bytes = file->bytes();
  if (bytes.size() < 8) return absl::InvalidArgumentError(absl::StrCat(where, ": too short for a safetensors header"));
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - 8) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": the header claims ", header_bytes, " bytes, the file has ", bytes.size()));
  }
  const std::string_view data = bytes.substr(8 + header_bytes);
  auto header = services::ParseJson(bytes.substr(8, header_bytes), HeaderLimits());
  if (!header.ok()) return absl::InvalidArgumentError(absl::StrCat(where, ": header: ", header.status().message()));
  if (!header->is_object()) return absl::InvalidArgumentError(absl::StrCat(where, ": the header is not an object"));
  std::vector<const TensorRange*> added;
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") continue;
    PHX_ASSIGN_OR_RETURN(TensorRange tensor, ParseTensor(where, name, entry, data));
    tensor.file = file.get();
    const auto [it, fresh] = tensors_.emplace(name, std::move(tensor));
    if (!fresh) return absl::InvalidArgumentError(absl::StrCat(where, ": tensor ", name, " appears twice"));
    file_of_[name] = files_.size();
    added.push_back(&it->second);
  }
  PHX_RETURN_IF_ERROR(CheckCoverage(where, std::move(added), data));
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status SafetensorsCheckpoint::AddShards(const std::string& folder, const std::string& index_path) {
  PHX_ASSIGN_OR_RETURN(auto index_file, MappedFile::Open(index_path));
  auto index = services::ParseJson(index_file->bytes(), HeaderLimits());
  if (!index.ok()) return absl::InvalidArgumentError(absl::StrCat(index_path, ": ", index.status().message()));
  const auto map = index->is_object() ? index->find("weight_map") : index->end();
  if (!index->is_object() || map == index->end() || !map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map is missing or not an object"));
  }
  std::set<std::string> shards;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string()) return absl::InvalidArgumentError(absl::StrCat(index_path, ": the shard of ", name, " is not a string"));
    const auto& file_name = shard.get_ref<const std::string&>();
    if (file_name.empty() || file_name.find('/') != std::string::npos || file_name == "..") {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": the shard of ", name, " must be a plain file name"));
    }
    shards.insert(file_name);
  }
  for (const std::string& shard : shards) {
    PHX_ASSIGN_OR_RETURN(auto file, MappedFile::Open(absl::StrCat(folder, "/", shard)));
    PHX_RETURN_IF_ERROR(AddFile(std::move(file)));
  }
  std::set<std::string_view> listed;
  for (const auto& [name, shard] : map->items()) {
    listed.insert(name);
    const auto tensor = file_of_.find(name);
    const std::string expected = absl::StrCat(folder, "/", shard.get_ref<const std::string&>());
    if (tensor == file_of_.end() || files_[tensor->second]->path() != expected) {
      return absl::InvalidArgumentError(absl::StrCat(expected, ": tensor ", name, " is missing, but ", index_path, " lists it"));
    }
  }
  for (const auto& [name, tensor] : tensors_) {
    if (!listed.contains(name)) return absl::InvalidArgumentError(absl::StrCat(FileOf(name), ": tensor ", name, " is not in ", index_path));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SafetensorsCheckpoint>> SafetensorsCheckpoint::Parse(std::shared_ptr<MappedFile> file) {
  std::unique_ptr<SafetensorsCheckpoint> checkpoint(new SafetensorsCheckpoint);
  PHX_RETURN_IF_ERROR(checkpoint->AddFile(std::move(file)));
  return checkpoint;
}

absl::StatusOr<std::unique_ptr<SafetensorsCheckpoint>> SafetensorsCheckpoint::Open(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    PHX_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
    return Parse(std::move(file));
  }
  const std::string single = absl::StrCat(path, "/model.safetensors");
  const std::string index = absl::StrCat(path, "/model.safetensors.index.json");
  std::unique_ptr<SafetensorsCheckpoint> checkpoint(new SafetensorsCheckpoint);
  if (std::filesystem::exists(single, error)) {
    PHX_ASSIGN_OR_RETURN(auto file, MappedFile::Open(single));
    PHX_RETURN_IF_ERROR(checkpoint->AddFile(std::move(file)));
  } else if (std::filesystem::exists(index, error)) {
    PHX_RETURN_IF_ERROR(checkpoint->AddShards(path, index));
  } else {
    return absl::NotFoundError(absl::StrCat(path, ": holds neither model.safetensors nor model.safetensors.index.json"));
  }
  return checkpoint;
}

void SafetensorsCheckpoint::WillNeed() const {
  for (const auto& file : files_) file->WillNeed();
}

const std::string& SafetensorsCheckpoint::FileOf(std::string_view tensor) const {
  const auto it = file_of_.find(tensor);
  PHX_CHECK(it != file_of_.end());
  return files_[it->second]->path();
}

}  // namespace phalanx::formats
