// sample, for the rows with min-p, top-k or top-p.
//
//   logits   [rows, width]  f32   read once, left unchanged
//   out_ids  [rows]
//   workspace: a row a team, only where a CTA's part of a row does not fit its shared memory
//
// Moves 4 * vocab bytes a row, and as much again for masks and counts of rows that have them. A cluster of up to 8 CTAs keeps a row's
// shaped values in its shared memory (152k values: 76 KB each, two CTAs an SM), so that every further pass stays on the chip; a row costs
// three to six barriers of the cluster. The clusters that fit the device take the rows in turn.
// - min-p gives a floor at once. top-k and then top-p look for the smallest value that stays (select.cuh).
// - If few values are at or above it, they are gathered, compared with each other, and the first CTA draws: usual for text.
// - Else the draw is a pass over the row with that value as its floor.
#include "kernels/cuda/device/chain.cuh"
#include "kernels/cuda/device/select.cuh"
#include "kernels/cuda/device/shape.cuh"
#include "kernels/cuda/sampling.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr float kLeast = -3.402823466e+38f;  // the least float: -infinity does not take part

struct DrawShared {
  SelectShared select;
  QueueShared queue;
  int32_t pending[kRowWarps][kWarp + kWarp * kPack];  // of each warp, places in the part
};

// Shapes the part where it lies. Returns a candidate with this thread's largest value, kNobody or kBadRow.
__device__ __forceinline__ uint64_t ShapePart(const DrawParams& p, const SamplingRow& o, const Part& part) {
  constexpr int kTurns = 2;
  bool bad = !HasTables(p, o);
  float most = kNever;
  for (int32_t begin = 0; begin < part.count; begin += kTurns * kTurn) {
    float x[kTurns][kPack];
#pragma unroll
    for (int t = 0; t < kTurns; ++t) {
      const int at = At(begin, t);
      const float4 v = at < part.count ? *reinterpret_cast<const float4*>(part.x + at) : make_float4(NAN, NAN, NAN, NAN);
      x[t][0] = v.x, x[t][1] = v.y, x[t][2] = v.z, x[t][3] = v.w;
#pragma unroll
      for (int j = 0; j < kPack; ++j) bad = bad || (at + j < part.count && !(x[t][j] < INFINITY));
    }
    if (__any_sync(0xffffffffu, bad)) return kBadRow;
    ShapeTile(p, o, Draw::kTruncated, part.first + begin, x);
#pragma unroll
    for (int t = 0; t < kTurns; ++t) {
      const int at = At(begin, t);
      if (at >= part.count) continue;
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        if (at + j >= part.count) x[t][j] = NAN;
        most = fmaxf(most, x[t][j]);  // NaN, from an infinite bias, is never chosen
      }
      *reinterpret_cast<float4*>(part.x + at) = make_float4(x[t][0], x[t][1], x[t][2], x[t][3]);
    }
  }
  return most > kNever ? Candidate(most, 0) : kNobody;
}

// Among the `n` listed values: all that may stay are there. Of one CTA.
__device__ __forceinline__ uint64_t DrawFromList(const Selector& select, const SamplingRow& o, int n, bool by_k, bool by_p) {
  SelectShared& s = select.shared();
  const int own = static_cast<int>(threadIdx.x) / 4;
  const Selector::Larger larger = select.LargerOnes(n);
  bool kept = own < n && threadIdx.x % 4 == 0 && (!by_k || larger.count < static_cast<uint32_t>(o.top_k));
  if (by_p) {
    const uint64_t total = by_k ? CtaSum(kept ? s.mass[own] : 0, s.team.reduce) : select.total;
    kept = kept && larger.mass < MassLimit(o.top_p, total);
  }
  return CtaMax(kept ? Candidate(s.value[own] + Gumbel(Uniform(o, s.id[own])), s.id[own]) : kNobody, s.team.reduce);
}

// What one truncation leaves: a list of `n` values that holds them all, or, with n = 0, a floor.
struct Left {
  int n;
  float floor;
};

// A small top-k, from the threads' largest values, `own` here; n = 0 if too many others are as large.
__device__ __forceinline__ int GatherTopK(Selector& select, const Part& part, int32_t k, float own) {
  if (k > kListSize / 2) return 0;
  select.target = static_cast<uint64_t>(k);
  const Narrowed w = select.LevelOfMaxima(own);
  const int n = w.reached ? select.Gather(part, w, true, nullptr) : 0;
  return n <= kListSize ? n : 0;
}

__device__ __forceinline__ Left Truncate(Selector& select, const Part& part, Weigh weigh, const SamplingRow& o, int32_t vocab) {
  const bool by_mass = weigh == Weigh::kMass;
  if (!by_mass) select.target = static_cast<uint64_t>(o.top_k);
  Narrowed w = select.FirstLevel(part, weigh, by_mass ? SpanOfTopP(o.top_p, vocab) : kWidestSpan, o.top_p);
  while (true) {
    if (!w.reached) return {0, select.floor};
    const bool all = w.above + w.within <= kListSize;
    if (all || w.within <= kListSize) {
      uint64_t above = w.above;
      const int n = select.Gather(part, w, all, by_mass && !all ? &above : nullptr);
      if (all) return {n, 0};
      return {0, select.FloorOfList(n, weigh, above)};
    }
    if (w.range.OneValue()) return {0, ValueOfComposite(w.range.low)};
    w = select.NextLevel(part, weigh, w, kIdBits);
  }
}

// Among the values >= floor. Whether a value takes part is known at once; those of a warp that do are drawn 32 at a time.
__device__ __forceinline__ uint64_t DrawFromPart(DrawShared& s, const SamplingRow& o, const Part& part, float floor) {
  const int lane = threadIdx.x % kWarp;
  int32_t* const pending = s.pending[threadIdx.x / kWarp];
  Contest contest;
  int n = 0;
  for (int32_t begin = 0;; begin += kTurn) {
    const bool more = begin < part.count;
    if (more) {
      const int32_t at = begin + static_cast<int32_t>(threadIdx.x) * kPack;
      const float4 v = at < part.count ? *reinterpret_cast<const float4*>(part.x + at) : make_float4(NAN, NAN, NAN, NAN);
      const float x[kPack] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const bool in = x[j] >= floor && !contest.Hopeless(x[j]);
        const uint32_t votes = __ballot_sync(0xffffffffu, in);
        if (in) pending[n + __popc(votes & ((1u << lane) - 1))] = at + j;
        n += __popc(votes);
      }
      __syncwarp();
    }
#pragma unroll 1
    while (n >= (more ? kWarp : 1)) {
      const int taken = min(n, kWarp);
      n -= taken;
      if (lane < taken) contest.Enter(o, part.x[pending[n + lane]], part.first + pending[n + lane]);
      contest.Share();
    }
    __syncwarp();
    if (!more) return contest.best;
  }
}

// min-p, then top-k, then top-p on what is left, then the draw. The result is the first CTA's.
__device__ __forceinline__ uint64_t DrawTruncated(DrawShared& s, Selector& select, Team& team, const SamplingRow& o, const Part& part,
                                                  int32_t vocab, float own) {
  select.floor = o.min_p > 0 ? fmaxf(select.top + logf(fminf(o.min_p, 1.0f)), kLeast) : kLeast;
  bool by_k = o.top_k > 0 && o.top_k < vocab;
  const bool by_p = o.top_p < 1.0f;
  int n = by_k ? GatherTopK(select, part, o.top_k, own) : 0;
#pragma unroll 1
  while (n == 0 && (by_k || by_p)) {  // twice at most
    const Left left = Truncate(select, part, by_k ? Weigh::kCount : Weigh::kMass, o, vocab);
    n = left.n;
    if (n > 0) break;
    select.floor = fmaxf(select.floor, left.floor);
    if (!by_k) break;
    by_k = false;
  }
  if (n > 0) return team.rank() == 0 ? DrawFromList(select, o, n, by_k, by_p) : kNobody;
  return team.Max(DrawFromPart(s, o, part, select.floor));
}

__device__ __forceinline__ void DrawRow(DrawShared& s, Team& team, Selector& select, const DrawParams& p, int64_t row, const Part& part,
                                        bool in_shared) {
  LoadPart(part, p.logits.data + row * p.logits.stride, p.logits.aligned, in_shared);
  const SamplingRow o = p.options[row];
  const uint64_t own = ShapePart(p, o, part);
  uint64_t best = team.Max(own);
  if (best != kNobody && best != kBadRow) {
    select.top = ValueOf(best);
    best = DrawTruncated(s, select, team, o, part, p.logits.vocab, own == kNobody ? kNever : ValueOf(own));
  }
  if (team.rank() != 0 || threadIdx.x != 0) return;
  const int32_t id = IdOf(best);
  WaitForPrevious();
  p.out_ids[row] = id;
  if (id >= 0 && o.state >= 0) ++p.output_counts[o.state * p.width + id];
}

// Grid: teams of clusters. `parts`: [CTAs, PartSize], or null for shared memory. SampleRows is launched before it, and is a gate
// (device.h): what this kernel reads was there before that one, so it begins beside it and waits before it writes.
__global__ void __launch_bounds__(kRowThreads, 2) DrawRows(const DrawParams p, int64_t rows, float* parts) {
  LetNextStart();
  const bool in_shared = parts == nullptr;
  if (!in_shared) WaitForPrevious();
  extern __shared__ float memory[];
  __shared__ DrawShared s;
  Team team(s.select.team);
  Selector select(s.select, team);
  const int own = static_cast<int>(blockIdx.x) / team.size(), teams = static_cast<int>(gridDim.x) / team.size();
  const Part part = PartOf(in_shared ? memory : parts + int64_t{blockIdx.x} * PartSize(p.logits.vocab, team.size()), p.logits.vocab, team);
  team.Barrier();  // everybody's shared memory is there and clear
  for (int64_t begin = 0; begin < rows; begin += kRowThreads) {
    const int n = QueueRows(s.queue, begin, rows, own, teams, [&](int64_t row) { return DrawOf(p.options[row]) == Draw::kTruncated; });
    for (int i = 0; i < n; ++i) DrawRow(s, team, select, p, begin + s.queue.row[i], part, in_shared);
  }
  WaitForPrevious();
  team.Barrier();  // nobody reads from a CTA that has ended
}

}  // namespace

void LaunchTruncated(Device* device, const DrawParams& params, int64_t rows, cudaStream_t stream) {
  const TeamShape shape = ShapeOfTeams(device, reinterpret_cast<const void*>(DrawRows), kRowThreads, params.logits.vocab, rows);
  LaunchTeams(DrawRows, kRowThreads, shape, params, rows, stream);
}

}  // namespace phalanx::kernels::cuda
