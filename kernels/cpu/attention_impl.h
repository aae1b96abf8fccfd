// kernels/cpu/attention_impl.h: attention over one chunk of positions, written once over a vector vocabulary.
// Refuses to know: pages, sequences, threads (attention.cc). Thread: any.
// Neighbours: included by level_*.cc; internal linkage, as gemm_impl.h.
//
// Scores: lane sums over head_dim in rising order, then one fixed tree. Weighted values: positions in rising order. A position
// that a query does not see has weight 0 and adds 0, so queries with different ends can share a tile without changing bits.
#pragma once

#include "kernels/cpu/rows_impl.h"

namespace {

using phalanx::kernels::cpu::ChunkArgs;
using phalanx::kernels::cpu::kChunk;

template <class V, int Queries>
inline void ScoreTile(const ChunkArgs& a, int query, int first, int last) {
  const int hd = a.head_dim;
  const float* q = a.q + static_cast<int64_t>(query) * hd;
  for (int p = first & ~3; p < last; p += 4) {
    const float* k = a.k + static_cast<int64_t>(p) * hd;
    typename V::F acc[Queries][4];
    for (auto& row : acc) {
      for (auto& x : row) x = V::Zero();
    }
    for (int i = 0; i < hd; i += V::kLanes) {
      for (int j = 0; j < 4; ++j) {
        const typename V::F kv = V::Load(k + j * hd + i);
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

template <class V, int Queries, int Vecs>
inline void ValueTile(const ChunkArgs& a, int query, int first, int last, int dim) {
  typename V::F acc[Queries][Vecs];
  for (auto& row : acc) {
    for (auto& x : row) x = V::Zero();
  }
  const float* weights = a.scores + static_cast<int64_t>(query) * kChunk;
  for (int p = first; p < last; ++p) {
    const float* v = a.v + static_cast<int64_t>(p) * a.head_dim + dim;
    typename V::F value[Vecs];
    for (int i = 0; i < Vecs; ++i) value[i] = V::Load(v + i * V::kLanes);
    for (int r = 0; r < Queries; ++r) {
      const typename V::F w = V::Set(weights[r * kChunk + p]);
      for (int i = 0; i < Vecs; ++i) acc[r][i] = V::Fma(w, value[i], acc[r][i]);
    }
  }
  for (int r = 0; r < Queries; ++r) {
    for (int i = 0; i < Vecs; ++i) V::Store(a.out + static_cast<int64_t>(query + r) * a.head_dim + dim + i * V::kLanes, acc[r][i]);
  }
}

template <class V, int Queries>
inline void ChunkTile(const ChunkArgs& a, int query) {
  int first = kChunk, last = 0;
  for (int r = query; r < query + Queries; ++r) {
    if (a.end[r] <= a.begin[r]) continue;
    first = a.begin[r] < first ? a.begin[r] : first;
    last = a.end[r] > last ? a.end[r] : last;
  }
  if (first > last) first = last;
  ScoreTile<V, Queries>(a, query, first, last);
  for (int r = query; r < query + Queries; ++r) SoftmaxRow<V>(a, r, first, last);
  int dim = 0;
  for (; dim + 4 * V::kLanes <= a.head_dim; dim += 4 * V::kLanes) ValueTile<V, Queries, 4>(a, query, first, last, dim);
  for (; dim < a.head_dim; dim += V::kLanes) ValueTile<V, Queries, 1>(a, query, first, last, dim);
}

template <class V>
void AttentionChunk(const ChunkArgs& a) {
  int query = 0;
  for (; query + 3 <= a.queries; query += 3) ChunkTile<V, 3>(a, query);
  if (a.queries - query == 2) ChunkTile<V, 2>(a, query);
  if (a.queries - query == 1) ChunkTile<V, 1>(a, query);
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
