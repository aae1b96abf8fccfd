// sample: one token a row, all options on the device.
//
//   logits   [rows, width]  f32   read once, left unchanged
//   options  [rows]               64 bytes each
//   out_ids  [rows]
//   workspace: [rows, vocab] f32 and the maxima of all warps, written only for rows with min-p, top-k or top-p; counters: RowState a row
//
// Moves 4 * vocab bytes a row, and as much again for masks and counts of rows that have them. No sort, no softmax, no host.
// - A row is cut among CTAs of 512 threads, 4 or 16 values a thread, so that one row is quick and many rows stream. Each shapes its values
//   in registers (mask, biases, penalties, temperature). The best (value, lowest id) goes to the row's state by an integer maximum, in
//   which the order of CTAs does not show; the last CTA of the row to finish reads it.
// - Without truncation "value" is the value plus its Gumbel noise, so that this one pass draws. x + g can only win if u <= exp(x - best),
//   because -log1p(-u) >= u: most values cost a random word and no logarithm.
// - With truncation the shaped values are written out, and the last CTA finds the cut (select.cuh) and draws from what is left. A small
//   top-k needs one pass more: the k-th largest of the warps' maxima bounds the k-th largest value, and few values reach that bound.
#include <algorithm>

#include "kernels/cuda/device/select.cuh"
#include "kernels/cuda/sampling.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr float kNever = -INFINITY;

// Between the CTAs of a row; zero before and after.
struct RowState {
  unsigned long long best;
  uint32_t done, unused;
};

struct SampleParams {
  LogitRows logits;
  int64_t width;                // row stride of output_counts; masks and seen bits have ceil(width / 32) words
  const SamplingRow* options;   // [rows]
  const uint32_t* masks;
  const int32_t* bias_ids;
  const float* bias_values;
  const uint32_t* prompt_seen;
  int32_t* output_counts;
  int32_t* out_ids;             // [rows]
  float* shaped;                // [rows, shaped_stride]: values, then at `maxima` the OrderedKey of each warp's largest, 0 = none
  int64_t shaped_stride;        // a multiple of 4
  int32_t maxima;
  RowState* states;             // [rows]
};

enum class Draw { kGreedy, kPlain, kTruncated };

__device__ __forceinline__ Draw DrawOf(const SamplingRow& o) {
  if (o.temperature < 1e-5f) return Draw::kGreedy;
  return o.min_p > 0 || o.top_k > 0 || o.top_p < 1.0f ? Draw::kTruncated : Draw::kPlain;
}

// A row that names a table which is not there cannot be drawn as asked.
__device__ __forceinline__ bool HasTables(const SampleParams& p, const SamplingRow& o) {
  return (o.mask < 0 || p.masks != nullptr) && (o.state < 0 || (p.prompt_seen != nullptr && p.output_counts != nullptr)) &&
         (o.bias_end <= o.bias_begin || (p.bias_ids != nullptr && p.bias_values != nullptr));
}

// ---- shaping: a thread's values, x[turn][j] has id At(begin, turn) + j ---------------------------------------------

__device__ __forceinline__ int At(int begin, int turn) { return begin + (turn * kRowThreads + static_cast<int>(threadIdx.x)) * kPack; }

template <int kTurns>
__device__ __forceinline__ void ApplyMask(const SampleParams& p, const SamplingRow& o, int begin, float (&x)[kTurns][kPack]) {
  const uint32_t* mask = p.masks + o.mask * ((p.width + 31) / 32);
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    const int at = At(begin, t);
    const uint32_t bits = at < p.logits.vocab ? mask[at / 32] >> (at % 32) : 0;
#pragma unroll
    for (int j = 0; j < kPack; ++j) x[t][j] = bits >> j & 1 ? x[t][j] : kNever;
  }
}

// In the list's order: an id may come twice.
template <int kTurns>
__device__ __forceinline__ void ApplyBiases(const SampleParams& p, const SamplingRow& o, int begin, float (&x)[kTurns][kPack]) {
  for (int b = o.bias_begin; b < o.bias_end; ++b) {
    const int32_t id = p.bias_ids[b];
    if (id < begin || id >= p.logits.vocab) continue;
    const float value = p.bias_values[b];
#pragma unroll
    for (int t = 0; t < kTurns; ++t) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) x[t][j] = id == At(begin, t) + j ? x[t][j] + value : x[t][j];
    }
  }
}

// Rounds after each operation, as the contract's order is written; no multiply-add.
__device__ __forceinline__ float Penalised(const SamplingRow& o, float x, bool seen, int32_t count) {
  if (o.repetition_penalty != 1.0f && (seen || count > 0)) {
    x = x > 0 ? __fdiv_rn(x, o.repetition_penalty) : __fmul_rn(x, o.repetition_penalty);
  }
  if (count <= 0) return x;
  return __fsub_rn(__fsub_rn(x, __fmul_rn(o.frequency_penalty, static_cast<float>(count))), o.presence_penalty);
}

template <int kTurns>
__device__ __forceinline__ void ApplyPenalties(const SampleParams& p, const SamplingRow& o, int begin, float (&x)[kTurns][kPack]) {
  if (o.repetition_penalty == 1.0f && o.frequency_penalty == 0.0f && o.presence_penalty == 0.0f) return;
  const uint32_t* seen = p.prompt_seen + o.state * ((p.width + 31) / 32);
  const int32_t* counts = p.output_counts + o.state * p.width;
  const bool aligned = reinterpret_cast<uintptr_t>(counts) % 16 == 0;
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    const int at = At(begin, t);
    if (at >= p.logits.vocab) continue;
    const uint32_t bits = seen[at / 32] >> (at % 32);
    int32_t count[kPack];
    if (aligned && at + kPack <= p.width) {
      const int4 four = *reinterpret_cast<const int4*>(counts + at);
      count[0] = four.x, count[1] = four.y, count[2] = four.z, count[3] = four.w;
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) count[j] = at + j < p.logits.vocab ? counts[at + j] : 0;
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) x[t][j] = Penalised(o, x[t][j], bits >> j & 1, count[j]);
  }
}

// ---- the draw -------------------------------------------------------------------------------------------------------

// Gumbel-max over the values a thread is shown; the warp shares how much there is to beat.
struct Contest {
  uint64_t best = kNobody;
  float to_beat = -INFINITY;

  __device__ __forceinline__ void Enter(const SamplingRow& o, float x, int32_t id) {
    const float u = Uniform(o, id);
    if (u > 1.01f * __expf(x - to_beat)) return;  // the margin covers the rounding of both sides
    const uint64_t candidate = Candidate(x + Gumbel(u), id);
    best = candidate > best ? candidate : best;
  }
  // All lanes together.
  __device__ __forceinline__ void Share() {
    const uint32_t key = __reduce_max_sync(0xffffffffu, static_cast<uint32_t>(best >> 32));
    if (key != 0) to_beat = FromKey(key);
  }
};

// Among all values >= floor of a row.
__device__ __forceinline__ uint64_t DrawFromRow(SelectShared& s, const SamplingRow& o, const RowView& row, float floor) {
  Contest contest;
  ForRow(
      row,
      [&](float x, int id) {
        if (x >= floor && x > kNever) contest.Enter(o, x, id);
      },
      [&] { contest.Share(); });
  return CtaMax(contest.best, s.reduce);
}

// What is cut off. `total`: mass of the values >= floor.
struct Cut {
  float top, floor;
  bool by_k, by_p;
  uint64_t total;
};

// All values of the bins up to `bin`; above kListSize there are too many to list.
__device__ __forceinline__ int GatherBins(SelectShared& s, const RowView& row, const Cut& cut, int bin) {
  return Gather(s, row, [&](float x, int) { return x > kNever && BinBelow(x, cut.top) <= bin; });
}

// Among the `n` values that were gathered: all that may stay are there, and all larger ones. Each is compared with each.
__device__ __forceinline__ uint64_t DrawFromList(SelectShared& s, const SamplingRow& o, const Cut& cut, int n) {
  const int own = threadIdx.x;
  if (own < n) s.list_mass[own] = s.list_value[own] >= cut.floor ? Mass(s.list_value[own], cut.top) : 0;
  __syncthreads();
  const float x = own < n ? s.list_value[own] : kNever;
  int32_t larger = 0;
  uint64_t larger_mass = 0;
  for (int i = 0; own < n && i < n; ++i) {
    if (s.list_value[i] > x) ++larger, larger_mass += s.list_mass[i];
  }
  bool kept = own < n && x >= cut.floor && (!cut.by_k || larger < o.top_k);
  if (cut.by_p) {
    const uint64_t total = cut.by_k ? CtaSum(kept ? s.list_mass[own] : 0, s.reduce) : cut.total;
    kept = kept && larger_mass < MassLimit(o.top_p, total);
  }
  return CtaMax(kept ? Candidate(x + Gumbel(Uniform(o, s.list_id[own])), s.list_id[own]) : kNobody, s.reduce);
}

// Gathers what a small top-k may leave, bounded by the warps' maxima. Returns how many; above kListSize: this way does not work.
__device__ __forceinline__ int GatherTopK(SelectShared& s, const RowView& row, const uint32_t* maxima, int count, const Cut& cut, int k) {
  if (k > count || k > kListSize) return kListSize + 1;
  ClearBins(s);
  for (int i = threadIdx.x; i < count; i += kRowThreads) {
    const uint32_t key = __ldcg(maxima + i);
    if (key != 0) AddToBin(s, BinBelow(FromKey(key), cut.top), 0);
  }
  const Found found = FindBin(s, Weigh::kCount, static_cast<uint64_t>(k));
  return found.through == kNotReached ? kListSize + 1 : GatherBins(s, row, cut, found.bin);
}

// The value at `target` of a bin, exactly.
__device__ __forceinline__ float ValueInBin(SelectShared& s, const RowView& row, Weigh weigh, uint64_t target, const Cut& cut, int bin) {
  Narrow narrow{cut.top, cut.floor, bin, 0, 64};
  for (int level = 0; level < kValueDigits; ++level) {
    NextDigit(s, row, weigh, DigitOf(level), &target, &narrow, [](float x) { return x > kNever; });
  }
  return FromKey(static_cast<uint32_t>(narrow.prefix));
}

__device__ __forceinline__ void FillBins(SelectShared& s, const RowView& row, const Cut& cut) {
  ClearBins(s);
  ForRow(row, [&](float x, int) {
    if (x > kNever) AddToBin(s, BinBelow(x, cut.top), cut.by_p && x >= cut.floor ? Mass(x, cut.top) : 0);
  });
}

// min-p, then top-k, then top-p on what is left, then the draw. `best`: the largest shaped value; maxima [count]: of the warps.
__device__ __noinline__ uint64_t DrawTruncated(SelectShared& s, const SamplingRow& o, const RowView row, const uint32_t* maxima, int count,
                                               uint64_t best) {
  Cut cut{ValueOf(best), -INFINITY, o.top_k > 0, o.top_p < 1.0f, 0};
  if (o.min_p > 0) cut.floor = cut.top + logf(fminf(o.min_p, 1.0f));
  if (!cut.by_k && !cut.by_p) return DrawFromRow(s, o, row, cut.floor);
  if (cut.by_k) {
    const int n = GatherTopK(s, row, maxima, count, cut, o.top_k);
    if (n <= kListSize) return DrawFromList(s, o, cut, n);
  }
  FillBins(s, row, cut);
  Totals totals = TotalsOfBins(s);
  cut.total = totals.mass;
  cut.by_k = cut.by_k && static_cast<uint64_t>(o.top_k) < totals.count;
  if (cut.by_k) {
    const Found found = FindBin(s, Weigh::kCount, static_cast<uint64_t>(o.top_k));
    if (found.through <= kListSize) return DrawFromList(s, o, cut, GatherBins(s, row, cut, found.bin));
    const float kth = ValueInBin(s, row, Weigh::kCount, static_cast<uint64_t>(o.top_k) - found.before, cut, found.bin);
    cut.floor = fmaxf(cut.floor, kth);
    cut.by_k = false;
    if (cut.by_p) {
      FillBins(s, row, cut);
      cut.total = TotalsOfBins(s).mass;
    }
  }
  if (cut.by_p) {
    const uint64_t limit = MassLimit(o.top_p, cut.total);
    const Found found = FindBin(s, Weigh::kMass, limit);
    if (found.through <= kListSize) return DrawFromList(s, o, cut, GatherBins(s, row, cut, found.bin));
    cut.floor = fmaxf(cut.floor, ValueInBin(s, row, Weigh::kMass, limit - found.before, cut, found.bin));
  }
  return DrawFromRow(s, o, row, cut.floor);
}

// ---- kernel ---------------------------------------------------------------------------------------------------------

// This CTA's part of a row: the best candidate, or kBadRow. Writes the shaped values out for a truncated row.
template <int kTurns>
__device__ __forceinline__ uint64_t RunPart(const SampleParams& p, const SamplingRow& o, Draw draw, int64_t row, int begin) {
  float* const shaped = p.shaped + row * p.shaped_stride;
  float x[kTurns][kPack];
  LoadTile(p.logits.data + row * p.logits.stride, begin, p.logits.vocab, p.logits.aligned, x);
  bool bad = !HasTables(p, o);
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) bad = bad || !(x[t][j] < INFINITY);
  }
  if (__any_sync(0xffffffffu, bad)) return kBadRow;  // whole warps, which share below
  if (o.mask >= 0) ApplyMask(p, o, begin, x);
  if (o.bias_end > o.bias_begin) ApplyBiases(p, o, begin, x);
  if (o.state >= 0) ApplyPenalties(p, o, begin, x);
  if (draw != Draw::kGreedy && o.temperature != 1.0f) {
#pragma unroll
    for (int t = 0; t < kTurns; ++t) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) x[t][j] = __fdiv_rn(x[t][j], o.temperature);
    }
  }
  Contest contest;
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    const int at = At(begin, t);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      // Past the end, banned, or NaN from an infinite bias: never chosen.
      const bool there = at + j < p.logits.vocab && x[t][j] > kNever;
      if (!there) x[t][j] = kNever;
      if (!there) continue;
      if (draw == Draw::kPlain) {
        contest.Enter(o, x[t][j], at + j);
      } else {
        const uint64_t candidate = Candidate(x[t][j], at + j);
        contest.best = candidate > contest.best ? candidate : contest.best;
      }
    }
    if (draw == Draw::kPlain) contest.Share();
    if (draw == Draw::kTruncated && at < p.logits.vocab) {
      *reinterpret_cast<float4*>(shaped + at) = make_float4(x[t][0], x[t][1], x[t][2], x[t][3]);
    }
  }
  if (draw == Draw::kTruncated) {
    const uint32_t largest = __reduce_max_sync(0xffffffffu, static_cast<uint32_t>(contest.best >> 32));
    const int warp = static_cast<int>(blockIdx.x) * kRowWarps + static_cast<int>(threadIdx.x) / kWarp;
    if (threadIdx.x % kWarp == 0) reinterpret_cast<uint32_t*>(shaped + p.maxima)[warp] = largest;
  }
  return contest.best;
}

// Grid: x = parts of a row, y = rows.
template <int kTurns>
__global__ void __launch_bounds__(kRowThreads, 2) SampleRows(const SampleParams p) {
  __shared__ SelectShared s;
  __shared__ bool last;
  const int64_t row = blockIdx.y;
  const SamplingRow o = p.options[row];
  const Draw draw = DrawOf(o);
  uint64_t best = CtaMax(RunPart<kTurns>(p, o, draw, row, static_cast<int>(blockIdx.x) * kTurns * kTurn), s.reduce);
  if (gridDim.x > 1) {
    RowState* state = p.states + row;
    if (draw == Draw::kTruncated) {
      __threadfence();  // the shaped values of all threads come before the count
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      if (best != kNobody) atomicMax(&state->best, best);
      __threadfence();
      last = atomicAdd(&state->done, 1u) + 1 == gridDim.x;
      if (last) {
        __threadfence();
        s.reduce.words[0] = atomicExch(&state->best, 0ull);
        state->done = 0;  // nobody else comes any more
      }
    }
    __syncthreads();
    if (!last) return;
    best = s.reduce.words[0];
    __threadfence();
  }
  __syncthreads();
  if (draw == Draw::kTruncated && best != kNobody && best != kBadRow) {
    const float* shaped = p.shaped + row * p.shaped_stride;
    best = DrawTruncated(s, p.options[row], {shaped, p.logits.vocab, true}, reinterpret_cast<const uint32_t*>(shaped + p.maxima),
                         static_cast<int>(gridDim.x) * kRowWarps, best);
  }
  if (threadIdx.x != 0) return;
  const int32_t id = IdOf(best);
  p.out_ids[row] = id;
  if (id >= 0 && o.state >= 0) ++p.output_counts[o.state * p.width + id];
}

template <int kTurns>
void Launch(const SampleParams& p, int64_t rows, cudaStream_t stream) {
  const int64_t parts = (p.logits.vocab + kTurns * kTurn - 1) / (kTurns * kTurn);
  SampleRows<kTurns><<<dim3(static_cast<unsigned>(parts), static_cast<unsigned>(rows)), kRowThreads, 0, stream>>>(p);
}

// Rows of one launch: their workspace and their states must fit.
int64_t RowsAtOnce(const Device* device, int64_t shaped_stride) {
  const uint64_t fit = WorkspaceBytes(device) / (static_cast<uint64_t>(shaped_stride) * sizeof(float));
  return static_cast<int64_t>(std::min({fit, kCounterBytes / sizeof(RowState), uint64_t{65535}}));
}

}  // namespace

Code CheckLogits(Device* device, const char* what, const Tensor& logits, int32_t vocab, LogitRows* out) {
  if (logits.rank != 2 || logits.dtype != kF32 || logits.stride[1] != 1 || vocab < 1 || vocab > logits.shape[1] || vocab > kMaxVocab ||
      logits.shape[0] < 0 || logits.shape[1] > INT32_MAX) {
    return device->Fail(kBadShape, "%s: logits [%lld, %lld] of dtype %d, rank %d, vocabulary %d", what,
                        static_cast<long long>(logits.shape[0]), static_cast<long long>(logits.shape[1]), logits.dtype, logits.rank, vocab);
  }
  *out = {static_cast<const float*>(logits.data), logits.stride[0], vocab,
          reinterpret_cast<uintptr_t>(logits.data) % 16 == 0 && logits.stride[0] % 4 == 0};
  return kOk;
}

Code Sample(Device* device, const SampleArgs* args, Stream stream) {
  const SampleArgs& a = *args;
  SampleParams p{};
  if (Code code = CheckLogits(device, "sample", a.logits, a.vocab, &p.logits); code != kOk) return code;
  if (a.options == nullptr || a.out_ids == nullptr || (a.out_top_ids == nullptr) != (a.out_top_logprobs == nullptr)) {
    return device->Fail(kBadShape, "sample: options, out_ids or one of out_top_ids and out_top_logprobs is null");
  }
  const int64_t rows = a.logits.shape[0];
  const cudaStream_t s = device->StreamOf(stream);
  p.width = a.logits.shape[1];
  p.masks = a.masks;
  p.bias_ids = a.bias_ids;
  p.bias_values = a.bias_values;
  p.prompt_seen = a.prompt_seen;
  p.output_counts = a.output_counts;
  p.shaped = static_cast<float*>(Workspace(device));
  p.maxima = (a.vocab + 3) / 4 * 4;
  p.shaped_stride = p.maxima + (a.vocab + kTurn - 1) / kTurn * kRowWarps;  // room for the shortest parts
  p.states = static_cast<RowState*>(Counters(device));
  const int64_t at_once = RowsAtOnce(device, p.shaped_stride);
  for (int64_t row = 0; row < rows; row += at_once) {
    const int64_t count = std::min(at_once, rows - row);
    p.logits.data = static_cast<const float*>(a.logits.data) + row * a.logits.stride[0];
    p.options = a.options + row;
    p.out_ids = a.out_ids + row;
    // Short parts for few rows: more SMs share each.
    const bool few = count * ((a.vocab + 4 * kTurn - 1) / (4 * kTurn)) < 2 * device->sm_count;
    few ? Launch<1>(p, count, s) : Launch<4>(p, count, s);
  }
  if (a.out_logprobs != nullptr && rows > 0) {
    p.logits.data = static_cast<const float*>(a.logits.data);
    LaunchReport({p.logits, a.out_ids, a.options, nullptr, a.out_logprobs, a.out_ranks, a.out_top_ids, a.out_top_logprobs}, rows, s);
  }
  return device->Launched("sample");
}

}  // namespace phalanx::kernels::cuda
