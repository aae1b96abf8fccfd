// worker/tp/frame.h: the one shape of bytes between ranks: a head of 16 bytes, then at most a fixed number of bytes.
// Refuses to know: sockets, who sends, what the bytes mean. Thread: an object belongs to one thread.
// Neighbours: hello.h puts handshakes into frames, control.h plans and replies, monitor.h heartbeats and the store.
//
//   offset 0   u16  0x5850, "PX"
//          2   u8   protocol version; another one is refused with both numbers
//          3   u8   kind
//          4   u32  bytes after the head, at most the reader's cap
//          8   u64  step number; 0 where it means nothing
//         16   bytes
// All numbers little-endian.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "services/status.h"

namespace phalanx::worker::tp {

constexpr uint8_t kProtocolVersion = 1;
constexpr size_t kFrameHeadBytes = 16;

enum class FrameKind : uint8_t {
  kHello = 1, kChallenge = 2, kProof = 3, kWelcome = 4, kRefused = 5, kStart = 6,  // rendezvous
  kPlan = 16, kReply = 17,                                                         // plan connection
  kPulse = 32, kBroken = 33, kStoreSet = 34, kStoreGet = 35, kStoreValue = 36,     // pulse connection
};

struct Frame {
  FrameKind kind = FrameKind::kPulse;
  uint64_t step = 0;
  std::string_view bytes;
};

// `size` must fit 32 bits.
std::array<char, kFrameHeadBytes> FrameHead(FrameKind kind, uint64_t step, size_t size);
// Head and bytes in one string, for what is not on the hot path.
std::string FrameBytes(const Frame& frame);

// Cuts a stream of bytes into frames without copying them: read into Space(), say how much came, take frames.
//   size_t count; ReadSome(fd, reader.Space().data(), reader.Space().size(), &count); reader.Commit(count);
//   while (*reader.Next(&frame)) ...
class FrameReader {
 public:
  explicit FrameReader(size_t max_bytes) : max_bytes_(max_bytes) {}

  // Where the next bytes go; never empty. Ends the life of every view that Next gave.
  std::span<char> Space();
  void Commit(size_t count) { end_ += count; }
  // True and a frame whose bytes live until Space(), or false if more must come first. Errors, after which the stream is of no use:
  // kInvalidArgument (no frame of ours, or longer than the cap), kFailedPrecondition (another protocol version).
  absl::StatusOr<bool> Next(Frame* frame);
  // After Next said false: bytes until the frame (or its head) is whole, at least 1. Who reads no more than that leaves what follows to
  // the next reader of the connection.
  size_t missing() const { return (wanted_ > 0 ? wanted_ : kFrameHeadBytes) - (end_ - begin_); }

 private:
  const size_t max_bytes_;
  std::vector<char> buffer_;
  size_t begin_ = 0;   // first byte not yet taken
  size_t end_ = 0;     // behind the last byte that came
  size_t wanted_ = 0;  // bytes of the frame at begin_, once its head is there
};

// Little-endian numbers and counted texts, for what stands inside frames.
class Writer {
 public:
  void U8(uint8_t value) { out_.push_back(static_cast<char>(value)); }
  void U16(uint16_t value);
  void U32(uint32_t value);
  void Raw(std::string_view bytes) { out_.append(bytes); }
  void Text(std::string_view text);  // u32 length, then the bytes
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

// Reads what Writer wrote. After a read past the end every value is zero or empty, and ok() is false.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  uint8_t U8();
  uint16_t U16();
  uint32_t U32();
  std::string_view Raw(size_t size);
  std::string_view Text(size_t max_size);
  std::string_view rest() const { return rest_; }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && rest_.empty(); }  // all was read, and nothing was missing

 private:
  std::string_view rest_;
  bool ok_ = true;
};

// A status as bytes and back: a code, then at most 1 KiB of text, with everything that is not printable ASCII replaced by '?'. Bytes
// that are no error status become kUnknown.
std::string StatusBytes(const absl::Status& status);
absl::Status StatusFromBytes(std::string_view bytes);

}  // namespace phalanx::worker::tp
