// Decoding of stored elements to fp32. Every loop is plain, so that the compiler vectorises it; block layouts follow the GGUF
// specification. Products and sums round separately (no contraction), as the published `gguf` package does.
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "formats/tensor_file.h"

namespace phalanx::formats {
namespace {

// IEEE half to single, exactly, subnormals included.
float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // Rebias by a multiplication: exact for normal and subnormal halves.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

float LoadHalf(const uint8_t* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, 2);
  return HalfToFloat(half);
}

// Expands the 32 nibbles of 16 bytes: element j in the low nibble of byte j, element j + 16 in its high nibble.
void Nibbles(const uint8_t* bytes, int8_t* out) {
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<int8_t>(bytes[j] & 15);
    out[j + 16] = static_cast<int8_t>(bytes[j] >> 4);
  }
}

// Adds the fifth bits of a 32-element block: bit i of `bits` belongs to element i.
void AddFifthBits(const uint8_t* bytes, int8_t* out) {
  uint32_t bits;
  std::memcpy(&bits, bytes, 4);
  for (int j = 0; j < 32; ++j) out[j] = static_cast<int8_t>(out[j] | ((bits >> j & 1) << 4));
}

void ScaleBlock(const int8_t* q, float d, int offset, float* out) {
  for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(q[j] - offset) * d;
}

void ScaleAddBlock(const int8_t* q, float d, float m, float* out) {
  for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(q[j]) * d + m;
}

void DecodeQ8_0(const uint8_t* block, float* out) {
  int8_t q[32];
  std::memcpy(q, block + 2, 32);
  ScaleBlock(q, LoadHalf(block), 0, out);
}

void DecodeQ4_0(const uint8_t* block, float* out) {
  int8_t q[32];
  Nibbles(block + 2, q);
  ScaleBlock(q, LoadHalf(block), 8, out);
}

void DecodeQ4_1(const uint8_t* block, float* out) {
  int8_t q[32];
  Nibbles(block + 4, q);
  ScaleAddBlock(q, LoadHalf(block), LoadHalf(block + 2), out);
}

void DecodeQ5_0(const uint8_t* block, float* out) {
  int8_t q[32];
  Nibbles(block + 6, q);
  AddFifthBits(block + 2, q);
  ScaleBlock(q, LoadHalf(block), 16, out);
}

void DecodeQ5_1(const uint8_t* block, float* out) {
  int8_t q[32];
  Nibbles(block + 8, q);
  AddFifthBits(block + 4, q);
  ScaleAddBlock(q, LoadHalf(block), LoadHalf(block + 2), out);
}

// The 8 six-bit scales and minimums of a Q4_K or Q5_K block, packed into 12 bytes.
void UnpackScales(const uint8_t* s, uint8_t* scale, uint8_t* minimum) {
  for (int j = 0; j < 4; ++j) {
    scale[j] = s[j] & 63;
    minimum[j] = s[j + 4] & 63;
    scale[j + 4] = static_cast<uint8_t>((s[j + 8] & 15) | (s[j] >> 6) << 4);
    minimum[j + 4] = static_cast<uint8_t>((s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
  }
}

// Q4_K and Q5_K: 8 groups of 32; 32 nibble bytes hold group 2g (low) and 2g + 1 (high); fifth bits: bit g of byte l.
template <bool kFifthBit>
void DecodeQ45_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float dmin = LoadHalf(block + 2);
  uint8_t scale[8];
  uint8_t minimum[8];
  UnpackScales(block + 4, scale, minimum);
  const uint8_t* high = block + 16;
  const uint8_t* nibbles = kFifthBit ? block + 48 : block + 16;
  for (int g = 0; g < 8; ++g) {
    const float dl = d * static_cast<float>(scale[g]);
    const float ml = dmin * static_cast<float>(minimum[g]);
    const uint8_t* bytes = nibbles + g / 2 * 32;
    const int shift = g % 2 * 4;
    for (int l = 0; l < 32; ++l) {
      int q = bytes[l] >> shift & 15;
      if constexpr (kFifthBit) q |= (high[l] >> g & 1) << 4;
      out[g * 32 + l] = dl * static_cast<float>(q) - ml;
    }
  }
}

// Q6_K: per half of 128 elements 64 low-nibble bytes and 32 bytes of high pairs; one int8 scale per 16 elements.
void DecodeQ6_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + 208);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = block + half * 64;
    const uint8_t* high = block + 128 + half * 32;
    const auto* scales = reinterpret_cast<const int8_t*>(block + 192 + half * 8);
    for (int quarter = 0; quarter < 4; ++quarter) {
      const uint8_t* bytes = low + quarter % 2 * 32;
      for (int part = 0; part < 2; ++part) {
        const float dl = d * static_cast<float>(scales[quarter * 2 + part]);
        float* to = out + half * 128 + quarter * 32 + part * 16;
        for (int l = 0; l < 16; ++l) {
          const int at = part * 16 + l;
          const int q = (bytes[at] >> (quarter / 2 * 4) & 15) | (high[at] >> (quarter * 2) & 3) << 4;
          to[l] = dl * static_cast<float>(q - 32);
        }
      }
    }
  }
}

template <void (*Decode)(const uint8_t*, float*)>
void DecodeBlocks(Encoding encoding, const uint8_t* bytes, uint64_t count, float* out) {
  const auto elements = static_cast<uint64_t>(BlockElements(encoding));
  const uint64_t stride = EncodedBytes(encoding, elements);
  for (uint64_t i = 0; i < count / elements; ++i) Decode(bytes + i * stride, out + i * elements);
}

}  // namespace

absl::Status DecodeToF32(Encoding encoding, const void* bytes, uint64_t count, float* out) {
  const auto* in = static_cast<const uint8_t*>(bytes);
  switch (encoding) {
    case Encoding::kF32: std::memcpy(out, in, count * 4); return absl::OkStatus();
    case Encoding::kF16:
      for (uint64_t i = 0; i < count; ++i) out[i] = LoadHalf(in + i * 2);
      return absl::OkStatus();
    case Encoding::kBF16:
      for (uint64_t i = 0; i < count; ++i) {
        uint16_t value;
        std::memcpy(&value, in + i * 2, 2);
        out[i] = std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
      }
      return absl::OkStatus();
    case Encoding::kQ8_0: DecodeBlocks<DecodeQ8_0>(encoding, in, count, out); return absl::OkStatus();
    case Encoding::kQ4_0: DecodeBlocks<DecodeQ4_0>(encoding, in, count, out); return absl::OkStatus();
    case Encoding::kQ4_1: DecodeBlocks<DecodeQ4_1>(encoding, in, count, out); return absl::OkStatus();
    case Encoding::kQ5_0: DecodeBlocks<DecodeQ5_0>(encoding, in, count, out); return absl::OkStatus();
    case Encoding::kQ5_1: DecodeBlocks<DecodeQ5_1>(encoding, in, count, out); return absl::OkStatus();
    case Encoding::kQ4_K: DecodeBlocks<DecodeQ45_K<false>>(encoding, in, count, out); return absl::OkStatus();
    case Encoding::kQ5_K: DecodeBlocks<DecodeQ45_K<true>>(encoding, in, count, out); return absl::OkStatus();
    case Encoding::kQ6_K: DecodeBlocks<DecodeQ6_K>(encoding, in, count, out); return absl::OkStatus();
    case Encoding::kI8:
    case Encoding::kU8:
    case Encoding::kI32:
    case Encoding::kI64: break;
  }
  return absl::UnimplementedError(absl::StrCat("weights stored as ", EncodingName(encoding), " cannot be decoded"));
}

}  // namespace phalanx::formats
