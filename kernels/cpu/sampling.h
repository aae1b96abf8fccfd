// kernels/cpu/sampling.h: the parts of a draw, on one row.
// Refuses to know: batches, threads. Thread: any. Neighbours: sampling.cc runs rows, sampling_draw.cc has these.
#pragma once

#include "kernels/cpu/level.h"

namespace phalanx::kernels::cpu {

// Buffers for one row of `vocab` values.
struct RowBuffers {
  float* x;        // [vocab] the shaped row, where it differs from the raw one
  float* mass;     // [vocab]
  float* spare;    // [vocab]
  int32_t* ids;    // [vocab]
};

// The k-th largest of x [n], 1 <= k <= n.
float KthLargest(const Level& level, const float* x, int64_t n, int64_t k, float* spare, int32_t* ids);

// A row to draw from: divided by the temperature.
struct DrawRow {
  const float* x;   // [n]
  int64_t n;
  float top;        // its maximum
  int32_t best;     // where that is first
  bool clean;       // no NaN is in it
};

// The smallest value that min-p, top-k and top-p leave; -infinity: they leave all.
float TruncationCut(const Level& level, const SamplingRow& options, const DrawRow& row, const RowBuffers& b);

// Gumbel-max over values >= cut.
int32_t DrawGumbel(const Level& level, const SamplingRow& options, const DrawRow& row, float cut, const RowBuffers& b);

// The `count` largest of x [n] into ids, best first, equal values by rising id. count <= n, count <= kMaxTopLogprobs.
void TopIds(const Level& level, const float* x, int64_t n, int32_t count, int32_t* spare_ids, int32_t* out);

}  // namespace phalanx::kernels::cpu
