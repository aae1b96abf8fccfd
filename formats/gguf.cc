#include "formats/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "services/check.h"

namespace phalanx::formats {
namespace {

constexpr uint64_t kMaxKeyBytes = 65535;        // the specification's limit
constexpr uint64_t kMaxTensorNameBytes = 64;    // the same
constexpr uint64_t kMaxTensors = 1 << 16;
constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint32_t kMaxDimensions = 4;

// Value types of the metadata, by the specification's numbers.
enum ValueType : uint32_t {
  kUint8 = 0, kInt8, kUint16, kInt16, kUint32, kInt32, kFloat32, kBool, kString, kArray, kUint64, kInt64, kFloat64, kNumValueTypes
};

std::optional<Encoding> EncodingOf(uint32_t type) {
  switch (type) {
    case 0: return Encoding::kF32;
    case 1: return Encoding::kF16;
    case 2: return Encoding::kQ4_0;
    case 3: return Encoding::kQ4_1;
    case 6: return Encoding::kQ5_0;
    case 7: return Encoding::kQ5_1;
    case 8: return Encoding::kQ8_0;
    case 12: return Encoding::kQ4_K;
    case 13: return Encoding::kQ5_K;
    case 14: return Encoding::kQ6_K;
    case 24: return Encoding::kI8;
    case 26: return Encoding::kI32;
    case 27: return Encoding::kI64;
    case 30: return Encoding::kBF16;
    default: return std::nullopt;
  }
}

// Names of the tensor types that exist but are not read, for the error message.
const char* UnsupportedTypeName(uint32_t type) {
  switch (type) {
    case 9: return "Q8_1";
    case 10: return "Q2_K";
    case 11: return "Q3_K";
    case 15: return "Q8_K";
    case 16: return "IQ2_XXS";
    case 17: return "IQ2_XS";
    case 18: return "IQ3_XXS";
    case 19: return "IQ1_S";
    case 20: return "IQ4_NL";
    case 21: return "IQ3_S";
    case 22: return "IQ2_S";
    case 23: return "IQ4_XS";
    case 25: return "I16";
    case 28: return "F64";
    case 29: return "IQ1_M";
    case 34: return "TQ1_0";
    case 35: return "TQ2_0";
    case 39: return "MXFP4";
    default: return "unknown";
  }
}

// Smallest encoded size of one value of a type: bounds an array's count before anything is reserved.
uint64_t MinBytes(uint32_t type) {
  switch (type) {
    case kUint8: case kInt8: case kBool: return 1;
    case kUint16: case kInt16: return 2;
    case kUint32: case kInt32: case kFloat32: return 4;
    default: return 8;
  }
}

// A cursor that never passes the end. After a failed read `failed()` is true and every value is zero.
class Cursor {
 public:
  explicit Cursor(std::string_view bytes) : bytes_(bytes) {}
  template <typename T>
  T Read() {
    T value{};
    if (left() < sizeof(T)) {
      failed_ = true;
    } else {
      std::memcpy(&value, bytes_.data() + at_, sizeof(T));
      at_ += sizeof(T);
    }
    return value;
  }
  std::string_view ReadString(uint64_t max_bytes) {
    const auto length = Read<uint64_t>();
    if (failed_ || length > left() || length > max_bytes) {
      failed_ = true;
      return {};
    }
    const std::string_view text = bytes_.substr(at_, length);
    at_ += length;
    return text;
  }
  bool failed() const { return failed_; }
  uint64_t left() const { return bytes_.size() - at_; }
  uint64_t at() const { return at_; }

 private:
  std::string_view bytes_;
  uint64_t at_ = 0;
  bool failed_ = false;
};

int64_t ReadInt(Cursor& cursor, uint32_t type, bool* too_large) {
  switch (type) {
    case kUint8: return cursor.Read<uint8_t>();
    case kInt8: return cursor.Read<int8_t>();
    case kUint16: return cursor.Read<uint16_t>();
    case kInt16: return cursor.Read<int16_t>();
    case kUint32: return cursor.Read<uint32_t>();
    case kInt32: return cursor.Read<int32_t>();
    case kInt64: return cursor.Read<int64_t>();
    default: {
      const auto value = cursor.Read<uint64_t>();
      if (value > INT64_MAX) *too_large = true;
      return static_cast<int64_t>(value);
    }
  }
}

double ReadFloat(Cursor& cursor, uint32_t type) { return type == kFloat32 ? cursor.Read<float>() : cursor.Read<double>(); }

// Reads one array; the element type is one of the scalar types (nested arrays are refused by the caller).
GgufValue ReadArray(Cursor& cursor, uint32_t type, uint64_t count, bool* too_large) {
  const auto fill = [&](auto values, auto read) {
    values.reserve(count);
    for (uint64_t i = 0; i < count && !cursor.failed(); ++i) values.push_back(read());
    return GgufValue(std::move(values));
  };
  if (type == kString) return fill(std::vector<std::string>(), [&] { return std::string(cursor.ReadString(UINT64_MAX)); });
  if (type == kBool) return fill(std::vector<bool>(), [&] { return cursor.Read<uint8_t>() != 0; });
  if (type == kFloat32 || type == kFloat64) return fill(std::vector<double>(), [&] { return ReadFloat(cursor, type); });
  return fill(std::vector<int64_t>(), [&] { return ReadInt(cursor, type, too_large); });
}

// Reads a value of `type`; an error is a phrase without file and key.
absl::StatusOr<GgufValue> ReadValue(Cursor& cursor) {
  const auto type = cursor.Read<uint32_t>();
  if (cursor.failed()) return absl::InvalidArgumentError("ends early (truncated?)");
  if (type >= kNumValueTypes) return absl::InvalidArgumentError(absl::StrCat("has an unknown value type ", type));
  bool too_large = false;
  GgufValue value;
  if (type == kArray) {
    const auto element = cursor.Read<uint32_t>();
    const auto count = cursor.Read<uint64_t>();
    if (cursor.failed()) return absl::InvalidArgumentError("ends early (truncated?)");
    if (element >= kNumValueTypes) return absl::InvalidArgumentError(absl::StrCat("has an unknown element type ", element));
    if (element == kArray) return absl::UnimplementedError("is an array of arrays, which is not supported");
    if (count > cursor.left() / MinBytes(element)) {
      return absl::InvalidArgumentError(absl::StrCat("claims ", count, " elements, more than the file holds (truncated?)"));
    }
    value = ReadArray(cursor, element, count, &too_large);
  } else if (type == kString) {
    value = std::string(cursor.ReadString(UINT64_MAX));
  } else if (type == kBool) {
    value = cursor.Read<uint8_t>() != 0;
  } else if (type == kFloat32 || type == kFloat64) {
    value = ReadFloat(cursor, type);
  } else {
    value = ReadInt(cursor, type, &too_large);
  }
  if (cursor.failed()) return absl::InvalidArgumentError("ends early (truncated?)");
  if (too_large) return absl::InvalidArgumentError("has an integer above 2^63 - 1");
  return value;
}

struct TensorInfo {
  TensorRange range;
  uint64_t offset = 0;
  uint64_t size = 0;
};

absl::StatusOr<TensorInfo> ReadTensorInfo(Cursor& cursor, const std::string& where, uint64_t index) {
  TensorInfo info;
  info.range.name = std::string(cursor.ReadString(kMaxTensorNameBytes));
  const auto bad = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": tensor ", info.range.name, ": ", what));
  };
  if (cursor.failed()) return absl::InvalidArgumentError(absl::StrCat(where, ": tensor number ", index, ": bad name (truncated?)"));
  const auto dimensions = cursor.Read<uint32_t>();
  if (cursor.failed() || dimensions == 0 || dimensions > kMaxDimensions) return bad("the number of dimensions is not 1 to 4");
  uint64_t count = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    const auto size = cursor.Read<uint64_t>();
    if (cursor.failed()) return bad("the shape ends early (truncated?)");
    if (size == 0 || size > INT64_MAX || __builtin_mul_overflow(count, size, &count) || count > INT64_MAX / 8) {
      return bad("the shape is empty or too large");
    }
    info.range.shape.push_back(static_cast<int64_t>(size));
  }
  const auto type = cursor.Read<uint32_t>();
  info.offset = cursor.Read<uint64_t>();
  if (cursor.failed()) return bad("the entry ends early (truncated?)");
  const auto encoding = EncodingOf(type);
  if (!encoding) {
    return absl::UnimplementedError(
        absl::StrCat(where, ": tensor ", info.range.name, ": type ", UnsupportedTypeName(type), " (", type, ") is not supported"));
  }
  info.range.encoding = *encoding;
  if (info.range.shape[0] % BlockElements(*encoding) != 0) {
    return bad(absl::StrCat("rows of ", info.range.shape[0], " are not whole ", EncodingName(*encoding), " blocks"));
  }
  info.size = EncodedBytes(*encoding, count);
  std::reverse(info.range.shape.begin(), info.range.shape.end());  // the file has the fastest dimension first
  return info;
}

// Ranges lie inside `data`, are aligned and do not overlap.
absl::Status PlaceTensors(const std::string& where, std::vector<TensorInfo>& infos, std::string_view data, uint64_t alignment) {
  for (TensorInfo& info : infos) {
    const auto bad = [&](const std::string& what) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": tensor ", info.range.name, ": ", what));
    };
    if (info.offset % alignment != 0) return bad(absl::StrCat("offset ", info.offset, " is not a multiple of ", alignment));
    if (info.offset > data.size() || info.size > data.size() - info.offset) {
      return bad(absl::StrCat("needs ", info.size, " bytes from ", info.offset, " of the data, but the file has only ", data.size(),
                              " (truncated?)"));
    }
    info.range.bytes = data.substr(info.offset, info.size);
  }
  std::sort(infos.begin(), infos.end(), [](const TensorInfo& a, const TensorInfo& b) { return a.offset < b.offset; });
  for (size_t i = 1; i < infos.size(); ++i) {
    if (infos[i - 1].offset + infos[i - 1].size > infos[i].offset) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": tensor ", infos[i].range.name, " overlaps tensor ", infos[i - 1].range.name));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  PHX_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
  return Parse(std::move(file));
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Parse(std::shared_ptr<MappedFile> file) {
  static_assert(std::endian::native == std::endian::little, "values are read as they lie");
  const std::string where = file->path();
  const std::string_view bytes = file->bytes();
  const auto bad = [&](const std::string& what) { return absl::InvalidArgumentError(absl::StrCat(where, ": ", what)); };
  if (bytes.substr(0, 4) != "GGUF") return bad("not a GGUF file (bad magic)");
  Cursor cursor(bytes);
  cursor.Read<uint32_t>();
  const auto version = cursor.Read<uint32_t>();
  if (version != 3) return absl::UnimplementedError(absl::StrCat(where, ": GGUF version ", version, " is not supported, only 3"));
  const auto num_tensors = cursor.Read<uint64_t>();
  const auto num_keys = cursor.Read<uint64_t>();
  if (cursor.failed()) return bad("the header ends early (truncated?)");
  if (num_tensors > kMaxTensors || num_keys > kMaxKeys) return bad("the header claims too many tensors or keys");

  std::unique_ptr<GgufFile> gguf(new GgufFile);
  gguf->file_ = file;
  for (uint64_t i = 0; i < num_keys; ++i) {
    std::string key(cursor.ReadString(kMaxKeyBytes));
    if (cursor.failed()) return bad(absl::StrCat("key number ", i, ": bad name (truncated?)"));
    auto value = ReadValue(cursor);
    if (!value.ok()) return absl::Status(value.status().code(), absl::StrCat(where, ": key ", key, " ", value.status().message()));
    if (!gguf->metadata_.emplace(key, *std::move(value)).second) return bad(absl::StrCat("key ", key, " appears twice"));
  }
  std::vector<TensorInfo> infos;
  for (uint64_t i = 0; i < num_tensors; ++i) {
    PHX_ASSIGN_OR_RETURN(TensorInfo info, ReadTensorInfo(cursor, where, i));
    infos.push_back(std::move(info));
  }

  uint64_t alignment = 32;
  if (gguf->Find("general.alignment") != nullptr) {
    PHX_ASSIGN_OR_RETURN(const int64_t value, gguf->GetInt("general.alignment"));
    if (value <= 0 || static_cast<uint64_t>(value) > kMaxAlignment || !std::has_single_bit(static_cast<uint64_t>(value))) {
      return bad("key general.alignment is not a power of two up to 2^20");
    }
    alignment = static_cast<uint64_t>(value);
  }
  const uint64_t data_begin = (cursor.at() + alignment - 1) / alignment * alignment;
  PHX_RETURN_IF_ERROR(PlaceTensors(where, infos, bytes.substr(std::min<uint64_t>(data_begin, bytes.size())), alignment));
  for (TensorInfo& info : infos) {
    const std::string name = info.range.name;
    info.range.file = file.get();
    if (!gguf->tensors_.emplace(name, std::move(info.range)).second) return bad(absl::StrCat("tensor ", name, " appears twice"));
  }
  return gguf;
}

const GgufValue* GgufFile::Find(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

absl::StatusOr<int64_t> GgufFile::GetInt(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return absl::NotFoundError(absl::StrCat(path(), ": key ", std::string(key), " is missing"));
  if (const auto* number = std::get_if<int64_t>(value)) return *number;
  return absl::InvalidArgumentError(absl::StrCat(path(), ": key ", std::string(key), " is not an integer"));
}

absl::StatusOr<double> GgufFile::GetFloat(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return absl::NotFoundError(absl::StrCat(path(), ": key ", std::string(key), " is missing"));
  if (const auto* number = std::get_if<double>(value)) return *number;
  if (const auto* number = std::get_if<int64_t>(value)) return static_cast<double>(*number);
  return absl::InvalidArgumentError(absl::StrCat(path(), ": key ", std::string(key), " is not a number"));
}

absl::StatusOr<std::string> GgufFile::GetString(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return absl::NotFoundError(absl::StrCat(path(), ": key ", std::string(key), " is missing"));
  if (const auto* text = std::get_if<std::string>(value)) return *text;
  return absl::InvalidArgumentError(absl::StrCat(path(), ": key ", std::string(key), " is not a string"));
}

}  // namespace phalanx::formats
