// kernels/cpu/vec_avx512.h: the vector vocabulary on AVX-512 (F, BW, DQ, VL), sixteen floats.
// Refuses to know: operations, shapes. Thread: any. Included only by files that are compiled with -mavx512{f,bw,dq,vl}.
// Neighbours: vec_portable.h explains the names; the *_impl.h files are written against them.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct VecAvx512 {
  static constexpr int kLanes = 16;
  using F = __m512;

  static inline F Zero() { return _mm512_setzero_ps(); }
  static inline F Set(float x) { return _mm512_set1_ps(x); }
  static inline F Load(const float* p) { return _mm512_loadu_ps(p); }
  static inline void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static inline F LoadBf16(const uint16_t* p) {
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static inline void StoreBf16(uint16_t* p, F v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i high = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
    __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    __m512i out = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(out));
  }
  static inline F EvenBf16(const uint16_t* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16)); }
  static inline F OddBf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static inline F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static inline F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static inline F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static inline F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static inline F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static inline F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static inline F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static inline F ZeroBelow(F value, F x, F limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), value);
  }
  static inline F Round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static inline F Pow2(F n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
  }
  static inline float Sum(F v) { return _mm512_reduce_add_ps(v); }
  static inline float MaxLane(F v) { return _mm512_reduce_max_ps(v); }
  static inline void Sum4(F a, F b, F c, F d, float* out) {
    __m256 x = Halves(a), y = Halves(b), z = Halves(c), w = Halves(d);
    __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(x, y), _mm256_hadd_ps(z, w));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
  }
  static inline F High24(const uint32_t* p) { return _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_loadu_si512(p), 8)); }
  typedef uint64_t W __attribute__((vector_size(64)));
  static inline W MulLow(W a, uint32_t by) {
    return reinterpret_cast<W>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(by)));
  }
  static inline uint32_t AtLeast(F v, F limit) { return _mm512_cmp_ps_mask(v, limit, _CMP_GE_OQ); }
  static inline uint32_t Above(F v, F limit) { return _mm512_cmp_ps_mask(v, limit, _CMP_GT_OQ); }
  static inline uint32_t NotBelowInfinity(F v) { return _mm512_cmp_ps_mask(v, Set(__builtin_inff()), _CMP_NLT_UQ); }

 private:
  static inline __m256 Halves(F v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); }
};

}  // namespace
