// Log-softmax of chosen ids, their rank, and the best entries of raw rows.
//
//   logits        [rows, vocab]              f32
//   ids           [rows]
//   logprobs      [rows]    ranks [rows]
//   top_ids       [rows, kMaxTopLogprobs]    top_logprobs alike
//   workspace: a row a team, only where a CTA's part of a row does not fit its shared memory
//
// Reads a row once: a cluster of up to 8 CTAs keeps it in shared memory, as in sampling_truncated.cu. Rows that want nothing are not
// touched. Sums of exponentials are integers, the same however the row is cut. Best first, equal values by rising id (select.cuh).
#include "kernels/cuda/device/chain.cuh"
#include "kernels/cuda/device/select.cuh"
#include "kernels/cuda/sampling.h"

namespace phalanx::kernels::cuda {
namespace {

struct ReportShared {
  SelectShared select;
  QueueShared queue;
};

__device__ __forceinline__ int Wanted(const ReportParams& p, int64_t row) {
  return p.options != nullptr ? p.options[row].num_logprobs : max(0, p.num_logprobs[row]);
}

// A candidate with this thread's largest value, kNobody, or kBadRow if it has NaN or +infinity.
__device__ __forceinline__ uint64_t BestOf(const Part& part) {
  float most = -INFINITY;
  bool bad = false;
  const int32_t end = part.first + part.count;
  ForPart(part, [&](float x, int id) {
    bad = bad || (id < end && !(x < INFINITY));
    most = fmaxf(most, x);
  });
  return bad ? kBadRow : part.count > 0 ? Candidate(most, 0) : kNobody;
}

// Lists the `count` largest of a row and perhaps a few more; returns how many. `own`: this thread's largest.
__device__ __forceinline__ int GatherTop(Selector& select, const Part& part, int count, float own) {
  select.target = static_cast<uint64_t>(count);
  Narrowed w = select.LevelOfMaxima(own);
  if (w.reached) {
    const int n = select.Gather(part, w, true, nullptr);
    if (n <= kListSize) return n;
  }
  w = select.FirstLevel(part, Weigh::kCount, kWidestSpan, 0);
  while (w.above + w.within > kListSize) w = select.NextLevel(part, Weigh::kCount, w, 0);
  return select.Gather(part, w, true, nullptr);
}

// Sorts what was gathered by comparing each with each, four threads a value, and writes the best `count`.
__device__ __forceinline__ void WriteTop(const SelectShared& s, int gathered, int count, double normaliser, int32_t* ids, float* logprobs) {
  const int own = static_cast<int>(threadIdx.x) / 4;
  const uint64_t composite = own < gathered ? Composite(s.value[own], s.id[own]) : 0;
  int place = 0;
  for (int i = static_cast<int>(threadIdx.x) % 4; i < gathered; i += 4) place += Composite(s.value[i], s.id[i]) > composite;
  place += __shfl_xor_sync(0xffffffffu, place, 1);
  place += __shfl_xor_sync(0xffffffffu, place, 2);
  if (own >= gathered || place >= count || threadIdx.x % 4 != 0) return;
  ids[place] = s.id[own];
  logprobs[place] = static_cast<float>(static_cast<double>(s.value[own]) - normaliser);
}

__device__ __forceinline__ void ReportRow(Team& team, Selector& select, const ReportParams& p, int64_t row, const Part& part,
                                          bool in_shared) {
  const float* logits = p.logits.data + row * p.logits.stride;
  LoadPart(part, logits, p.logits.aligned, in_shared);
  const int wanted = p.top_ids == nullptr ? 0 : min(Wanted(p, row), kMaxTopLogprobs);
  const int32_t id = p.ids[row];
  const uint64_t largest = BestOf(part), best = team.Max(largest);
  const float top = best == kBadRow ? -INFINITY : ValueOf(best);
  const bool softmax = top > -INFINITY;  // NaN, +infinity or nothing but -infinity: there is none
  const bool known = softmax && id >= 0 && id < p.logits.vocab, writes = team.rank() == 0;
  const float own = known ? logits[id] : 0.0f;
  uint64_t sums[2] = {0, 0};  // mass, values above the chosen one
  if (softmax) {
    ForPart(part, [&](float x, int) {
      if (!(x >= -INFINITY)) return;  // past the end
      sums[0] += Mass(x, top);
      sums[1] += x > own ? 1 : 0;
    });
    team.Sum(sums);
  }
  const double normaliser = static_cast<double>(top) + log(static_cast<double>(sums[0]) * 0x1p-43);
  if (writes && threadIdx.x == 0) {
    p.logprobs[row] = known ? static_cast<float>(static_cast<double>(own) - normaliser) : -INFINITY;
    if (p.ranks != nullptr) p.ranks[row] = known ? 1 + static_cast<int32_t>(sums[1]) : 0;
  }
  if (wanted <= 0) return;
  int32_t* ids = p.top_ids + row * kMaxTopLogprobs;
  float* logprobs = p.top_logprobs + row * kMaxTopLogprobs;
  const int there = softmax ? min(wanted, p.logits.vocab) : 0;
  if (there > 0) {
    select.top = top, select.floor = -INFINITY;
    const int gathered = GatherTop(select, part, there, ValueOf(largest));
    if (writes) WriteTop(select.shared(), gathered, there, normaliser, ids, logprobs);
  }
  for (int i = there + static_cast<int>(threadIdx.x); writes && i < wanted; i += kRowThreads) ids[i] = -1, logprobs[i] = -INFINITY;
}

// Grid: teams of clusters. `parts`: [CTAs, PartSize], or null for shared memory.
__global__ void __launch_bounds__(kRowThreads, 2) ReportRows(const ReportParams p, int64_t rows, float* parts) {
  PassGate();
  extern __shared__ float memory[];
  __shared__ ReportShared s;
  Team team(s.select.team);
  Selector select(s.select, team);
  const int own = static_cast<int>(blockIdx.x) / team.size(), teams = static_cast<int>(gridDim.x) / team.size();
  const bool in_shared = parts == nullptr;
  const Part part = PartOf(in_shared ? memory : parts + int64_t{blockIdx.x} * PartSize(p.logits.vocab, team.size()), p.logits.vocab, team);
  team.Barrier();  // everybody's shared memory is there and clear
  for (int64_t begin = 0; begin < rows; begin += kRowThreads) {
    const int n = QueueRows(s.queue, begin, rows, own, teams, [&](int64_t row) { return Wanted(p, row) >= 0; });
    for (int i = 0; i < n; ++i) ReportRow(team, select, p, begin + s.queue.row[i], part, in_shared);
  }
  team.Barrier();  // nobody reads from a CTA that has ended
}

}  // namespace

void LaunchReport(Device* device, const ReportParams& params, int64_t rows, cudaStream_t stream) {
  const TeamShape shape = ShapeOfTeams(device, reinterpret_cast<const void*>(ReportRows), kRowThreads, params.logits.vocab, rows);
  LaunchTeams(ReportRows, kRowThreads, shape, params, rows, stream);
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
  LaunchReport(device, p, a.logits.shape[0], device->StreamOf(stream));
  return device->Launched("logprobs");
}

}  // namespace phalanx::kernels::cuda
