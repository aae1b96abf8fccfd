#include "worker/tp/frame.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "services/check.h"

namespace phalanx::worker::tp {
namespace {

constexpr uint16_t kMagic = 0x5850;
constexpr size_t kSpaceMin = 16 << 10;  // bytes a read may always bring
constexpr size_t kStatusTextMax = 1024;

template <typename T>
void Store(char* to, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) to[i] = static_cast<char>(value >> (8 * i));
}

template <typename T>
T Load(const char* from) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<T>(static_cast<T>(static_cast<unsigned char>(from[i])) << (8 * i));
  return value;
}

}  // namespace

std::array<char, kFrameHeadBytes> FrameHead(FrameKind kind, uint64_t step, size_t size) {
  PHX_CHECK(size <= UINT32_MAX);
  std::array<char, kFrameHeadBytes> head;
  Store<uint16_t>(&head[0], kMagic);
  head[2] = kProtocolVersion;
  head[3] = static_cast<char>(kind);
  Store<uint32_t>(&head[4], static_cast<uint32_t>(size));
  Store<uint64_t>(&head[8], step);
  return head;
}

std::string FrameBytes(const Frame& frame) {
  const auto head = FrameHead(frame.kind, frame.step, frame.bytes.size());
  std::string out(head.data(), head.size());
  out.append(frame.bytes);
  return out;
}

std::span<char> FrameReader::Space() {
  if (begin_ == end_) begin_ = end_ = 0;
  const size_t need = std::max(kSpaceMin, wanted_ > end_ - begin_ ? wanted_ - (end_ - begin_) : 0);
  if (buffer_.size() - end_ < need && begin_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  // Grown by what has come, not by what a head promises: a peer pays for the memory it makes us take.
  if (buffer_.size() - end_ < kSpaceMin) buffer_.resize(std::max<size_t>(4 * kSpaceMin, 2 * buffer_.size()));
  return {buffer_.data() + end_, buffer_.size() - end_};
}

absl::StatusOr<bool> FrameReader::Next(Frame* frame) {
  wanted_ = 0;
  if (end_ - begin_ < kFrameHeadBytes) return false;
  const char* head = buffer_.data() + begin_;
  if (Load<uint16_t>(head) != kMagic) return absl::InvalidArgumentError("bytes that are no frame");
  const auto version = static_cast<uint8_t>(head[2]);
  if (version != kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat("protocol version ", version, " there, ", kProtocolVersion, " here"));
  }
  const size_t size = Load<uint32_t>(head + 4);
  if (size > max_bytes_) return absl::InvalidArgumentError(absl::StrCat("a frame of ", size, " bytes, the cap is ", max_bytes_));
  if (end_ - begin_ < kFrameHeadBytes + size) {
    wanted_ = kFrameHeadBytes + size;
    return false;
  }
  frame->kind = static_cast<FrameKind>(head[3]);
  frame->step = Load<uint64_t>(head + 8);
  frame->bytes = std::string_view(head + kFrameHeadBytes, size);
  begin_ += kFrameHeadBytes + size;
  return true;
}

void Writer::U16(uint16_t value) {
  char bytes[2];
  Store(bytes, value);
  out_.append(bytes, sizeof(bytes));
}

void Writer::U32(uint32_t value) {
  char bytes[4];
  Store(bytes, value);
  out_.append(bytes, sizeof(bytes));
}

void Writer::Text(std::string_view text) {
  U32(static_cast<uint32_t>(text.size()));
  Raw(text);
}

std::string_view Reader::Raw(size_t size) {
  if (!ok_ || size > rest_.size()) {
    ok_ = false;
    rest_ = {};
    return {};
  }
  const std::string_view out = rest_.substr(0, size);
  rest_.remove_prefix(size);
  return out;
}

uint8_t Reader::U8() {
  const std::string_view bytes = Raw(1);
  return bytes.empty() ? 0 : static_cast<uint8_t>(bytes[0]);
}

uint16_t Reader::U16() {
  const std::string_view bytes = Raw(2);
  return bytes.empty() ? 0 : Load<uint16_t>(bytes.data());
}

uint32_t Reader::U32() {
  const std::string_view bytes = Raw(4);
  return bytes.empty() ? 0 : Load<uint32_t>(bytes.data());
}

std::string_view Reader::Text(size_t max_size) {
  const size_t size = U32();
  return Raw(size <= max_size ? size : SIZE_MAX);
}

std::string StatusBytes(const absl::Status& status) {
  Writer out;
  out.U8(static_cast<uint8_t>(status.code()));
  out.Raw(std::string(status.message().substr(0, kStatusTextMax)));
  return out.Take();
}

absl::Status StatusFromBytes(std::string_view bytes) {
  Reader in(bytes);
  const int code = in.U8();
  std::string text(in.rest().substr(0, kStatusTextMax));
  for (char& c : text) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  const bool known = code > static_cast<int>(absl::StatusCode::kOk) && code <= static_cast<int>(absl::StatusCode::kUnauthenticated);
  return absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown, text);
}

}  // namespace phalanx::worker::tp
