// kernels/cpu/vec_avx2.h: the vector vocabulary on AVX2 and FMA, eight floats.
// Refuses to know: operations, shapes. Thread: any. Included only by files that are compiled with -mavx2 -mfma.
// Neighbours: vec_portable.h explains the names; the *_impl.h files are written against them.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct VecAvx2 {
  static constexpr int kLanes = 8;
  using F = __m256;

  static inline F Zero() { return _mm256_setzero_ps(); }
  static inline F Set(float x) { return _mm256_set1_ps(x); }
  static inline F Load(const float* p) { return _mm256_loadu_ps(p); }
  static inline void Store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static inline F LoadBf16(const uint16_t* p) {
    __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static inline void StoreBf16(uint16_t* p, F v) {
    __m256i bits = _mm256_castps_si256(v);
    __m256i high = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    __m256i out = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(out), _mm256_extracti128_si256(out, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  static inline F EvenBf16(const uint16_t* p) {
    __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
  }
  static inline F OddBf16(const uint16_t* p) {
    __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static inline F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static inline F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static inline F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static inline F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static inline F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static inline F Max(F a, F b) { return _mm256_max_ps(a, b); }  // b if either is NaN
  static inline F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static inline F ZeroBelow(F value, F x, F limit) { return _mm256_and_ps(value, _mm256_cmp_ps(x, limit, _CMP_NLT_UQ)); }
  static inline F Round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static inline F Pow2(F n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static inline float Sum(F v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_hadd_ps(x, x);
    x = _mm_hadd_ps(x, x);
    return _mm_cvtss_f32(x);
  }
  static inline float MaxLane(F v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  static inline void Sum4(F a, F b, F c, F d, float* out) {
    F ab = _mm256_hadd_ps(a, b), cd = _mm256_hadd_ps(c, d);
    F abcd = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
  }
  // The upper 24 bits of words, as whole numbers.
  static inline F High24(const uint32_t* p) {
    return _mm256_cvtepi32_ps(_mm256_srli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), 8));
  }
  // Lanes of 64 bits: the low halves times a 32-bit number.
  typedef uint64_t W __attribute__((vector_size(32)));
  static inline W MulLow(W a, uint32_t by) {
    return reinterpret_cast<W>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(by)));
  }
  static inline uint32_t AtLeast(F v, F limit) { return _mm256_movemask_ps(_mm256_cmp_ps(v, limit, _CMP_GE_OQ)); }
  static inline uint32_t Above(F v, F limit) { return _mm256_movemask_ps(_mm256_cmp_ps(v, limit, _CMP_GT_OQ)); }
  static inline uint32_t NotBelowInfinity(F v) {
    return _mm256_movemask_ps(_mm256_cmp_ps(v, Set(__builtin_inff()), _CMP_NLT_UQ));
  }
};

}  // namespace
