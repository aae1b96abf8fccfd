// kernels/cpu/rows_impl.h: norms, activations, conversions and rows of logits, written once over a vector vocabulary.
// Refuses to know: threads, tensors. Thread: any. Neighbours: included by level_*.cc; internal linkage, as gemm_impl.h.
//
// A tail shorter than a vector goes through a small padded buffer and the same vector code, so that an element's bits do not
// depend on where in its row it stands relative to a vector's edge.
#pragma once

#include <cstring>

#include "kernels/cpu/level.h"

namespace {

using phalanx::kernels::DType;
using phalanx::kernels::kBF16;
using phalanx::kernels::kF32;
using phalanx::kernels::cpu::FinishArgs;

template <class V>
inline typename V::F LoadAs(const void* x, DType dtype, int64_t i) {
  return dtype == kF32 ? V::Load(static_cast<const float*>(x) + i) : V::LoadBf16(static_cast<const uint16_t*>(x) + i);
}

template <class V>
inline typename V::F LoadPart(const void* x, DType dtype, int64_t i, int64_t count) {
  alignas(64) char buffer[64] = {};
  const int64_t size = dtype == kF32 ? 4 : 2;
  std::memcpy(buffer, static_cast<const char*>(x) + i * size, static_cast<size_t>(count * size));
  return LoadAs<V>(buffer, dtype, 0);
}

template <class V>
inline void StoreAs(void* out, DType dtype, int64_t i, typename V::F v) {
  if (dtype == kF32) {
    V::Store(static_cast<float*>(out) + i, v);
  } else {
    V::StoreBf16(static_cast<uint16_t*>(out) + i, v);
  }
}

template <class V>
inline void StorePart(void* out, DType dtype, int64_t i, int64_t count, typename V::F v) {
  alignas(64) char buffer[64];
  const int64_t size = dtype == kF32 ? 4 : 2;
  StoreAs<V>(buffer, dtype, 0, v);
  std::memcpy(static_cast<char*>(out) + i * size, buffer, static_cast<size_t>(count * size));
}

// Calls f(vector index, lanes in use) over n elements.
template <class V, class Fn>
inline __attribute__((always_inline)) void Each(int64_t n, Fn f) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) f(i, V::kLanes);
  if (i < n) f(i, n - i);
}

template <class V>
inline typename V::F LoadN(const void* x, DType dtype, int64_t i, int64_t count) {
  return count == V::kLanes ? LoadAs<V>(x, dtype, i) : LoadPart<V>(x, dtype, i, count);
}
template <class V>
inline void StoreN(void* out, DType dtype, int64_t i, int64_t count, typename V::F v) {
  if (count == V::kLanes) {
    StoreAs<V>(out, dtype, i, v);
  } else {
    StorePart<V>(out, dtype, i, count, v);
  }
}

// Relative error below 2e-7; 0 below -87.3, NaN stays NaN.
template <class V>
inline typename V::F Exp(typename V::F x) {
  using F = typename V::F;
  const F low = V::Set(-87.3f);
  F clamped = V::Min(V::Set(88.7f), V::Max(low, x));
  F n = V::Round(V::Mul(clamped, V::Set(1.44269504088896341f)));
  F r = V::Fma(n, V::Set(-0.693359375f), clamped);
  r = V::Fma(n, V::Set(2.12194440e-4f), r);
  F p = V::Set(1.9875691500e-4f);
  p = V::Fma(p, r, V::Set(1.3981999507e-3f));
  p = V::Fma(p, r, V::Set(8.3334519073e-3f));
  p = V::Fma(p, r, V::Set(4.1665795894e-2f));
  p = V::Fma(p, r, V::Set(1.6666665459e-1f));
  p = V::Fma(p, r, V::Set(5.0000001201e-1f));
  p = V::Fma(p, V::Mul(r, r), V::Add(r, V::Set(1.0f)));
  // 2^n in two steps: n = 128 has no f32 of its own.
  F half = V::Round(V::Mul(n, V::Set(0.5f)));
  p = V::Mul(V::Mul(p, V::Pow2(half)), V::Pow2(V::Sub(n, half)));
  return V::ZeroBelow(p, x, low);
}

template <class V>
inline typename V::F Silu(typename V::F x) {
  const typename V::F one = V::Set(1.0f);
  return V::Div(x, V::Add(one, Exp<V>(V::Sub(V::Zero(), x))));
}

template <class V>
void ToFloat(const void* x, DType dtype, int64_t n, float* out) {
  Each<V>(n, [&](int64_t i, int64_t count) { StoreN<V>(out, kF32, i, count, LoadN<V>(x, dtype, i, count)); });
}
template <class V>
void FromFloat(const float* x, int64_t n, DType dtype, void* out) {
  Each<V>(n, [&](int64_t i, int64_t count) { StoreN<V>(out, dtype, i, count, LoadN<V>(x, kF32, i, count)); });
}

template <class V>
inline typename V::F RoundBf16(typename V::F v) {
  alignas(64) uint16_t buffer[V::kLanes];
  V::StoreBf16(buffer, v);
  return V::LoadBf16(buffer);
}

template <class V>
void RmsNormRow(const void* x, DType dtype, const void* gamma, float epsilon, int64_t n, void* out) {
  typename V::F squares = V::Zero();
  Each<V>(n, [&](int64_t i, int64_t count) {
    typename V::F v = LoadN<V>(x, dtype, i, count);
    squares = V::Fma(v, v, squares);
  });
  const typename V::F scale = V::Set(1.0f / __builtin_sqrtf(V::Sum(squares) / static_cast<float>(n) + epsilon));
  Each<V>(n, [&](int64_t i, int64_t count) {
    typename V::F v = V::Mul(LoadN<V>(x, dtype, i, count), scale);
    if (dtype == kBF16) v = RoundBf16<V>(v);
    StoreN<V>(out, dtype, i, count, V::Mul(v, LoadN<V>(gamma, dtype, i, count)));
  });
}

template <class V>
void AddRow(void* to, const void* x, DType dtype, int64_t n) {
  Each<V>(n, [&](int64_t i, int64_t count) {
    StoreN<V>(to, dtype, i, count, V::Add(LoadN<V>(to, dtype, i, count), LoadN<V>(x, dtype, i, count)));
  });
}

template <class V>
void SiluMulRow(const void* gate, const void* up, DType dtype, int64_t n, void* out) {
  Each<V>(n, [&](int64_t i, int64_t count) {
    StoreN<V>(out, dtype, i, count, V::Mul(Silu<V>(LoadN<V>(gate, dtype, i, count)), LoadN<V>(up, dtype, i, count)));
  });
}

template <class V>
void RopeRow(const float* x, const float* cosine, const float* sine, int half, float* out) {
  Each<V>(half, [&](int64_t i, int64_t count) {
    typename V::F a = LoadN<V>(x, kF32, i, count), b = LoadN<V>(x, kF32, half + i, count);
    typename V::F c = LoadN<V>(cosine, kF32, i, count), s = LoadN<V>(sine, kF32, i, count);
    StoreN<V>(out, kF32, i, count, V::Sub(V::Mul(a, c), V::Mul(b, s)));
    StoreN<V>(out, kF32, half + i, count, V::Add(V::Mul(b, c), V::Mul(a, s)));
  });
}

// `sums` has whole panels, so loads need no tail; stores do.
template <class V>
void FinishRow(const FinishArgs& a) {
  float* sums = a.sums;
  if (a.bias != nullptr) {
    Each<V>(a.columns, [&](int64_t i, int64_t count) { V::Store(sums + i, V::Add(V::Load(sums + i), LoadN<V>(a.bias, kF32, i, count))); });
  }
  if (a.epilogue == phalanx::kernels::kEpilogueSiluMul) {
    for (int64_t i = 0; i < a.columns / 2; i += V::kLanes) {
      const int64_t left = a.columns / 2 - i, count = left < V::kLanes ? left : V::kLanes;
      alignas(64) float gate[V::kLanes] = {}, up[V::kLanes] = {};
      for (int64_t j = 0; j < count; ++j) gate[j] = sums[2 * (i + j)], up[j] = sums[2 * (i + j) + 1];
      StoreN<V>(a.out, a.dtype, i, count, V::Mul(Silu<V>(V::Load(gate)), V::Load(up)));
    }
    return;
  }
  Each<V>(a.columns, [&](int64_t i, int64_t count) {
    typename V::F v = V::Load(sums + i);
    if (a.epilogue == phalanx::kernels::kEpilogueAdd) v = V::Add(LoadN<V>(a.out, a.dtype, i, count), v);
    StoreN<V>(a.out, a.dtype, i, count, v);
  });
}

template <class V>
float RowMax(const float* x, int64_t n, bool* bad) {
  typename V::F top = V::Set(-__builtin_inff());
  uint32_t wrong = 0;
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) {
    typename V::F v = V::Load(x + i);
    wrong |= V::NotBelowInfinity(v);
    top = V::Max(v, top);
  }
  float best = V::MaxLane(top);
  for (; i < n; ++i) {
    if (!(x[i] < __builtin_inff())) wrong |= 1;
    if (x[i] > best) best = x[i];
  }
  *bad = wrong != 0;
  return best;
}

template <class V>
double ExpSum(const float* x, int64_t n, float max) {
  double total = 0;
  const typename V::F top = V::Set(max);
  for (int64_t begin = 0; begin < n; begin += 1024) {  // short f32 sums, added in double
    const int64_t end = begin + 1024 < n ? begin + 1024 : n;
    typename V::F sum = V::Zero();
    int64_t i = begin;
    for (; i + V::kLanes <= end; i += V::kLanes) sum = V::Add(sum, Exp<V>(V::Sub(V::Load(x + i), top)));
    if (i < end) {
      alignas(64) float tail[V::kLanes];
      for (int64_t j = 0; j < V::kLanes; ++j) tail[j] = i + j < end ? x[i + j] : -__builtin_inff();
      sum = V::Add(sum, Exp<V>(V::Sub(V::Load(tail), top)));
    }
    total += static_cast<double>(V::Sum(sum));
  }
  return total;
}

template <class V>
void ExpShift(const float* x, int64_t n, float max, float* out) {
  const typename V::F top = V::Set(max);
  Each<V>(n, [&](int64_t i, int64_t count) { StoreN<V>(out, kF32, i, count, Exp<V>(V::Sub(LoadN<V>(x, kF32, i, count), top))); });
}

template <class V>
int64_t CountAbove(const float* x, int64_t n, float limit) {
  const typename V::F at = V::Set(limit);
  int64_t count = 0, i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) count += __builtin_popcount(V::Above(V::Load(x + i), at));
  for (; i < n; ++i) count += x[i] > limit ? 1 : 0;
  return count;
}

template <class V>
int64_t Collect(const float* x, int64_t n, float limit, int32_t* ids) {
  const typename V::F at = V::Set(limit);
  int64_t count = 0, i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) {
    for (uint32_t bits = V::AtLeast(V::Load(x + i), at); bits != 0; bits &= bits - 1) {
      ids[count++] = static_cast<int32_t>(i + __builtin_ctz(bits));
    }
  }
  for (; i < n; ++i) {
    if (x[i] >= limit) ids[count++] = static_cast<int32_t>(i);
  }
  return count;
}

// First words of Philox4x32-10 with counters (position, id, stream, 0). Source: Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011. Even and odd ids go apart, so that each word sits in the low half of a 64-bit lane, as multiplication wants it.
template <class V>
void PhiloxRow(uint64_t key, uint32_t position, uint32_t stream, const int32_t* ids, int64_t n, uint32_t* out) {
  using W = typename V::W;
  const W zero = {};
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const size_t bytes = static_cast<size_t>(n - i < V::kLanes ? n - i : V::kLanes) * 4;
    W id = zero;
    std::memcpy(&id, ids + i, bytes);
    W c0[2] = {zero + position, zero + position}, c1[2] = {id & 0xffffffffu, id >> 32};
    W c2[2] = {zero + stream, zero + stream}, c3[2] = {zero, zero};
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
      for (int half = 0; half < 2; ++half) {
        const W p0 = V::MulLow(c0[half], 0xD2511F53), p1 = V::MulLow(c2[half], 0xCD9E8D57);
        c0[half] = (p1 >> 32) ^ c1[half] ^ uint64_t{k0};
        c1[half] = p1;
        c2[half] = (p0 >> 32) ^ c3[half] ^ uint64_t{k1};
        c3[half] = p0;
      }
    }
    const W words = (c0[0] & 0xffffffffu) | (c0[1] << 32);
    std::memcpy(out + i, &words, bytes);
  }
}

// Places i with words[i] <= mass[i] * scale + 1 and mass[i] * scale >= 0.49, and perhaps some more: words are looked at in steps of 256.
template <class V>
int64_t WithinReach(const float* mass, const uint32_t* words, int64_t n, float scale, int32_t* places) {
  const typename V::F by = V::Set(scale * 0x1p-8f), one = V::Set(1.0f), least = V::Set(0.48f * 0x1p-8f);
  int64_t count = 0, i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) {
    const typename V::F limit = V::Mul(V::Load(mass + i), by);
    for (uint32_t bits = V::AtLeast(V::Add(limit, one), V::High24(words + i)) & V::AtLeast(limit, least); bits != 0; bits &= bits - 1) {
      places[count++] = static_cast<int32_t>(i + __builtin_ctz(bits));
    }
  }
  for (; i < n; ++i) places[count++] = static_cast<int32_t>(i);
  return count;
}

template <class V>
void DivideRow(float* x, int64_t n, float by) {
  const typename V::F d = V::Set(by);
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::Store(x + i, V::Div(V::Load(x + i), d));
  for (; i < n; ++i) x[i] /= by;
}

template <class V>
double ReadBytes(const char* data, int64_t bytes) {
  typename V::F sum[8];
  for (auto& s : sum) s = V::Zero();
  const float* x = reinterpret_cast<const float*>(data);
  for (int64_t i = 0; i + 8 * V::kLanes <= bytes / 4; i += 8 * V::kLanes) {
    for (int j = 0; j < 8; ++j) sum[j] = V::Add(sum[j], V::Load(x + i + j * V::kLanes));
  }
  double total = 0;
  for (auto& s : sum) total += V::Sum(s);
  return total;
}

template <class V>
double FmaLoop(int64_t rounds, float* sink) {
  constexpr int kChains = 12;
  typename V::F acc[kChains];
  const typename V::F a = V::Set(0.999f), b = V::Set(0.001f);
  for (int i = 0; i < kChains; ++i) acc[i] = V::Set(*sink + static_cast<float>(i));  // all different: none can be left out
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& x : acc) x = V::Fma(x, a, b);
  }
  float total = 0;
  for (auto& x : acc) total += V::Sum(x);
  *sink = total;
  return static_cast<double>(rounds) * kChains * V::kLanes * 2;
}

}  // namespace
