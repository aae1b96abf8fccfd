// kernels/cpu/attention_impl.h: attention over one chunk of positions, written once over a vector vocabulary.
// Refuses to know: pages, sequences, threads (attention.cc). Thread: any.
// Neighbours: included by level_*.cc; internal linkage, as gemm_impl.h.
//
// Scores: lane sums over head_dim in a fixed order, then one fixed tree. Weighted values: positions in rising order. A position
// that a query does not see has weight 0 and adds 0, so queries with different ends can share a tile without changing bits.
//
// A bf16 row is widened in registers: the even elements of two vectors' worth are a shift, the odd ones a mask. So its lanes are
// "paired": [even elements][odd elements] of each 2 x lanes, what is left over in its own order. Queries and results of a unit are
// kept in that order as well, and so are rows that were widened beforehand (many queries share them): same order, same bits.
#pragma once

#include "kernels/cpu/rows_impl.h"

namespace {

using phalanx::kernels::cpu::ChunkArgs;
using phalanx::kernels::cpu::kChunk;

// Rows [rows, head_dim] as f32, paired if asked for.
template <class V>
void LoadHeads(const void* x, DType dtype, int64_t rows, int head_dim, bool paired, float* out) {
  if (!paired) return ToFloat<V>(x, dtype, rows * head_dim, out);
  for (int64_t r = 0; r < rows; ++r, out += head_dim) {
    int i = 0;
    for (; i + 2 * V::kLanes <= head_dim; i += 2 * V::kLanes) {
      if (dtype == kBF16) {
        const uint16_t* from = static_cast<const uint16_t*>(x) + r * head_dim + i;
        V::Store(out + i, V::EvenBf16(from));
        V::Store(out + i + V::kLanes, V::OddBf16(from));
      } else {
        const float* from = static_cast<const float*>(x) + r * head_dim + i;
        for (int j = 0; j < V::kLanes; ++j) out[i + j] = from[2 * j], out[i + V::kLanes + j] = from[2 * j + 1];
      }
    }
    for (; i < head_dim; i += V::kLanes) V::Store(out + i, LoadAs<V>(x, dtype, r * head_dim + i));
  }
}

// One row back.
template <class V>
void StoreHead(const float* x, int head_dim, bool paired, DType dtype, void* out) {
  int i = 0;
  for (; paired && i + 2 * V::kLanes <= head_dim; i += 2 * V::kLanes) {
    alignas(64) float row[2 * V::kLanes];
    for (int j = 0; j < V::kLanes; ++j) row[2 * j] = x[i + j], row[2 * j + 1] = x[i + V::kLanes + j];
    StoreAs<V>(out, dtype, i, V::Load(row));
    StoreAs<V>(out, dtype, i + V::kLanes, V::Load(row + V::kLanes));
  }
  for (; i < head_dim; i += V::kLanes) StoreAs<V>(out, dtype, i, V::Load(x + i));
}

// How two vectors of a row are read. Both give the same values.
template <class V>
struct F32Row {
  using T = float;
  static inline typename V::F First(const T* p) { return V::Load(p); }
  static inline typename V::F Second(const T* p) { return V::Load(p + V::kLanes); }
};
template <class V>
struct Bf16Row {
  using T = uint16_t;
  static inline typename V::F First(const T* p) { return V::EvenBf16(p); }
  static inline typename V::F Second(const T* p) { return V::OddBf16(p); }
};
template <class V>
inline typename V::F Last(const float* p) { return V::Load(p); }
template <class V>
inline typename V::F Last(const uint16_t* p) { return V::LoadBf16(p); }

// Rows are fetched at the rate at which they are used, one for each position of the scores and of the values, so that memory is busy all
// the time. Values are summed in blocks of so many positions, all of head_dim, lest the first pass alone did all the fetching.
constexpr int kValueBlock = 64;

struct Fetcher {
  const void* const* row;
  const void* const* end;
  int64_t bytes;
  int interval;  // positions of a pass for one row
  inline void One() {
    if (row == end) return;
    const char* at = static_cast<const char*>(*row++);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i);
  }
};

template <class V, int Queries, class Row>
inline void ScoreTile(const ChunkArgs& a, int query, int first, int last, Fetcher* fetch) {
  using T = typename Row::T;
  const int hd = a.head_dim;
  const float* q = a.q + static_cast<int64_t>(query) * hd;
  for (int p = first & ~3; p < last; p += 4) {
    for (int j = 0; j < 4; ++j) fetch->One();
    const T* k[4];
    for (int j = 0; j < 4; ++j) k[j] = static_cast<const T*>(a.k_rows[p + j]);
    typename V::F acc[Queries][4];
    for (auto& row : acc) {
      for (auto& x : row) x = V::Zero();
    }
    int i = 0;
    for (; i + 2 * V::kLanes <= hd; i += 2 * V::kLanes) {
      for (int j = 0; j < 4; ++j) {
        const typename V::F kv = Row::First(k[j] + i);
        for (int r = 0; r < Queries; ++r) acc[r][j] = V::Fma(V::Load(q + r * hd + i), kv, acc[r][j]);
      }
      for (int j = 0; j < 4; ++j) {
        const typename V::F kv = Row::Second(k[j] + i);
        for (int r = 0; r < Queries; ++r) acc[r][j] = V::Fma(V::Load(q + r * hd + i + V::kLanes), kv, acc[r][j]);
      }
    }
    for (; i < hd; i += V::kLanes) {
      for (int j = 0; j < 4; ++j) {
        const typename V::F kv = Last<V>(k[j] + i);
        for (int r = 0; r < Queries; ++r) acc[r][j] = V::Fma(V::Load(q + r * hd + i), kv, acc[r][j]);
      }
    }
    for (int r = 0; r < Queries; ++r) {
      V::Sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3], a.scores + static_cast<int64_t>(query + r) * kChunk + p);
    }
  }
}

template <class V>
inline void SoftmaxRow(const ChunkArgs& a, int query, int first, int last) {
  float* s = a.scores + static_cast<int64_t>(query) * kChunk;
  const int begin = a.begin[query], end = a.end[query];
  const float none = -__builtin_inff();
  // Lanes stand at fixed places of the chunk: first and last are widened to whole vectors, what lies outside becomes -inf.
  const int from = first / V::kLanes * V::kLanes, to = (last + V::kLanes - 1) / V::kLanes * V::kLanes;
  for (int p = from; p < begin && p < to; ++p) s[p] = none;
  for (int p = end > from ? end : from; p < to; ++p) s[p] = none;
  typename V::F top = V::Set(none);
  const typename V::F scale = V::Set(a.scale);
  for (int p = from; p < to; p += V::kLanes) {
    const typename V::F v = V::Mul(V::Load(s + p), scale);
    V::Store(s + p, v);
    top = V::Max(v, top);
  }
  const float max = V::MaxLane(top);
  a.max[query] = max;
  const typename V::F shift = V::Set(max == none ? 0.0f : max);
  typename V::F sum = V::Zero();
  for (int p = from; p < to; p += V::kLanes) {
    const typename V::F e = Exp<V>(V::Sub(V::Load(s + p), shift));
    V::Store(s + p, e);
    sum = V::Add(sum, e);
  }
  a.sum[query] = V::Sum(sum);
}

// Adds positions [from, to) to Pairs x 2 vectors of the result from `dim` on; Pairs = 0: to one vector in its own order.
template <class V, int Queries, int Pairs, class Row>
inline void ValueTile(const ChunkArgs& a, int query, int from, int to, int dim, bool start, Fetcher* fetch) {
  using T = typename Row::T;
  constexpr int kVecs = Pairs == 0 ? 1 : 2 * Pairs;
  float* out = a.out + static_cast<int64_t>(query) * a.head_dim + dim;
  typename V::F acc[Queries][kVecs];
  for (int r = 0; r < Queries; ++r) {
    for (int i = 0; i < kVecs; ++i) acc[r][i] = start ? V::Zero() : V::Load(out + r * a.head_dim + i * V::kLanes);
  }
  const float* weights = a.scores + static_cast<int64_t>(query) * kChunk;
  int until_fetch = fetch->interval;
  for (int p = from; p < to; ++p) {
    if (--until_fetch == 0) {
      fetch->One();
      until_fetch = fetch->interval;
    }
    const T* v = static_cast<const T*>(a.v_rows[p]) + dim;
    typename V::F w[Queries];
    for (int r = 0; r < Queries; ++r) w[r] = V::Set(weights[r * kChunk + p]);
    if constexpr (Pairs == 0) {
      const typename V::F value = Last<V>(v);
      for (int r = 0; r < Queries; ++r) acc[r][0] = V::Fma(w[r], value, acc[r][0]);
    }
    for (int i = 0; i < Pairs; ++i) {
      const typename V::F even = Row::First(v + 2 * i * V::kLanes);
      for (int r = 0; r < Queries; ++r) acc[r][2 * i] = V::Fma(w[r], even, acc[r][2 * i]);
      const typename V::F odd = Row::Second(v + 2 * i * V::kLanes);
      for (int r = 0; r < Queries; ++r) acc[r][2 * i + 1] = V::Fma(w[r], odd, acc[r][2 * i + 1]);
    }
  }
  for (int r = 0; r < Queries; ++r) {
    for (int i = 0; i < kVecs; ++i) V::Store(out + r * a.head_dim + i * V::kLanes, acc[r][i]);
  }
}

// All of head_dim for positions [from, to).
template <class V, int Queries, class Row>
inline void ValueBlock(const ChunkArgs& a, int query, int from, int to, bool start, Fetcher* fetch) {
  // Sums that fill the registers but leave room for the weights and for widening; sixteen registers are few.
  constexpr int kPairs = Queries == 1 ? 4 : Queries == 2 ? 2 : V::kLanes == 8 && sizeof(typename Row::T) == 2 ? 1 : 2;
  constexpr int kPass = 2 * kPairs * V::kLanes;
  fetch->interval = a.head_dim >= kPass ? a.head_dim / kPass : 1;
  int dim = 0;
  for (; dim + kPass <= a.head_dim; dim += kPass) ValueTile<V, Queries, kPairs, Row>(a, query, from, to, dim, start, fetch);
  for (; dim + 2 * V::kLanes <= a.head_dim; dim += 2 * V::kLanes) ValueTile<V, Queries, 1, Row>(a, query, from, to, dim, start, fetch);
  for (; dim < a.head_dim; dim += V::kLanes) ValueTile<V, Queries, 0, Row>(a, query, from, to, dim, start, fetch);
}

template <class V, int Queries, class Row>
inline void ChunkTile(const ChunkArgs& a, int query) {
  int first = kChunk, last = 0;
  for (int r = query; r < query + Queries; ++r) {
    if (a.end[r] <= a.begin[r]) continue;
    first = a.begin[r] < first ? a.begin[r] : first;
    last = a.end[r] > last ? a.end[r] : last;
  }
  if (first > last) first = last;
  // The first tile of queries fetches for all.
  Fetcher fetch{a.fetch, query == 0 ? a.fetch_end : a.fetch, a.head_dim * static_cast<int64_t>(sizeof(typename Row::T)), 1};
  ScoreTile<V, Queries, Row>(a, query, first, last, &fetch);
  for (int r = query; r < query + Queries; ++r) SoftmaxRow<V>(a, r, first, last);
  const int block = fetch.row != fetch.end ? kValueBlock : kChunk;
  for (int p = first; p < last || p == first; p += block) {
    ValueBlock<V, Queries, Row>(a, query, p, p + block < last ? p + block : last, p == first, &fetch);
  }
}

template <class V, class Row>
void ChunkTiles(const ChunkArgs& a) {
  int query = 0;
  for (; query + 3 <= a.queries; query += 3) ChunkTile<V, 3, Row>(a, query);
  if (a.queries - query == 2) ChunkTile<V, 2, Row>(a, query);
  if (a.queries - query == 1) ChunkTile<V, 1, Row>(a, query);
}

template <class V>
void AttentionChunk(const ChunkArgs& a) {
  a.rows == kBF16 ? ChunkTiles<V, Bf16Row<V>>(a) : ChunkTiles<V, F32Row<V>>(a);
}

template <class V>
void AttentionMerge(int head_dim, float* max, float* sum, float* out, float chunk_max, float chunk_sum, const float* chunk_out) {
  if (chunk_sum == 0.0f) return;  // sees nothing of this chunk
  const float top = *max > chunk_max ? *max : chunk_max;
  alignas(64) float factors[V::kLanes] = {};
  factors[0] = *max - top;
  factors[1] = chunk_max - top;
  V::Store(factors, Exp<V>(V::Load(factors)));
  const typename V::F old_factor = V::Set(factors[0]), new_factor = V::Set(factors[1]);
  for (int i = 0; i < head_dim; i += V::kLanes) {
    V::Store(out + i, V::Fma(V::Load(chunk_out + i), new_factor, V::Mul(V::Load(out + i), old_factor)));
  }
  *sum = *sum * factors[0] + chunk_sum * factors[1];
  *max = top;
}

}  // namespace
