// kernels/cuda/device/select.cuh: finding the k-th largest value of a row, or the one at which the mass reaches a limit, without a sort.
// Refuses to know: options, draws. Thread: device code, all threads of a CTA of kRowThreads together.
// Neighbours: row.cuh; sampling.cu, logprobs.cu.
//
// A histogram over the row tells in which bin the wanted value lies. Bins of the distance to the maximum come first; usually so few
// values lie up to that bin that they are gathered and compared with each other. Otherwise that bin is taken apart by the digits of the
// value's key, most significant first: three more passes over the row give the exact value. Counts and masses are integers, so the order
// of the additions does not matter: same result each time.
#pragma once

#include "kernels/cuda/device/row.cuh"

namespace phalanx::kernels::cuda {

constexpr uint32_t kNotReached = 0xffffffffu;
constexpr int kListSize = kRowThreads;  // gathered values: one a thread
static_assert(kBins == kRowThreads * 4);

// A bin and what is known about it.
struct Found {
  int bin;
  uint64_t before;   // weight of the bins before it
  uint32_t through;  // values in the bins up to it, itself included
};

struct SelectShared {
  uint32_t count[kBins];              // values
  uint32_t low[kBins], high[kBins];   // mass
  float list_value[kListSize];
  int32_t list_id[kListSize];
  uint64_t list_mass[kListSize];
  uint32_t list_count;
  uint64_t warp_weight[kRowWarps];
  uint32_t warp_count[kRowWarps];
  Found found;
  ReduceShared reduce;
};

enum class Weigh { kCount, kMass };

__device__ __forceinline__ void ClearBins(SelectShared& s) {
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kRowThreads) s.count[i] = s.low[i] = s.high[i] = 0;
  __syncthreads();
}

__device__ __forceinline__ void AddToBin(SelectShared& s, int bin, uint64_t mass) {
  atomicAdd(&s.count[bin], 1u);
  if (mass == 0) return;
  const uint32_t low = static_cast<uint32_t>(mass), old = atomicAdd(&s.low[bin], low);
  const uint32_t high = static_cast<uint32_t>(mass >> 32) + (old + low < old ? 1u : 0u);
  if (high != 0) atomicAdd(&s.high[bin], high);
}

__device__ __forceinline__ uint64_t MassOfBin(const SelectShared& s, int bin) {
  return static_cast<uint64_t>(s.high[bin]) << 32 | s.low[bin];
}

struct Totals {
  uint64_t count, mass;
};
__device__ __forceinline__ Totals TotalsOfBins(SelectShared& s) {
  __syncthreads();
  uint64_t count = 0, mass = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    count += s.count[threadIdx.x * 4 + i];
    mass += MassOfBin(s, static_cast<int>(threadIdx.x) * 4 + i);
  }
  return {CtaSum(count, s.reduce), CtaSum(mass, s.reduce)};
}

// The first bin with which the weight reaches `target` >= 1. If all bins do not reach it: the last bin, through = kNotReached.
__device__ __forceinline__ Found FindBin(SelectShared& s, Weigh weigh, uint64_t target) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, first = static_cast<int>(threadIdx.x) * 4;
  __syncthreads();  // the bins are filled, and nobody reads `found` any more
  uint64_t weights[4], weight = 0;
  uint32_t count = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    weights[i] = weigh == Weigh::kCount ? s.count[first + i] : MassOfBin(s, first + i);
    weight += weights[i];
    count += s.count[first + i];
  }
  uint64_t through = weight;  // inclusive sums over the warp
  uint32_t count_through = count;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const uint64_t other = __shfl_up_sync(0xffffffffu, through, step);
    const uint32_t other_count = __shfl_up_sync(0xffffffffu, count_through, step);
    if (lane >= step) through += other, count_through += other_count;
  }
  if (lane == kWarp - 1) s.warp_weight[warp] = through, s.warp_count[warp] = count_through;
  if (threadIdx.x == 0) s.found = {kBins - 1, 0, kNotReached};
  __syncthreads();
  uint64_t before = through - weight;
  count_through -= count;
#pragma unroll
  for (int i = 0; i < kRowWarps; ++i) {
    if (i < warp) before += s.warp_weight[i], count_through += s.warp_count[i];
  }
  if (before < target && target <= before + weight) {
    bool open = true;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!open) continue;
      count_through += s.count[first + i];
      if (target <= before + weights[i]) {
        s.found = {first + i, before, count_through};
        open = false;
      }
      before += weights[i];
    }
  }
  __syncthreads();
  return s.found;
}

// Values of one bin of BinBelow(top) that start with the digits found so far.
struct Narrow {
  float top, floor;   // values below `floor` have no mass
  int bin;
  uint64_t prefix;    // Composite >> shift
  int shift;          // 64: no digit yet

  __device__ __forceinline__ bool Holds(float x, uint64_t composite) const {
    return BinBelow(x, top) == bin && (shift == 64 || composite >> shift == prefix);
  }
};

// Takes one more digit of the value that lies at `target` among what `n` holds. `target` becomes its place in what it holds afterwards.
// Values for which `use` is false do not exist.
template <class Use>
__device__ __forceinline__ Found NextDigit(SelectShared& s, const RowView& row, Weigh weigh, Digit digit, uint64_t* target, Narrow* n,
                                           Use use) {
  ClearBins(s);
  ForRow(row, [&](float x, int id) {
    if (!use(x)) return;
    const uint64_t composite = Composite(x, id);
    if (!n->Holds(x, composite)) return;
    AddToBin(s, DigitBin(composite, digit), weigh == Weigh::kMass && x >= n->floor ? Mass(x, n->top) : 0);
  });
  const Found found = FindBin(s, weigh, *target);
  const uint64_t value = static_cast<uint64_t>((1 << digit.bits) - 1 - found.bin);
  n->prefix = (n->shift == 64 ? 0 : n->prefix << digit.bits) | value;
  n->shift = digit.shift;
  *target -= found.before;
  return found;
}

// Gathers the values that `wanted(x, id)` names, in any order. Returns how many there are: above kListSize the list is not complete.
template <class Wanted>
__device__ __forceinline__ int Gather(SelectShared& s, const RowView& row, Wanted wanted) {
  __syncthreads();
  if (threadIdx.x == 0) s.list_count = 0;
  __syncthreads();
  ForRow(row, [&](float x, int id) {
    if (!wanted(x, id)) return;
    const uint32_t at = atomicAdd(&s.list_count, 1u);
    if (at >= kListSize) return;
    s.list_value[at] = x;
    s.list_id[at] = id;
  });
  __syncthreads();
  return static_cast<int>(s.list_count);
}

}  // namespace phalanx::kernels::cuda
