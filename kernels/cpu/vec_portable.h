// kernels/cpu/vec_portable.h: the vector vocabulary on compiler vectors of four floats, for any CPU.
// Refuses to know: operations, shapes. Thread: any. Included by level_portable.cc alone.
// Neighbours: vec_avx2.h and vec_avx512.h have the same names; the *_impl.h files are written against them.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct VecPortable {
  static constexpr int kLanes = 4;
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));

  static inline F Zero() { return F{}; }
  static inline F Set(float x) { return F{x, x, x, x}; }
  static inline F Load(const float* p) {
    F v;
    std::memcpy(&v, p, 16);
    return v;
  }
  static inline void Store(float* p, F v) { std::memcpy(p, &v, 16); }
  static inline F LoadBf16(const uint16_t* p) {
    U v = {p[0], p[1], p[2], p[3]};
    return reinterpret_cast<F>(v << 16);
  }
  static inline void StoreBf16(uint16_t* p, F v) {
    U bits = reinterpret_cast<U>(v);
    U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    U quiet = (bits >> 16) | 0x40;
    I nan = v != v;
    U out = (rounded & ~reinterpret_cast<U>(nan)) | (quiet & reinterpret_cast<U>(nan));
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint16_t>(out[i]);
  }
  // Pairs of bf16 in 32-bit words: the first (low) and the second (high) of each pair.
  static inline F EvenBf16(const uint16_t* p) {
    U v;
    std::memcpy(&v, p, 16);
    return reinterpret_cast<F>(v << 16);
  }
  static inline F OddBf16(const uint16_t* p) {
    U v;
    std::memcpy(&v, p, 16);
    return reinterpret_cast<F>(v & 0xffff0000u);
  }
  static inline F Fma(F a, F b, F c) { return a * b + c; }
  static inline F Add(F a, F b) { return a + b; }
  static inline F Sub(F a, F b) { return a - b; }
  static inline F Mul(F a, F b) { return a * b; }
  static inline F Div(F a, F b) { return a / b; }
  static inline F Blend(I mask, F yes, F no) {
    return reinterpret_cast<F>((reinterpret_cast<I>(yes) & mask) | (reinterpret_cast<I>(no) & ~mask));
  }
  static inline F Max(F a, F b) { return Blend(a > b, a, b); }  // b if either is NaN
  static inline F Min(F a, F b) { return Blend(a < b, a, b); }
  static inline F ZeroBelow(F value, F x, F limit) { return Blend(x < limit, Zero(), value); }
  static inline F Round(F x) {
    F magic = Set(12582912.0f);  // 1.5 * 2^23: adding it leaves no fraction bits
    return (x + magic) - magic;
  }
  static inline F Pow2(F n) {
    I whole = {static_cast<int32_t>(n[0]), static_cast<int32_t>(n[1]), static_cast<int32_t>(n[2]), static_cast<int32_t>(n[3])};
    return reinterpret_cast<F>((whole + 127) << 23);
  }
  static inline float Sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  static inline float MaxLane(F v) {
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
  // The four sums of four vectors.
  static inline void Sum4(F a, F b, F c, F d, float* out) {
    out[0] = Sum(a);
    out[1] = Sum(b);
    out[2] = Sum(c);
    out[3] = Sum(d);
  }
  // One bit a lane: value >= limit, value > limit, and value is NaN or +infinity.
  static inline F High24(const uint32_t* p) {
    return F{static_cast<float>(p[0] >> 8), static_cast<float>(p[1] >> 8), static_cast<float>(p[2] >> 8), static_cast<float>(p[3] >> 8)};
  }
  typedef uint64_t W __attribute__((vector_size(16)));
  static inline W MulLow(W a, uint32_t by) { return (a & 0xffffffffu) * by; }
  static inline uint32_t AtLeast(F v, F limit) { return Bits(v >= limit); }
  static inline uint32_t Above(F v, F limit) { return Bits(v > limit); }
  static inline uint32_t NotBelowInfinity(F v) { return ~Bits(v < Set(__builtin_inff())) & 0xf; }

 private:
  static inline uint32_t Bits(I m) { return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8); }
};

}  // namespace
