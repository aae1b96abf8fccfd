// sample: one token a row, all options on the device.
//
//   logits   [rows, width]  f32   left unchanged
//   options  [rows]               64 bytes each
//   out_ids  [rows]
//   counters: RowState a row
//
// Two kernels, because the host does not know what the rows ask for: this one draws the rows that are greedy or have no truncation, the
// other one (sampling_truncated.cu) those with min-p, top-k or top-p. Each leaves the other's rows alone.
//
// Here a row is read once: 4 * vocab bytes, and as much again for masks and counts of rows that have them. No sort, no softmax, no host.
// - A row is cut into strips (StripsOf). A CTA of 512 threads has the next tile on its way while it shapes one in registers. The best
//   (value, lowest id) goes to the row's state by an integer maximum, in which the order of CTAs does not show; the last CTA of the row to
//   finish reads it.
// - A draw's "value" is the value plus its Gumbel noise. What cannot win whatever its noise costs no random word, and most of the others
//   no logarithm (Contest).
#include <algorithm>

#include "kernels/cuda/device/chain.cuh"
#include "kernels/cuda/device/shape.cuh"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_config.h"

namespace phalanx::kernels::cuda {
namespace {

// Between the CTAs of a row; zero before and after.
struct RowState {
  unsigned long long best;
  uint32_t done, unused;
};

// This thread's best candidate of a strip, or kBadRow.
template <int kTurns>
__device__ __forceinline__ uint64_t RunStrip(const DrawParams& p, const SamplingRow& o, Draw draw, const float* row, int begin, int end) {
  constexpr int kTile = kTurns * kTurn;
  float x[kTurns][kPack], next[kTurns][kPack];
  LoadTile(row, begin, p.logits.vocab, p.logits.aligned, x);
  Contest contest;
  float most = kNever;  // greedy: the first of the largest
  int32_t first = -1;
  for (; begin < end; begin += kTile) {
    if (begin + kTile < end) LoadTile(row, begin + kTile, p.logits.vocab, p.logits.aligned, next);
    bool bad = !HasTables(p, o);
#pragma unroll
    for (int t = 0; t < kTurns; ++t) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) bad = bad || !(x[t][j] < INFINITY);
    }
    if (__any_sync(0xffffffffu, bad)) return kBadRow;  // whole warps, which share below
    ShapeTile(p, o, draw, begin, x);
#pragma unroll
    for (int t = 0; t < kTurns; ++t) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) {  // past the end, banned, or NaN from an infinite bias: never chosen
        if (draw == Draw::kGreedy) {
          if (x[t][j] > most) most = x[t][j], first = At(begin, t) + j;
        } else if (x[t][j] > kNever && !contest.Hopeless(x[t][j])) {
          contest.Enter(o, x[t][j], At(begin, t) + j);
        }
        x[t][j] = next[t][j];
      }
      if (draw == Draw::kPlain) contest.Share();
    }
  }
  return first >= 0 ? Candidate(most, first) : contest.best;
}

// Grid: x = strips of a row, y = rows.
template <int kTurns>
__global__ void __launch_bounds__(kRowThreads, 2) SampleRows(const DrawParams p, int strip, RowState* states) {
  PassGate();
  __shared__ ReduceShared reduce;
  __shared__ uint64_t all;
  __shared__ bool last;
  const int64_t row = blockIdx.y;
  const SamplingRow o = p.options[row];
  const Draw draw = DrawOf(o);
  if (draw == Draw::kTruncated) return;
  const int begin = static_cast<int>(blockIdx.x) * strip, end = min(begin + strip, p.logits.vocab);
  uint64_t best = CtaMax(RunStrip<kTurns>(p, o, draw, p.logits.data + row * p.logits.stride, begin, end), reduce);
  if (gridDim.x > 1) {
    RowState* state = states + row;
    if (threadIdx.x == 0) {
      if (best != kNobody) atomicMax(&state->best, best);
      __threadfence();
      last = atomicAdd(&state->done, 1u) + 1 == gridDim.x;
      if (last) {
        __threadfence();
        all = atomicExch(&state->best, 0ull);
        state->done = 0;  // nobody else comes any more
      }
    }
    __syncthreads();
    if (!last) return;
    best = all;
  }
  if (threadIdx.x != 0) return;
  const int32_t id = IdOf(best);
  p.out_ids[row] = id;
  if (id >= 0 && o.state >= 0) ++p.output_counts[o.state * p.width + id];
}

template <int kTurns>
void LaunchStrips(const DrawParams& p, const Strips& strips, int64_t rows, RowState* states, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(strips.parts), static_cast<unsigned>(rows));
  Launch(SampleRows<kTurns>, grid, dim3(kRowThreads), 0, stream, p, static_cast<int>(strips.size), states);
}

// The rows without truncation.
void LaunchPlain(Device* device, const DrawParams& p, int64_t rows, cudaStream_t stream) {
  RowState* states = static_cast<RowState*>(Counters(device));
  const int64_t slots = int64_t{2} * device->sm_count;
  const Strips fine = StripsOf(rows, p.logits.vocab, kTurn, slots);
  if (fine.size <= 2 * kTurn) return LaunchStrips<1>(p, fine, rows, states, stream);
  LaunchStrips<2>(p, StripsOf(rows, p.logits.vocab, 2 * kTurn, slots), rows, states, stream);
}

constexpr int64_t kRowsAtOnce = std::min<int64_t>(kCounterBytes / sizeof(RowState), 65535);

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
  DrawParams p{};
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
  for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, rows - row);
    p.logits.data = static_cast<const float*>(a.logits.data) + row * a.logits.stride[0];
    p.options = a.options + row;
    p.out_ids = a.out_ids + row;
    LaunchPlain(device, p, count, s);
    LaunchTruncated(device, p, count, s);
  }
  if (a.out_logprobs != nullptr && rows > 0) {
    p.logits.data = static_cast<const float*>(a.logits.data);
    LaunchReport(device, {p.logits, a.out_ids, a.options, nullptr, a.out_logprobs, a.out_ranks, a.out_top_ids, a.out_top_logprobs}, rows,
                 s);
  }
  return device->Launched("sample");
}

}  // namespace phalanx::kernels::cuda
