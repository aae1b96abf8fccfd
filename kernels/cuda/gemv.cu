// A linear layer for few rows: the weight is streamed once, tensor cores do the arithmetic.
//
//   x       [m, k]   bf16   m <= 16, rows aligned to 16 bytes, k a multiple of 8
//   gamma   [k]      bf16   with a norm: x is rms_norm(x) * gamma, rounded twice as rms_norm rounds
//   weight  [n, k]   bf16   dense
//   out     [m, n]   bf16 or f32; [m, n / 2] with silu * up of interleaved rows
//
// Moves 2 n k bytes; everything else is small, so the aim is the copy rate of the memory, also while one kernel gives way to the next.
// - A CTA owns a run of weight rows (gemm_config.cc) and takes 16 at a time, a tile. Its warps share the tile in units of 64 k, in turn,
//   and add up in shared memory in the order of the warps: the same bits each time, whatever m.
// - Each warp has a ring of units in shared memory (cp.async, whole cache lines) and is its only reader and writer: no barrier but the one
//   that ends a tile. Weights depend on no kernel, so the ring is filled before the previous kernel has ended; it is deep enough to keep
//   the memory busy while that one finishes and x, the norm and the first sums take their time (device.h, a prefetcher).
// - mma.m16n8k16 with weight rows as the 16 rows and tokens as the 8 columns: 1...8 tokens cost the same and nothing is unpacked. k may be
//   permuted as long as x and weight agree, so a lane's 16 bytes (8 neighbours in k) are its fragments of two mma: values 0-3 and 4-7.
// - With a norm each CTA makes the normalised rows for itself in shared memory (3 to 60 KB, read from L2). Without, x comes from L2
//   straight into the fragments.
// A plain dot product a warp would be bound by unpacking from about 4 tokens on.
#include "kernels/cuda/device.h"
#include "kernels/cuda/device/chain.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/vec.cuh"
#include "kernels/cuda/device/warp.cuh"
#include "kernels/cuda/gemm.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kRows = kStreamTile;  // weight rows of one mma
constexpr int kWarps = kStreamWarps;
constexpr int kThreads = kWarps * kWarp;
constexpr int kUnit = kStreamUnit;                  // k of a unit
constexpr int kUnitBytes = kRows * kUnit * 2;       // of one warp
constexpr int kStepK = 32;                          // k of two mma: 16 bytes a lane and row
constexpr int kSteps = kUnit / kStepK;
static_assert(kUnit * 2 == 128 && kSteps == 2);     // a cache line a row

// Partial sums of a warp in shared memory: [kRows, kPitch] f32. The two spare columns spread the rows over the banks.
template <int kHalves>
constexpr int kPitch = 8 * kHalves + 2;

struct StreamParams {
  const bf16* x;       // [m, k] at x_stride
  const bf16* gamma;   // [k], with a norm
  const bf16* weight;  // [n, k]
  const float* bias;   // [n] or null
  void* out;           // [m, n] or [m, n / 2] at out_stride
  int64_t x_stride, out_stride;
  int m, n, k;
  int units;           // of a tile: k in units, rounded up
  int ahead_bytes;     // of the CTA's weights behind the ring that are brought into L2 early
  bool brief;          // as StreamConfig says
  int slots;           // units of a warp's ring, at most kStages: a short product needs fewer
  int normed_pitch;    // elements from one normalised row to the next
  float epsilon;
  bool out_f32;
  Epilogue epilogue;
};

// ---- the ring -------------------------------------------------------------------------------------------------------

// A warp's units in order: unit u of a tile belongs to warp u % kWarps, counted through all tiles of the CTA. Unit [kRows, kUnit]: row r
// has its 64-byte halves swapped if r is odd, so that the 2 x 64 bytes that a quarter of a warp reads at once lie in different banks.
template <int kStages>
struct Ring {
  const StreamParams& p;
  char* units;         // [slots, kWarps, kUnitBytes], from this warp's on
  int row_end;
  int row, unit;       // what is copied next: tile row, unit in the tile
  int fill = 0, take = 0;

  __device__ __forceinline__ char* Slot(int slot) const { return units + slot * (kWarps * kUnitBytes); }

  // Starts the copy of the next unit, if there is one; always closes a batch, so that batches can be counted.
  __device__ __forceinline__ void CopyNext(int lane) {
    if (row < row_end) {
      const int piece = lane % 8, k = unit * kUnit + piece * 8;
      const bool in_k = k < p.k;
      const bf16* from = p.weight + static_cast<int64_t>(row + lane / 8) * p.k + k;
      char* to = Slot(fill) + lane / 8 * 128 + (piece ^ (lane / 8 % 2 * 4)) * 16;
#pragma unroll
      for (int i = 0; i < kRows / 4; ++i) {
        CopyAsync(to + i * 4 * 128, from + static_cast<int64_t>(i * 4) * p.k, in_k && row + lane / 8 + i * 4 < row_end);
      }
      for (unit += kWarps; unit >= p.units; unit -= p.units) row += kRows;
    }
    CommitCopies();
    if (++fill == p.slots) fill = 0;
  }

  // The fragments of the oldest unit: steps of 32 k, then registers of two mma. Its place is filled again.
  __device__ __forceinline__ void Take(uint4 (&low)[kSteps], uint4 (&high)[kSteps], int lane) {
    WaitCopies<kStages - 1>();
    __syncwarp();
    const char* from = Slot(take) + lane / 4 * 128 + lane % 4 * 16;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int half = (s ^ (lane / 4 % 2)) * 64;
      low[s] = *reinterpret_cast<const uint4*>(from + half);
      high[s] = *reinterpret_cast<const uint4*>(from + 8 * 128 + half);
    }
    if (++take == p.slots) take = 0;
    __syncwarp();
    CopyNext(lane);
  }
};

template <int kHalves>
__device__ __forceinline__ void Multiply(float (&sum)[kHalves][4], const uint4& low, const uint4& high, const uint4 (&x)[kHalves]) {
  const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    Mma(sum[h], first, x[h].x, x[h].y);
    Mma(sum[h], second, x[h].z, x[h].w);
  }
}

// ---- the norm -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float2 Pair(uint32_t two) { return make_float2(LowOf(two), HighOf(two)); }

__device__ __forceinline__ float SquaresOf(const uint4& pack) {
  float sum = 0;
  const uint32_t words[4] = {pack.x, pack.y, pack.z, pack.w};
#pragma unroll
  for (const uint32_t word : words) {
    const float2 v = Pair(word);
    sum += v.x * v.x;
    sum += v.y * v.y;
  }
  return sum;
}

// Two products of bf16 are exact in f32, so that multiplying in bf16 rounds as often as the contract does.
__device__ __forceinline__ uint32_t NormPair(uint32_t x, uint32_t gamma, float scale) {
  const float2 v = Pair(x);
  const __nv_bfloat162 product = __hmul2(__floats2bfloat162_rn(v.x * scale, v.y * scale), *reinterpret_cast<const __nv_bfloat162*>(&gamma));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// Fills normed [m, k up to whole units] with rms_norm(x) * gamma; zeros past k. gamma is in shared memory already: each thread copied the
// packs that it needs itself. sums [16, kWarps]. Thread t has packs t, t + kThreads, ... of every row, so that the order of the sum does
// not depend on m.
__device__ __forceinline__ void NormRows(const StreamParams& p, const uint4* gamma, bf16* normed, float* sums) {
  constexpr int kBatch = 8;  // rows whose loads are under way together
  const int packs = p.units * (kUnit / 8), warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (int first = 0; first < p.m; first += kBatch) {
    float squares[kBatch] = {};
#pragma unroll 1
    for (int at = threadIdx.x; at < packs; at += kThreads) {
      uint4 raw[kBatch];
#pragma unroll
      for (int t = 0; t < kBatch; ++t) {
        raw[t] = LoadFresh(p.x + (first + t) * p.x_stride + at * 8, first + t < p.m && at * 8 < p.k);
      }
#pragma unroll
      for (int t = 0; t < kBatch; ++t) {
        if (first + t >= p.m) continue;
        *reinterpret_cast<uint4*>(normed + (first + t) * p.normed_pitch + at * 8) = raw[t];
        squares[t] += SquaresOf(raw[t]);
      }
    }
#pragma unroll
    for (int t = 0; t < kBatch; ++t) {
      if (first + t >= p.m) continue;
      const float sum = WarpSum(squares[t]);
      if (lane == 0) sums[(first + t) * kWarps + warp] = sum;
    }
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < p.m) {
    float* of_token = sums + threadIdx.x * kWarps;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += of_token[w];
    of_token[0] = 1.0f / sqrtf(sum / static_cast<float>(p.k) + p.epsilon);
  }
  __syncthreads();
#pragma unroll 2
  for (int token = 0; token < p.m; ++token) {
    const float scale = sums[token * kWarps];
    for (int at = threadIdx.x; at < packs; at += kThreads) {
      uint4* place = reinterpret_cast<uint4*>(normed + token * p.normed_pitch + at * 8);
      const uint4 x = *place, g = gamma[at];
      *place = make_uint4(NormPair(x.x, g.x, scale), NormPair(x.y, g.y, scale), NormPair(x.z, g.z, scale), NormPair(x.w, g.w, scale));
    }
  }
  __syncthreads();
}

// ---- sums of a tile -------------------------------------------------------------------------------------------------

// The warp's units of one tile, x from the normalised rows. `unit`: the warp's next unit, counted from the tile's first.
template <int kHalves, int kStages>
__device__ __forceinline__ void SumNormed(const StreamParams& p, Ring<kStages>& ring, const bf16* normed, int* unit, int lane,
                                          float (&sum)[kHalves][4]) {
  const int token = lane / 4;
  const bf16* x = normed + token * p.normed_pitch + lane % 4 * 8;
#pragma unroll 1
  for (; *unit < p.units; *unit += kWarps) {
    uint4 low[kSteps], high[kSteps];
    ring.Take(low, high, lane);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      uint4 v[kHalves];
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        v[h] = make_uint4(0, 0, 0, 0);
        if (token + h * 8 < p.m) v[h] = *reinterpret_cast<const uint4*>(x + h * 8 * p.normed_pitch + *unit * kUnit + s * kStepK);
      }
      Multiply<kHalves>(sum, low[s], high[s], v);
    }
  }
}

// The same, x from memory, for as many units at a time as registers allow: one trip to L2 for all of them.
template <int kHalves, int kStages>
__device__ __forceinline__ void SumPlain(const StreamParams& p, Ring<kStages>& ring, int* unit, int lane, float (&sum)[kHalves][4]) {
  constexpr int kAhead = kHalves == 1 ? 3 : 2;
  const int token = lane / 4;
  const bf16* x = p.x + token * p.x_stride + lane % 4 * 8;
#pragma unroll 1
  while (*unit < p.units) {
    uint4 v[kAhead][kSteps][kHalves];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int k = (*unit + a * kWarps) * kUnit + s * kStepK;
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          v[a][s][h] = LoadFresh(x + h * 8 * p.x_stride + k, token + h * 8 < p.m && k + lane % 4 * 8 < p.k);
        }
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (*unit >= p.units) continue;
      uint4 low[kSteps], high[kSteps];
      ring.Take(low, high, lane);
#pragma unroll
      for (int s = 0; s < kSteps; ++s) Multiply<kHalves>(sum, low[s], high[s], v[a][s]);
      *unit += kWarps;
    }
  }
}

// ---- results --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float Before(const StreamParams& p, int64_t at) {
  return p.out_f32 ? static_cast<const float*>(p.out)[at] : ToFloat(static_cast<const bf16*>(p.out)[at]);
}

__device__ __forceinline__ void Store(const StreamParams& p, int64_t at, float value) {
  if (p.out_f32) {
    static_cast<float*>(p.out)[at] = value;
  } else {
    static_cast<bf16*>(p.out)[at] = FromFloat<bf16>(value);
  }
}

// An output of a tile: (token, pair of rows) with silu * up, else (token, row). A thread has at most one.
struct Output {
  int token;
  int column;  // first weight row, counted from the tile's first
  bool there;
};

__device__ __forceinline__ Output OutputOf(const StreamParams& p, int row, int row_end) {
  const int e = threadIdx.x;
  Output o;
  if (p.epilogue == kEpilogueSiluMul) {
    o.token = e / (kRows / 2);
    o.column = e % (kRows / 2) * 2;
  } else {
    o.token = e / kRows;
    o.column = e % kRows;
  }
  o.there = o.token < p.m && row + o.column < row_end;
  return o;
}

__device__ __forceinline__ int64_t Place(const StreamParams& p, const Output& o, int row) {
  const int column = row + o.column;
  return o.token * p.out_stride + (p.epilogue == kEpilogueSiluMul ? column / 2 : column);
}

// What a thread adds to its sum (x) and, with silu * up, to the next row's (y). The bias depends on no kernel.
__device__ __forceinline__ float2 FetchBias(const StreamParams& p, int row, int row_end) {
  const Output o = OutputOf(p, row, row_end);
  float2 bias = make_float2(0, 0);
  if (!o.there || p.bias == nullptr) return bias;
  bias.x = p.bias[row + o.column];
  if (p.epilogue == kEpilogueSiluMul) bias.y = p.bias[row + o.column + 1];
  return bias;
}

// Adds one output's parts in the order of the warps.
template <int kHalves>
__device__ __forceinline__ float SumWarps(const float* from) {
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += from[w * kRows * kPitch<kHalves>];
  return sum;
}

// Sums over the warps and writes out. `partial` [kWarps, kRows, kPitch].
template <int kHalves>
__device__ __forceinline__ void Finish(const StreamParams& p, const Output& o, float2 addend, int row, const float* partial) {
  if (!o.there) return;
  const float* from = partial + o.column * kPitch<kHalves> + o.token;
  float sum = SumWarps<kHalves>(from) + addend.x;
  if (p.epilogue == kEpilogueSiluMul) sum = Silu(sum) * (SumWarps<kHalves>(from + kPitch<kHalves>) + addend.y);
  Store(p, Place(p, o, row), sum);
}

// Brings part of what the ring does not hold yet into L2, one thread for the CTA.
__device__ __forceinline__ void ReadAhead(const StreamParams& p, int first, int row_end) {
  const int held = p.slots * kWarps / p.units * kRows;  // rows of the ring's whole tiles
  const int64_t left = static_cast<int64_t>(row_end - first - held) * p.k * 2, bytes = min(static_cast<int64_t>(p.ahead_bytes), left);
  const bf16* from = p.weight + static_cast<int64_t>(first + held) * p.k;
  constexpr int kPiece = 4096;
  for (int64_t at = 0; at < bytes; at += kPiece) {
    PrefetchToL2(reinterpret_cast<const char*>(from) + at, static_cast<int>(min(static_cast<int64_t>(kPiece), bytes - at)));
  }
}

// Grid: one CTA for each run of weight rows, StreamFirstRow. Shared: the ring and what StreamRestBytes counts: 2 x [kWarps, kRows, kPitch]
// f32 partial sums, used in turn, so that one barrier a tile does; sums of squares, gamma and the normalised rows. Few registers: the next
// kernels' CTAs must fit beside this one.
template <int kHalves, bool kNorm, int kStages>
__global__ void __launch_bounds__(kThreads, kHalves == 1 ? 3 : 2) StreamRows(const StreamParams p) {
  extern __shared__ __align__(128) char memory[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int ctas = static_cast<int>(gridDim.x), first = StreamFirstRow(static_cast<int>(blockIdx.x), ctas, p.n);
  const int row_end = StreamFirstRow(static_cast<int>(blockIdx.x) + 1, ctas, p.n);
  char* after_ring = memory + p.slots * kWarps * kUnitBytes;
  float* const partials = reinterpret_cast<float*>(after_ring);
  float* const sums = partials + 2 * kWarps * kRows * kPitch<kHalves>;
  uint4* const gamma = reinterpret_cast<uint4*>(sums + kWarps * 8 * kHalves);
  bf16* const normed = reinterpret_cast<bf16*>(gamma + p.units * (kUnit / 8));

  if constexpr (kNorm) {
    for (int at = threadIdx.x; at < p.units * (kUnit / 8); at += kThreads) CopyAsync(gamma + at, p.gamma + at * 8, at * 8 < p.k);
    CommitCopies();
  }
  Ring<kStages> ring{p, memory + warp * kUnitBytes, row_end, first, warp};
  for (; ring.unit >= p.units; ring.unit -= p.units) ring.row += kRows;
  for (int i = 0; i < kStages; ++i) {
    if (i < p.slots) {
      ring.CopyNext(lane);
    } else {
      CommitCopies();
    }
  }
  float2 bias = FetchBias(p, first, row_end);
  if (threadIdx.x == 0 && p.ahead_bytes > 0) ReadAhead(p, first, row_end);
  if (p.brief) LetNextStart();
  WaitForPrevious();
  if (!p.brief) LetNextStart();
  if constexpr (kNorm) {
    WaitCopies<kStages>();
    NormRows(p, gamma, normed, sums);
  }

  int side = 0, unit = warp;
  for (int row = first; row < row_end; row += kRows, side ^= 1) {
    const Output o = OutputOf(p, row, row_end);
    float2 addend = bias;
    if (p.epilogue == kEpilogueAdd && o.there) addend.x += Before(p, Place(p, o, row));
    bias = FetchBias(p, row + kRows, row_end);
    float sum[kHalves][4] = {};
    if constexpr (kNorm) {
      SumNormed<kHalves, kStages>(p, ring, normed, &unit, lane, sum);
    } else {
      SumPlain<kHalves, kStages>(p, ring, &unit, lane, sum);
    }
    unit -= p.units;

    float* partial = partials + side * kWarps * kRows * kPitch<kHalves>;
    float* mine = partial + (warp * kRows + lane / 4) * kPitch<kHalves> + lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      *reinterpret_cast<float2*>(mine + h * 8) = make_float2(sum[h][0], sum[h][1]);
      *reinterpret_cast<float2*>(mine + h * 8 + 8 * kPitch<kHalves>) = make_float2(sum[h][2], sum[h][3]);
    }
    __syncthreads();
    Finish<kHalves>(p, o, addend, row, partial);
  }
}

template <int kHalves, bool kNorm, int kStages>
void LaunchRows(const StreamParams& p, const StreamConfig& config, cudaStream_t stream) {
  const auto kernel = StreamRows<kHalves, kNorm, kStages>;
  WantSharedMemory(reinterpret_cast<const void*>(kernel));
  Launch(kernel, dim3(static_cast<unsigned>(config.ctas)), dim3(kThreads), static_cast<size_t>(config.shared_bytes), stream, p);
}

template <int kHalves, bool kNorm>
void LaunchStages(const StreamParams& p, const StreamConfig& config, cudaStream_t stream) {
  if (config.stages == kStreamDeep) {
    LaunchRows<kHalves, kNorm, kStreamDeep>(p, config, stream);
  } else {
    LaunchRows<kHalves, kNorm, kStreamShallow>(p, config, stream);
  }
}

}  // namespace

void LaunchStream(const ProductArgs& a, const StreamConfig& config, cudaStream_t stream) {
  StreamParams p{};
  p.x = static_cast<const bf16*>(a.x), p.gamma = static_cast<const bf16*>(a.norm_gamma);
  p.weight = static_cast<const bf16*>(a.weight), p.bias = a.bias, p.out = a.out;
  p.x_stride = a.x_stride, p.out_stride = a.out_stride;
  p.m = static_cast<int>(a.m), p.n = static_cast<int>(a.n), p.k = static_cast<int>(a.k);
  p.units = static_cast<int>(StreamUnits(a.k));
  p.slots = config.slots, p.brief = config.brief;
  // Only gate+up follows kernels that leave the memory idle. Ahead of what follows a long stream, L2 would lose it again before its use.
  p.ahead_bytes = a.epilogue == kEpilogueSiluMul ? config.ahead_bytes : 0;
  p.normed_pitch = static_cast<int>(StreamNormedPitch(a.k));
  p.epsilon = a.norm_epsilon, p.out_f32 = a.out_dtype == kF32, p.epilogue = a.epilogue;
  if (a.norm_gamma == nullptr) {
    a.m <= 8 ? LaunchStages<1, false>(p, config, stream) : LaunchStages<2, false>(p, config, stream);
  } else {
    a.m <= 8 ? LaunchStages<1, true>(p, config, stream) : LaunchStages<2, true>(p, config, stream);
  }
}

}  // namespace phalanx::kernels::cuda
