// The twin's attention: one query row and head at a time, softmax over all its positions at once, in double.
#include <algorithm>
#include <vector>

#include "kernels/reference/reference.h"

namespace phalanx::kernels::reference {

Code Attention(Device*, const AttentionArgs* a, const StepLayout* layout, Stream) {
  const KvLayer& kv = a->cache;
  const int64_t heads = a->q.shape[1], hd = kv.head_dim;
  if (!IsModelDType(a->q.dtype) || a->out.dtype != a->q.dtype || !IsModelDType(kv.dtype) || a->q.rank != 3 || a->q.shape[2] != hd ||
      heads % kv.kv_heads != 0 || Columns(a->out) != heads * hd) {
    return kBadShape;
  }
  const int64_t group = heads / kv.kv_heads;
  std::vector<double> weights, sum(hd);
  for (int s = 0; s < layout->num_sequences; ++s) {
    const int first_row = layout->query_start[s], rows = layout->query_start[s + 1] - first_row;
    auto at = [&](int64_t position, int64_t kv_head) {
      int64_t block = layout->block_table[static_cast<int64_t>(s) * layout->max_blocks + position / kv.block_size];
      return ((block * kv.kv_heads + kv_head) * kv.block_size + position % kv.block_size) * hd;
    };
    for (int r = 0; r < rows; ++r) {
      const int64_t own = layout->context_length[s] - rows + r;  // this row's place in its sequence
      const int64_t begin = a->window > 0 ? std::max<int64_t>(0, own - a->window + 1) : 0;
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t q_at = (first_row + r) * a->q.stride[0] + h * a->q.stride[1];
        weights.assign(own - begin + 1, 0);
        double top = -INFINITY, total = 0;
        for (int64_t p = begin; p <= own; ++p) {
          double dot = 0;
          for (int64_t i = 0; i < hd; ++i) {
            dot += static_cast<double>(Load(a->q.data, a->q.dtype, q_at + i)) * Load(kv.k, kv.dtype, at(p, h / group) + i);
          }
          weights[p - begin] = dot * a->scale;
          top = std::max(top, weights[p - begin]);
        }
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t p = begin; p <= own; ++p) {
          const double weight = std::exp(weights[p - begin] - top);
          total += weight;
          for (int64_t i = 0; i < hd; ++i) sum[i] += weight * Load(kv.v, kv.dtype, at(p, h / group) + i);
        }
        for (int64_t i = 0; i < hd; ++i) {
          Store(a->out.data, a->out.dtype, RowOffset(a->out, first_row + r) + h * hd + i, static_cast<float>(sum[i] / total));
        }
      }
    }
  }
  return kOk;
}

}  // namespace phalanx::kernels::reference
