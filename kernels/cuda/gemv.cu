// A linear layer for few rows: the weight is streamed once, tensor cores do the arithmetic.
//
//   x       [m, k]   bf16   m <= 16, rows aligned to 16 bytes, k a multiple of 8
//   weight  [n, k]   bf16   dense
//   out     [m, n]   bf16 or f32; [m, n / 2] with silu * up of interleaved rows
//
// Moves 2 n k bytes; everything else is small, so the aim is the copy rate of the memory: enough 16-byte loads in flight on every SM.
// - A CTA owns a run of weight rows (gemm_config.cc) and takes 16 at a time; its warps share k and add up in shared
//   memory, in the order of the warps: the same bits each time.
// - mma.m16n8k16 with weight rows as the 16 rows and tokens as the 8 columns: 1...8 tokens cost the same and nothing is unpacked. k may be
//   permuted as long as x and weight agree, so a lane's 16 bytes (8 neighbours in k) are its fragments of two mma: values 0-3 and 4-7.
// - A warp's load is 8 rows x 64 bytes, kept out of L1, which holds x for the other CTAs of the SM.
// A plain dot product a warp would be bound by unpacking from about 4 tokens on.
#include <cuda_bf16.h>

#include "kernels/cuda/device/vec.cuh"
#include "kernels/cuda/device/warp.cuh"
#include "kernels/cuda/gemm.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kRows = kStreamTile;  // weight rows of one mma
constexpr int kLoad = 32;           // k of one load of a warp
constexpr int kMostThreads = 1024;

// Partial sums of a warp in shared memory: [kRows, kPitch] f32. The two spare columns spread the rows over the banks.
template <int kHalves>
constexpr int kPitch = 8 * kHalves + 2;

struct StreamParams {
  const bf16* x;       // [m, k] at x_stride
  const bf16* weight;  // [n, k]
  const float* bias;   // [n] or null
  void* out;           // [m, n] or [m, n / 2] at out_stride
  int64_t x_stride, out_stride;
  int m, n, k;
  int rows;            // weight rows a CTA
  bool out_f32;
  Epilogue epilogue;
};

// 16 bytes that are read once, past L1; zeros if not wanted.
__device__ __forceinline__ uint4 LoadOnce(const bf16* from, bool wanted) {
  uint4 v;
  asm volatile(
      "{\n"
      " .reg .pred p;\n"
      " setp.ne.b32 p, %5, 0;\n"
      " mov.b32 %0, 0;\n mov.b32 %1, 0;\n mov.b32 %2, 0;\n mov.b32 %3, 0;\n"
      " @p ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}\n"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(from), "r"(static_cast<int>(wanted)));
  return v;
}

// The same, kept in L1: 16 bytes that other CTAs read too.
__device__ __forceinline__ uint4 LoadCached(const bf16* from, bool wanted) {
  uint4 v;
  asm volatile(
      "{\n"
      " .reg .pred p;\n"
      " setp.ne.b32 p, %5, 0;\n"
      " mov.b32 %0, 0;\n mov.b32 %1, 0;\n mov.b32 %2, 0;\n mov.b32 %3, 0;\n"
      " @p ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}\n"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(from), "r"(static_cast<int>(wanted)));
  return v;
}

// sum[row, token] += weight[row, k] * x[token, k]; fragments as in the PTX ISA, mma.m16n8k16.
__device__ __forceinline__ void Mma(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The partial sums of a warp for weight rows [row, row + 16), those from row_end on as zeros. kHalves: 8 tokens each.
//   lane: g = lane / 4 is its weight row (and row + 8) and its token (and token + 8), lane % 4 its 16 bytes of a load's 64
// All loads of a round are issued before the first use; their offsets are constants of the instructions.
template <int kHalves>
__device__ __forceinline__ void SumRows(const StreamParams& p, int row, int row_end, float (&sum)[kHalves][4]) {
  constexpr int kAhead = 2;  // loads of a row in a round: whole cache lines
  constexpr int kRound = kAhead * kLoad;
  const int lane = threadIdx.x % kWarp, g = lane / 4, k_lane = lane % 4 * 8;
  const int warp = threadIdx.x / kWarp, k_step = blockDim.x / kWarp * kRound;
  const bf16* weight = p.weight + static_cast<int64_t>(row + g) * p.k + k_lane + warp * kRound;
  const bf16* x = p.x + g * p.x_stride + k_lane + warp * kRound;
  const bool low_row = row + g < row_end, high_row = row + g + 8 < row_end;
  __syncwarp();  // mma wants the whole warp
#pragma unroll 1
  for (int k0 = warp * kRound; k0 < p.k; k0 += k_step, weight += k_step, x += k_step) {
    const int left = p.k - k0 - k_lane;  // load a is there if it begins before the end of k
    uint4 low[kAhead], high[kAhead], v[kAhead][kHalves];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) low[a] = LoadOnce(weight + a * kLoad, a * kLoad < left && low_row);
#pragma unroll
    for (int a = 0; a < kAhead; ++a) high[a] = LoadOnce(weight + int64_t{8} * p.k + a * kLoad, a * kLoad < left && high_row);
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int a = 0; a < kAhead; ++a) v[a][h] = LoadCached(x + h * 8 * p.x_stride + a * kLoad, a * kLoad < left && g + h * 8 < p.m);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        Mma(sum[h], low[a].x, high[a].x, low[a].y, high[a].y, v[a][h].x, v[a][h].y);
        Mma(sum[h], low[a].z, high[a].z, low[a].w, high[a].w, v[a][h].z, v[a][h].w);
      }
    }
  }
}

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

// An output of a turn: (token, pair of rows) with silu * up, else (token, row). A thread has at most one.
struct Output {
  int token;
  int column;  // first weight row, counted from the turn's first
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

// What a thread adds to its sum (x) and, with silu * up, to the next row's (y): bias, and what `out` holds. Fetched before the weights,
// so that it costs no time of its own.
__device__ __forceinline__ float2 FetchAddend(const StreamParams& p, const Output& o, int row) {
  float2 addend = make_float2(0, 0);
  if (!o.there) return addend;
  if (p.bias != nullptr) {
    addend.x = p.bias[row + o.column];
    if (p.epilogue == kEpilogueSiluMul) addend.y = p.bias[row + o.column + 1];
  }
  if (p.epilogue == kEpilogueAdd) addend.x += Before(p, Place(p, o, row));
  return addend;
}

// Adds one output's parts in the order of the warps, which come in eights.
template <int kHalves>
__device__ __forceinline__ void SumWarps(const float* from, float* sum) {
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; warp += 8) {
#pragma unroll
    for (int w = 0; w < 8; ++w) *sum += from[(warp + w) * kRows * kPitch<kHalves>];
  }
}

// Sums over the warps and writes out. `partial` [warps, kRows, kPitch].
template <int kHalves>
__device__ __forceinline__ void Finish(const StreamParams& p, const Output& o, float2 addend, int row, const float* partial) {
  if (!o.there) return;
  const float* from = partial + o.column * kPitch<kHalves> + o.token;
  float sum = 0;
  SumWarps<kHalves>(from, &sum);
  sum += addend.x;
  if (p.epilogue == kEpilogueSiluMul) {
    float up = 0;
    SumWarps<kHalves>(from + kPitch<kHalves>, &up);
    sum = Silu(sum) * (up + addend.y);
  }
  Store(p, Place(p, o, row), sum);
}

// Grid: one CTA for each run of p.rows weight rows. Shared: 2 x [warps, kRows, kPitch] f32, used in turn, so that one barrier does.
template <int kHalves>
__global__ void __launch_bounds__(kMostThreads, 1) StreamRows(const StreamParams p) {
  extern __shared__ float partials[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int first = static_cast<int>(blockIdx.x) * p.rows, row_end = min(first + p.rows, p.n);
  int side = 0;
  for (int row = first; row < row_end; row += kRows, side ^= 1) {
    const float2 addend = FetchAddend(p, OutputOf(p, row, row_end), row);
    float sum[kHalves][4] = {};
    SumRows<kHalves>(p, row, row_end, sum);

    float* partial = partials + side * warps * kRows * kPitch<kHalves>;
    float* mine = partial + (warp * kRows + lane / 4) * kPitch<kHalves> + lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      *reinterpret_cast<float2*>(mine + h * 8) = make_float2(sum[h][0], sum[h][1]);
      *reinterpret_cast<float2*>(mine + h * 8 + 8 * kPitch<kHalves>) = make_float2(sum[h][2], sum[h][3]);
    }
    __syncthreads();
    Finish<kHalves>(p, OutputOf(p, row, row_end), addend, row, partial);
  }
}

}  // namespace

void LaunchStream(const ProductArgs& a, const StreamConfig& config, cudaStream_t stream) {
  const StreamParams p{static_cast<const bf16*>(a.x),
                       static_cast<const bf16*>(a.weight),
                       a.bias,
                       a.out,
                       a.x_stride,
                       a.out_stride,
                       static_cast<int>(a.m),
                       static_cast<int>(a.n),
                       static_cast<int>(a.k),
                       config.rows,
                       a.out_dtype == kF32,
                       a.epilogue};
  const size_t shared = StreamSharedBytes(a.m, config.warps);
  if (a.m <= 8) {
    StreamRows<1><<<config.ctas, config.warps * kWarp, shared, stream>>>(p);
  } else {
    StreamRows<2><<<config.ctas, config.warps * kWarp, shared, stream>>>(p);
  }
}

}  // namespace phalanx::kernels::cuda
