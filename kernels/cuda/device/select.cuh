// kernels/cuda/device/select.cuh: finding the k-th largest value of a row, or the one at which the mass reaches a limit, without a sort.
// Refuses to know: options, draws. Thread: device code, all threads of a team together.
// Neighbours: part.cuh, team.cuh; sampling_truncated.cu, logprobs.cu.
//
// A histogram over the row tells in which bins the wanted value lies; the next one takes these apart, until so few values are left that
// they are gathered and compared with each other.
// - The first level has bins of the distance to the largest value, over which logits spread evenly, and only counts, one shared addition a
//   value. A count and a bin's borders bound its mass, and the mass of all is known, so that seen from the nearer end little is uncertain:
//   a bin or two are left.
// - Later levels meet few values. Their bins are ranges of the value's bits, with exact masses: each level leaves one bin, 512 times
//   narrower, so that there are at most four for values and three more for ids.
// Counts and masses are integers: the order of the additions and the cut of the row into parts do not show.
#pragma once

#include "kernels/cuda/device/part.cuh"

namespace phalanx::kernels::cuda {

static_assert(kBins == kRowThreads);
constexpr int kListSize = kRowThreads / 4;  // gathered values: four threads each
constexpr uint32_t kUncounted = 0x7fffffff;

enum class Weigh { kCount, kMass };

// The bins in which a target lies: `before` values lie in front of `first`, `through` up to and with `last`; kUncounted: in none.
struct Found {
  int first, last;
  uint32_t before, through;
  uint64_t most_before;  // bound of the weight in front of `first`
};

struct SelectShared {
  uint32_t count[2][kBins], low[2][kBins], high[2][kBins];  // of alternate levels: values, mass
  uint32_t own_count;                                       // this CTA's gathered values
  float own_value[kListSize];
  int32_t own_id[kListSize];
  float value[kListSize];                                   // the team's
  int32_t id[kListSize];
  uint64_t mass[kListSize];
  uint64_t warp_most[kRowWarps], warp_least[kRowWarps];
  uint32_t warp_count[kRowWarps];
  Found found;
  TeamShared team;
};

// Where the wanted value lies.
struct Narrowed {
  Range range;
  uint32_t above;       // values above the range
  uint32_t within;      // values in it, or kUncounted
  bool reached;         // false: all values together do not reach the target
  bool weighed;         // above_mass is known
  uint64_t above_mass;  // of the values above the range
};

// One search after another on one row after another. Only values >= floor exist for it.
class Selector {
 public:
  float top = 0, floor = 0;  // the largest value of the row; floor <= top
  uint64_t total = 0;        // mass of the values >= floor, after FirstLevel by mass
  uint64_t target = 0;       // how many values, or how much mass, from the top; FirstLevel by mass sets it

  __device__ __forceinline__ Selector(SelectShared& shared, Team& team) : s_(shared), team_(team) {
#pragma unroll
    for (int i = 0; i < 2; ++i) s_.count[i][threadIdx.x] = s_.low[i][threadIdx.x] = s_.high[i][threadIdx.x] = 0;
    __syncthreads();
  }

  // The level of distances, which reach down to `span` below the top. `p`: the share of the mass that is the target.
  __device__ __forceinline__ Narrowed FirstLevel(const Part& part, Weigh weigh, float span, float p) {
    span = fmaxf(fminf(span, top - floor), kNarrowestSpan);
    const float per_unit = static_cast<float>(kBins - 1) / span, near = top - 1.001f * span;
    uint64_t mass[2] = {0, 0};  // of all, and of what is counted
    uint32_t* const count = s_.count[turn_];
    const bool by_mass = weigh == Weigh::kMass;
    ForPart(part, [&](float x, int) {
      if (!(x >= floor)) return;
      const uint64_t own = by_mass ? Mass(x, top) : 0;
      mass[0] += own;
      if (x < near) return;  // well behind the last bin but one
      const int bin = BinBelow(x, top, per_unit);
      if (bin == kBins - 1) return;
      mass[1] += own;
      atomicAdd(&count[bin], 1u);
    });
    if (by_mass) {
      team_.Sum(mass);
      total = mass[0];
      target = MassLimit(p, total);
    } else {
      team_.Barrier();
    }
    const int bin = static_cast<int>(threadIdx.x);
    const uint32_t n = Merge(s_.count);
    NextTurn();
    const Found found = by_mass ? Find(n, n * MostMass(bin, per_unit), n * LeastMass(bin, per_unit), mass[1], target)
                                : Find(n, n, n, ~uint64_t{0}, target);
    return {BordersOf(found, per_unit), found.before, found.through == kUncounted ? kUncounted : found.through - found.before, true,
            false, 0};
  }

  // Where the values end of which there are `target` among the threads' largest, `own` here: there are at least so many, and usually
  // hardly more. Not reached: there are fewer threads with a value near the top.
  __device__ __forceinline__ Narrowed LevelOfMaxima(float own) {
    const float per_unit = static_cast<float>(kBins - 1) / fmaxf(fminf(kWidestSpan, top - floor), kNarrowestSpan);
    if (own >= floor) {
      const int bin = BinBelow(own, top, per_unit);
      if (bin < kBins - 1) atomicAdd(&s_.count[turn_][bin], 1u);
    }
    team_.Barrier();
    const uint32_t n = Merge(s_.count);
    NextTurn();
    const Found found = Find(n, n, n, ~uint64_t{0}, target);
    return {BordersOf(found, per_unit), 0, kUncounted, found.through != kUncounted, false, 0};
  }

  // Takes a range apart. `least`: log2 of the smallest bin, kIdBits to keep a value's ids together.
  __device__ __forceinline__ Narrowed NextLevel(const Part& part, Weigh weigh, const Narrowed& w, int least) {
    const int shift = ShiftOf(w.range, least);
    const float low = ValueOfComposite(w.range.low), high = ValueOfComposite(w.range.high);
    const bool by_mass = weigh == Weigh::kMass, weighs = by_mass && !w.weighed;
    uint64_t mass[1] = {0};
    ForPart(part, [&](float x, int id) {
      if (!(x >= low)) return;
      if (x > high) {
        if (weighs) mass[0] += Mass(x, top);
        return;
      }
      const uint64_t composite = Composite(x, id);
      if (w.range.Holds(composite)) AddToBin(BinInRange(w.range, composite, shift), by_mass ? Mass(x, top) : 0);
    });
    if (weighs) {
      team_.Sum(mass);
    } else {
      team_.Barrier();
    }
    const uint64_t above_mass = weighs ? mass[0] : w.above_mass;
    const uint32_t n = Merge(s_.count);
    const uint64_t weight = by_mass ? MergeMass() : n;
    NextTurn();
    const Found found = Find(n, weight, weight, ~uint64_t{0}, target - (by_mass ? above_mass : w.above));
    if (found.through == kUncounted) return {w.range, w.above, 0, false, false, 0};
    return {RangeOfBin(w.range, found.first, shift), w.above + found.before, found.through - found.before, true, by_mass,
            above_mass + found.most_before};
  }

  // Lists the values from `range.low` up, or, with `above`, those of the range alone and the mass above it. In any order. Returns how many
  // there are: if more than kListSize, the list is not complete.
  __device__ __forceinline__ int Gather(const Part& part, const Narrowed& w, bool all, uint64_t* above) {
    const float low = ValueOfComposite(w.range.low), high = ValueOfComposite(w.range.high);
    const bool weighs = above != nullptr && !w.weighed;
    __syncthreads();
    if (threadIdx.x == 0) s_.own_count = 0;
    __syncthreads();
    uint64_t mass[1] = {0};
    ForPart(part, [&](float x, int id) {
      if (!(x >= low)) return;
      if (!all && x > high) {
        if (weighs) mass[0] += Mass(x, top);
        return;
      }
      if (Composite(x, id) < w.range.low) return;
      const uint32_t at = atomicAdd(&s_.own_count, 1u);
      if (at >= kListSize) return;
      s_.own_value[at] = x;
      s_.own_id[at] = id;
    });
    if (weighs) {
      team_.Sum(mass);
    } else {
      team_.Barrier();
    }
    if (above != nullptr) *above = weighs ? mass[0] : w.above_mass;
    return Join();
  }

  struct Larger {
    uint32_t count;
    uint64_t mass;
  };
  // What of the `n` listed values is larger than value threadIdx.x / 4; 0 where there is none.
  __device__ __forceinline__ Larger LargerOnes(int n) const {
    const int own = static_cast<int>(threadIdx.x) / 4;
    Larger larger{0, 0};
    const float x = own < n ? s_.value[own] : INFINITY;
    for (int i = static_cast<int>(threadIdx.x) % 4; i < n; i += 4) {
      if (s_.value[i] > x) ++larger.count, larger.mass += s_.mass[i];
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      larger.count += __shfl_xor_sync(0xffffffffu, larger.count, step);
      larger.mass += __shfl_xor_sync(0xffffffffu, larger.mass, step);
    }
    return larger;
  }

  // The smallest of the `n` listed values before which the target is not reached; `before` of it lies above them.
  __device__ __forceinline__ float FloorOfList(int n, Weigh weigh, uint64_t before) {
    const int own = static_cast<int>(threadIdx.x) / 4;
    const Larger larger = LargerOnes(n);
    const bool kept = own < n && before + (weigh == Weigh::kMass ? larger.mass : larger.count) < target;
    const uint64_t most = CtaMax(kept ? static_cast<uint32_t>(~OrderedKey(s_.value[own])) : 0, s_.team.reduce);
    return FromKey(~static_cast<uint32_t>(most));
  }

  __device__ __forceinline__ SelectShared& shared() const { return s_; }

 private:
  __device__ __forceinline__ void AddToBin(int bin, uint64_t mass) {
    atomicAdd(&s_.count[turn_][bin], 1u);
    if (mass == 0) return;
    const uint32_t low = static_cast<uint32_t>(mass), old = atomicAdd(&s_.low[turn_][bin], low);
    const uint32_t high = static_cast<uint32_t>(mass >> 32) + (old + low < old ? 1u : 0u);
    if (high != 0) atomicAdd(&s_.high[turn_][bin], high);
  }

  // The range of the bins that were found on a level of distances.
  __device__ __forceinline__ Range BordersOf(const Found& found, float per_unit) const {
    const int behind = threadIdx.x % 2 == 0 ? found.first : found.last + 1;  // both borders at once, on even and odd lanes
    const uint32_t key = LastKeyFrom(min(max(behind, 1), kBins - 1), top, per_unit);
    const uint32_t high = __shfl_sync(0xffffffffu, key, 0), low = __shfl_sync(0xffffffffu, key, 1) + 1, least = OrderedKey(floor);
    return RangeOfKeys(found.last == kBins - 1 ? least : max(low, least), found.first == 0 ? OrderedKey(top) : high);
  }

  // This thread's bin, over the team.
  __device__ __forceinline__ uint32_t Merge(const uint32_t (&bins)[2][kBins]) const {
    uint32_t sum = 0;
#pragma unroll
    for (int rank = 0; rank < kMostRanks; ++rank) {
      if (rank < team_.size()) sum += *team_.Of(&bins[turn_][threadIdx.x], rank);
    }
    return sum;
  }
  __device__ __forceinline__ uint64_t MergeMass() const {
    uint64_t sum = 0;
#pragma unroll
    for (int rank = 0; rank < kMostRanks; ++rank) {
      if (rank >= team_.size()) continue;
      sum += static_cast<uint64_t>(*team_.Of(&s_.high[turn_][threadIdx.x], rank)) << 32 | *team_.Of(&s_.low[turn_][threadIdx.x], rank);
    }
    return sum;
  }

  // After a level's barrier all have read the bins of the level before it: they are cleared for the next one. Find has a barrier.
  __device__ __forceinline__ void NextTurn() {
    turn_ ^= 1;
    s_.count[turn_][threadIdx.x] = s_.low[turn_][threadIdx.x] = s_.high[turn_][threadIdx.x] = 0;
  }

  // A thread has one bin: its values, and bounds of its weight; all of them weigh `exactly` together, if that is less than the bounds.
  // `first` is the first bin with which the weight may reach the goal, `last` the first with which it must.
  __device__ __forceinline__ Found Find(uint32_t count, uint64_t most, uint64_t least, uint64_t exactly, uint64_t goal) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, bin = threadIdx.x;
    const uint32_t own_count = count;
    const uint64_t own_most = most, own_least = least;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {  // sums up to and with each lane
      const uint32_t other_count = __shfl_up_sync(0xffffffffu, count, step);
      const uint64_t other_most = __shfl_up_sync(0xffffffffu, most, step), other_least = __shfl_up_sync(0xffffffffu, least, step);
      if (lane >= step) count += other_count, most += other_most, least += other_least;
    }
    __syncthreads();  // nobody reads these any more
    if (lane == kWarp - 1) s_.warp_count[warp] = count, s_.warp_most[warp] = most, s_.warp_least[warp] = least;
    __syncthreads();
    uint64_t all_most = 0, all_least = 0;
#pragma unroll
    for (int i = 0; i < kRowWarps; ++i) {
      if (i < warp) count += s_.warp_count[i], most += s_.warp_most[i], least += s_.warp_least[i];
      all_most += s_.warp_most[i], all_least += s_.warp_least[i];
    }
    const Prefix prefix{all_most, all_least, min(exactly, all_most)};
    const uint64_t through_most = prefix.Most(most, least), through_least = prefix.Least(most, least);
    const uint64_t before_most = prefix.Most(most - own_most, least - own_least);
    const uint64_t before_least = prefix.Least(most - own_most, least - own_least);
    if (before_most < goal && goal <= through_most) {
      s_.found.first = bin, s_.found.before = count - own_count, s_.found.most_before = before_most;
    }
    if (before_least < goal && goal <= through_least) s_.found.last = bin, s_.found.through = count;
    if (bin == kBins - 1 && through_most < goal) s_.found.first = bin, s_.found.before = count;
    if (bin == kBins - 1 && through_least < goal) s_.found.last = bin, s_.found.through = kUncounted;
    __syncthreads();
    return s_.found;
  }

  // The own lists of all ranks, one after another.
  __device__ __forceinline__ int Join() {
    const int lane = threadIdx.x % kWarp;
    const uint32_t there = lane < team_.size() ? *team_.Of(&s_.own_count, lane) : 0;
    int n = 0;
    for (int rank = 0; rank < team_.size(); ++rank) {
      const int count = static_cast<int>(__shfl_sync(0xffffffffu, there, rank)), at = static_cast<int>(threadIdx.x) - n;
      if (at >= 0 && at < min(count, kListSize) && threadIdx.x < kListSize) {
        const float x = *team_.Of(&s_.own_value[at], rank);
        s_.value[threadIdx.x] = x;
        s_.id[threadIdx.x] = *team_.Of(&s_.own_id[at], rank);
        s_.mass[threadIdx.x] = Mass(x, top);
      }
      n += count;
    }
    __syncthreads();
    return n;
  }

  SelectShared& s_;
  Team& team_;
  int turn_ = 0;
};

}  // namespace phalanx::kernels::cuda
