// Log-softmax of chosen ids, their rank, and the best entries of raw rows.
//
//   logits        [rows, vocab]              f32
//   ids           [rows]
//   logprobs      [rows]    ranks [rows]
//   top_ids       [rows, kMaxTopLogprobs]    top_logprobs alike
//
// Reads a row two times, three for top entries; a row has one CTA and stays in L2. Rows that want nothing leave at once. Sums of
// exponentials are taken in f64 per thread, in an order that never changes. Best first, equal values by rising id (select.cuh).
#include "kernels/cuda/device/select.cuh"
#include "kernels/cuda/sampling.h"

namespace phalanx::kernels::cuda {
namespace {

struct ReportShared {
  SelectShared select;
  double sums[kRowWarps];
};

__device__ __forceinline__ double CtaSum(double x, ReportShared& s) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) s.sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = 0;
#pragma unroll
  for (int i = 0; i < kRowWarps; ++i) x += s.sums[i];
  return x;
}

// The largest candidate of a row, or kBadRow if it has NaN or +infinity.
__device__ __forceinline__ uint64_t Best(SelectShared& s, const RowView& row) {
  uint64_t best = kNobody;
  ForRow(row, [&](float x, int id) {
    const uint64_t candidate = x < INFINITY ? Candidate(x, id) : kBadRow;
    best = candidate > best ? candidate : best;
  });
  return CtaMax(best, s.reduce);
}

// Gathers the `count` largest of a row and perhaps a few more; returns how many. The bins are filled.
__device__ __forceinline__ int GatherTop(SelectShared& s, const RowView& row, float top, int count) {
  Found found = FindBin(s, Weigh::kCount, static_cast<uint64_t>(count));
  if (found.through <= kListSize) {
    const int bin = found.bin;
    return Gather(s, row, [&](float x, int) { return BinBelow(x, top) <= bin; });
  }
  Narrow narrow{top, top, found.bin, 0, 64};
  uint64_t target = static_cast<uint64_t>(count) - found.before;
  for (int level = 0; level < kAllDigits; ++level) {
    found = NextDigit(s, row, Weigh::kCount, DigitOf(level), &target, &narrow, [](float) { return true; });
    // What lies above the digits found so far is fewer than `count`; `through` less `before` shares them.
    if (found.through - found.before + static_cast<uint64_t>(count) <= kListSize) break;
  }
  return Gather(s, row, [&](float x, int id) { return Composite(x, id) >> narrow.shift >= narrow.prefix; });
}

// Sorts what was gathered by comparing each with each, and writes the best `count` of them.
__device__ __forceinline__ void WriteTop(const SelectShared& s, int gathered, int count, double normaliser, int32_t* ids, float* logprobs) {
  const int own = threadIdx.x;
  if (own >= gathered) return;
  const uint64_t composite = Composite(s.list_value[own], s.list_id[own]);
  int place = 0;
  for (int i = 0; i < gathered; ++i) place += Composite(s.list_value[i], s.list_id[i]) > composite;
  if (place >= count) return;
  ids[place] = s.list_id[own];
  logprobs[place] = static_cast<float>(static_cast<double>(s.list_value[own]) - normaliser);
}

// Grid: x = rows.
__global__ void __launch_bounds__(kRowThreads, 2) ReportRows(const ReportParams p) {
  __shared__ ReportShared s;
  const int64_t at = blockIdx.x;
  int wanted = p.options != nullptr ? p.options[at].num_logprobs : max(0, p.num_logprobs[at]);
  if (wanted < 0) return;
  wanted = p.top_ids == nullptr ? 0 : min(wanted, kMaxTopLogprobs);
  const RowView row{p.logits.data + at * p.logits.stride, p.logits.vocab, p.logits.aligned};
  const int32_t id = p.ids[at];
  const uint64_t best = Best(s.select, row);
  const float top = best == kBadRow ? -INFINITY : ValueOf(best);
  const bool softmax = top > -INFINITY;  // NaN, +infinity or nothing but -infinity: there is none
  const bool known = softmax && id >= 0 && id < p.logits.vocab;
  const float own = known ? row.x[id] : 0.0f;
  double sum = 0;
  uint64_t above = 0;
  if (softmax) {
    if (wanted > 0) ClearBins(s.select);
    ForRow(row, [&](float x, int) {
      sum += static_cast<double>(expf(x - top));
      above += x > own ? 1 : 0;
      if (wanted > 0) AddToBin(s.select, BinBelow(x, top), 0);
    });
  }
  const double normaliser = static_cast<double>(top) + log(CtaSum(sum, s));
  above = CtaSum(above, s.select.reduce);
  if (threadIdx.x == 0) {
    p.logprobs[at] = known ? static_cast<float>(static_cast<double>(own) - normaliser) : -INFINITY;
    if (p.ranks != nullptr) p.ranks[at] = known ? 1 + static_cast<int32_t>(above) : 0;
  }
  if (wanted == 0) return;
  int32_t* ids = p.top_ids + at * kMaxTopLogprobs;
  float* logprobs = p.top_logprobs + at * kMaxTopLogprobs;
  const int there = softmax ? min(wanted, p.logits.vocab) : 0;
  if (there > 0) WriteTop(s.select, GatherTop(s.select, row, top, there), there, normaliser, ids, logprobs);
  for (int i = there + static_cast<int>(threadIdx.x); i < wanted; i += kRowThreads) ids[i] = -1, logprobs[i] = -INFINITY;
}

}  // namespace

void LaunchReport(const ReportParams& p, int64_t rows, cudaStream_t stream) {
  ReportRows<<<static_cast<unsigned>(rows), kRowThreads, 0, stream>>>(p);
}

Code Logprobs(Device* device, const LogprobArgs* args, Stream stream) {
  const LogprobArgs& a = *args;
  ReportParams p{{}, a.ids, nullptr, a.num_logprobs, a.out_logprobs, a.out_ranks, a.out_top_ids, a.out_top_logprobs};
  if (Code code = CheckLogits(device, "logprobs", a.logits, a.vocab, &p.logits); code != kOk) return code;
  if (a.ids == nullptr || a.num_logprobs == nullptr || a.out_logprobs == nullptr ||
      (a.out_top_ids == nullptr) != (a.out_top_logprobs == nullptr)) {
    return device->Fail(kBadShape, "logprobs: ids, num_logprobs, out_logprobs or one of out_top_ids and out_top_logprobs is null");
  }
  if (a.logits.shape[0] == 0) return kOk;
  LaunchReport(p, a.logits.shape[0], device->StreamOf(stream));
  return device->Launched("logprobs");
}

}  // namespace phalanx::kernels::cuda
