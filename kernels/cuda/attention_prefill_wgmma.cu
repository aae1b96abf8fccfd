// Attention of sequences with several query rows on Hopper: causal, paged, online softmax in registers (FlashAttention-3's pipeline).
//
//   q     [tokens, heads, head_dim]                 bf16
//   k, v  [blocks, kv_heads, block_size, head_dim]  bf16   through the block table, block_size a multiple of 16
//   out   [tokens, heads * head_dim]                bf16
//
// 4 * head_dim * positions operations a query and head. Query rows and the heads of a group are packed as in attention_prefill.cu, 64 to a
// warpgroup; one or two warpgroups share the keys and values of a CTA.
// - A producer warpgroup copies keys and values in tiles of 128 positions into a ring, boxes of 16 positions through the block table (a box
//   never crosses a block): K0, K1, V0, K2, V1, ... as they are used. Boxes that no row of the CTA sees are zeros and are not read.
// - A warpgroup starts the next tile's scores and this tile's values together, and turns the scores into weights while the tensor cores
//   do the values. With two warpgroups, one has the tensor cores while the other has its softmax.
// - Tiles are taken from the first to the last and lie at multiples of 128 positions, so that a row's bits do not depend on how its
//   prompt was cut into chunks of more than one row.
// Positions past the context lie in the last box alone; its values are cleared in shared memory before a product reads them.
// Source: Dao, FlashAttention-2, 2023; Shah et al., FlashAttention-3, 2024.
#include <cuda.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device/attention_tile.cuh"
#include "kernels/cuda/device/chain.cuh"
#include "kernels/cuda/device/prefill_softmax.cuh"
#include "kernels/cuda/device/prefill_work.cuh"
#include "kernels/cuda/device/tma.cuh"
#include "kernels/cuda/device/wgmma_attention.cuh"
#include "kernels/cuda/tensor_map.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kGroup = 128;       // threads of a warpgroup
constexpr int kGroupRows = 64;    // packed queries of one
constexpr int kBox = 16;          // positions of one copy
constexpr int kPanelRow = 128;    // bytes: 64 columns
constexpr int kKeyPanel = kKeys * kPanelRow, kQueryPanel = kGroupRows * kPanelRow;

// Shared memory: queries, the ring, the barriers.
template <int kHeadDim, int kGroups>
struct WgmmaLayout {
  static constexpr int kPanels = (kHeadDim + 63) / 64;
  static constexpr int kQueryBytes = kGroups * kPanels * kQueryPanel;
  static constexpr int kTileBytes = kPanels * kKeyPanel;
  static constexpr int kBarrierBytes = 256;
  static constexpr int kCtas = kGroups == 1 ? 2 : 1;  // of an SM
  static constexpr int kFit = (226 / kCtas * 1024 - kQueryBytes - kBarrierBytes) / kTileBytes;
  static constexpr int kStages = kFit < 6 ? kFit : 6;
  static constexpr int kRing = kQueryBytes, kBarriers = kRing + kStages * kTileBytes, kBytes = kBarriers + kBarrierBytes;
  static_assert(kStages >= 3);  // K of the next tile, and V of the one before its last
};

// Where the ring's next tile is.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void Advance() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

template <int kHeadDim, int kGroups>
__device__ __forceinline__ void Produce(const CUtensorMap* k, const CUtensorMap* v, const AttentionParams& p, const PrefillWork& w,
                                        int cache_rows, uint32_t ring, uint32_t full, uint32_t empty) {
  using L = WgmmaLayout<kHeadDim, kGroups>;
  // A warp issues its lanes' copies one after another, so the four warps share them.
  constexpr int kCopies = L::kPanels * kKeys / kBox, kOfWarp = kCopies / (kGroup / kWarp);
  const int lane = threadIdx.x % kWarp, own = threadIdx.x / kWarp * kOfWarp + lane % kOfWarp;
  const int box = own % (kKeys / kBox), panel = own / (kKeys / kBox);
  const Pages pages = PagesOf(p, w.sequence, w.kv_head);
  const auto row_at = [&](int tile) {  // of the lane's box; past the cache for zeros
    const int position = tile * kKeys + box * kBox;
    return position + kBox > w.begin && position < w.end ? pages.RowOf(position) : cache_rows;
  };
  RingPlace<L::kStages> at;
  const auto copy = [&](const CUtensorMap* map, int row) {
    BarrierWait(empty + at.stage * 8, at.phase ^ 1);
    if (threadIdx.x == 0) ArriveExpecting(full + at.stage * 8, L::kTileBytes);
    __syncwarp();
    const uint32_t to = ring + at.stage * L::kTileBytes + panel * kKeyPanel + box * kBox * kPanelRow;
    if (lane < kOfWarp) CopyTile(to, map, panel * 64, row, full + at.stage * 8);
    at.Advance();
  };
  const int first = w.begin / kKeys, tiles = (w.end + kKeys - 1) / kKeys;
  int row = row_at(first);
  copy(k, row);
  for (int tile = first; tile < tiles; ++tile) {
    const int next = row_at(tile + 1);
    if (tile + 1 < tiles) copy(k, next);
    copy(v, row);
    row = next;
  }
}

// ---- one warpgroup --------------------------------------------------------------------------------------------------

// The warpgroup's queries to panels at `to`; zeros past the last.
template <int kHeadDim>
__device__ __forceinline__ void CopyQueries(const AttentionParams& p, const PrefillWork& w, int first_packed, unsigned char* to) {
  constexpr int kPieces = kHeadDim / 8;  // of 16 bytes
#pragma unroll
  for (int i = 0; i < kGroupRows * kPieces / kGroup; ++i) {
    const int item = static_cast<int>(threadIdx.x) % kGroup + i * kGroup, at = item / kPieces, piece = item % kPieces;
    const int packed = first_packed + at, row = packed / p.group, head = w.kv_head * p.group + packed - row * p.group;
    const bool there = row < w.rows;
    const bf16* from = static_cast<const bf16*>(p.q) + (there ? (w.first_row + row) * p.q_row + head * p.q_head + piece * 8 : 0);
    CopyAsync(to + piece / 8 * kQueryPanel + at * kPanelRow + (piece % 8 ^ at % 8) * 16, from, there);
  }
  CommitCopies();
  WaitCopies<0>();
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

template <int kHeadDim, int kGroups>
class Warpgroup {
  using L = WgmmaLayout<kHeadDim, kGroups>;
  static constexpr bool kTurns = kGroups == 2;
  // Barriers: of all warpgroups that multiply, of one, and a warpgroup's turn.
  static constexpr int kAllGroups = 1, kOneGroup = 2, kTurn = 4;

 public:
  __device__ Warpgroup(const AttentionParams& p, const PrefillWork& w, unsigned char* shared, uint32_t full, uint32_t empty)
      : p_(p), w_(w), shared_(shared), full_(full), empty_(empty), group_(static_cast<int>(threadIdx.x) / kGroup - 1),
        first_packed_(w.first_packed + group_ * kGroupRows), rows_(RowsOf(p, w, first_packed_ + WarpInGroup() * 16)) {}

  // wait: the previous kernel may not have ended; nothing of it is needed, but it must have before anything is written.
  __device__ void Run(bool wait) {
    unsigned char* queries = shared_ + group_ * L::kPanels * kQueryPanel;
    CopyQueries<kHeadDim>(p_, w_, first_packed_, queries);
    NamedSync(kOneGroup + group_, kGroup);
    const uint32_t q = SharedAddress(queries);
    const int first_own = w_.OwnOf(first_packed_, p_.group), last_own = w_.OwnOf(first_packed_ + kGroupRows - 1, p_.group);
    const int first = w_.begin / kKeys, tiles = (w_.end + kKeys - 1) / kKeys;
    const float scale = p_.scale * kLog2E;

    float s[kKeys / 2], sums[kHeadDim / 2], rescale[2];
    uint32_t weights[kKeys / 16][4];
    RunningSoftmax softmax;
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) sums[i] = 0;
    const auto needs_mask = [&](int tile) {
      const int at = tile * kKeys;
      return at + kKeys - 1 > first_own || (p_.window > 0 && at + p_.window <= last_own);
    };
    const auto mask = [&](int tile) { MaskTile(s, rows_.own, tile * kKeys + static_cast<int>(threadIdx.x) % 4 * 2, p_.window); };

    if (kTurns && group_ == 1) PassTurn();  // the first is the other's
    StartScores(q, s);
    WgmmaWait<0>();
    Pin(s);
    Release();
    if (needs_mask(first)) mask(first);
    softmax.Update(s, scale, rescale);
    PackWeights(weights, s);
    if (first == 0 && first_own < kKeys) AddRoundedOff(s, weights, sums, tiles);

    const auto step = [&](int tile, auto masked) {
      if (kTurns) TakeTurn();
      StartScores(q, s);
      const int stage_of_keys = TakePlace();
      BarrierWait(full_ + at_.stage * 8, at_.phase);
      StartValues(weights, sums, at_.stage);
      if (kTurns) PassTurn();
      WgmmaWait<1>();
      Pin(s);
      ReleaseStage(stage_of_keys);
      if constexpr (masked.value) mask(tile);
      softmax.Update(s, scale, rescale);
      // The compiler would put the weights off until the values' product is over; it cannot while a branch asks for their sums.
      if (tile + 1 < tiles && softmax.sum[0] + softmax.sum[1] >= 0) AwaitNext();
      WgmmaWait<0>();
      Pin(sums);
      Pin(weights);
      Release();
      Rescale(sums, rescale);
      PackWeights(weights, s);
    };
    for (int tile = first + 1; tile < tiles; ++tile) {
      if (needs_mask(tile)) {
        step(tile, std::true_type());
      } else {
        step(tile, std::false_type());
      }
    }
    AwaitLastValues(at_);
    StartValues(weights, sums, at_.stage);
    WgmmaWait<0>();
    Pin(sums);
    if (wait) WaitForPrevious();
    Write(sums, softmax);
  }

 private:
  static __device__ __forceinline__ int WarpInGroup() { return static_cast<int>(threadIdx.x) % kGroup / kWarp; }

  __device__ __forceinline__ void TakeTurn() { NamedSync(kTurn + group_, 2 * kGroup); }
  __device__ __forceinline__ void PassTurn() {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(kTurn + 1 - group_), "n"(2 * kGroup) : "memory");
  }

  __device__ __forceinline__ uint32_t Stage(int stage) const { return SharedAddress(shared_) + L::kRing + stage * L::kTileBytes; }
  __device__ __forceinline__ void ReleaseStage(int stage) {
    if (threadIdx.x % kWarp == 0) Arrive(empty_ + stage * 8);
  }
  // The ring's tile; the next one is next.
  __device__ __forceinline__ int TakePlace() {
    const int stage = at_.stage;
    at_.Advance();
    return stage;
  }
  // TakePlace, and the copies may fill it again.
  __device__ __forceinline__ void Release() { ReleaseStage(TakePlace()); }

  // Until the tile after the ring's is there.
  __device__ __forceinline__ void AwaitNext() {
    RingPlace<L::kStages> next = at_;
    next.Advance();
    BarrierWait(full_ + next.stage * 8, next.phase);
  }

  // s = q * k^T of the ring's tile, as a batch of its own.
  __device__ __forceinline__ void StartScores(uint32_t q, float (&s)[kKeys / 2]) {
    BarrierWait(full_ + at_.stage * 8, at_.phase);
    const uint64_t queries = AcrossColumns(q), keys = AcrossColumns(Stage(at_.stage));
    Pin(s);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      MultiplyScores(s, queries + (i / 4 * kQueryPanel + i % 4 * 32) / 16, keys + (i / 4 * kKeyPanel + i % 4 * 32) / 16, i > 0);
    }
    WgmmaCommit();
  }
  // sums += weights * v of the stage's tile, which is there, as a batch of its own.
  __device__ __forceinline__ void StartValues(uint32_t (&weights)[kKeys / 16][4], float (&sums)[kHeadDim / 2], int stage) {
    const uint64_t values = DownRows(Stage(stage), kKeyPanel);
    Pin(weights);
    Pin(sums);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) MultiplyValues<kHeadDim>(sums, weights[i], values + i * 16 * kPanelRow / 16);
    WgmmaCommit();
  }

  // Until the last tile's values are there; clears those past the context, which may be anything.
  __device__ __forceinline__ void AwaitLastValues(const RingPlace<L::kStages>& at) {
    BarrierWait(full_ + at.stage * 8, at.phase);
    const int past = w_.length % kBox;
    if (past == 0 || w_.end <= w_.length - past) return;
    const int item = static_cast<int>(threadIdx.x) - kGroup, row = w_.length % kKeys + item / 8;
    static_assert(kGroup >= (kBox - 1) * 8);
    if (item < (kBox - past) * 8) {
      unsigned char* to = shared_ + L::kRing + at.stage * L::kTileBytes + row * kPanelRow + item % 8 * 16;
#pragma unroll
      for (int panel = 0; panel < L::kPanels; ++panel) *reinterpret_cast<uint4*>(to + panel * kKeyPanel) = uint4{0, 0, 0, 0};
      asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
    }
    NamedSync(kAllGroups, kGroups * kGroup);
  }

  // What rounding to bf16 took from the weights of rows that see no more than the first tile: where few positions have large weights,
  // it would show in the result. V of the first tile comes after K of the second.
  __device__ __forceinline__ void AddRoundedOff(const float (&s)[kKeys / 2], const uint32_t (&weights)[kKeys / 16][4],
                                                float (&sums)[kHeadDim / 2], int tiles) {
    RingPlace<L::kStages> at = at_;
    if (tiles > 1) {
      at.Advance();
      BarrierWait(full_ + at.stage * 8, at.phase);
    } else {
      AwaitLastValues(at);
    }
    uint32_t rest[kKeys / 16][4];
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      const uint32_t rounded = weights[i / 4][i % 4];
      rest[i / 4][i % 4] = rows_.own[i % 2] < kKeys ? PackPair(s[2 * i] - LowOf(rounded), s[2 * i + 1] - HighOf(rounded)) : 0;
    }
    StartValues(rest, sums, at.stage);
    WgmmaWait<0>();
    Pin(sums);
    Pin(rest);
  }

  static __device__ __forceinline__ void Rescale(float (&sums)[kHeadDim / 2], const float (&rescale)[2]) {
    if (__all_sync(0xffffffffu, rescale[0] == 1.0f && rescale[1] == 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) sums[i] *= rescale[i / 2 % 2];
  }

  __device__ __forceinline__ void Write(const float (&sums)[kHeadDim / 2], const RunningSoftmax& softmax) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = QuadSum(softmax.sum[i]);
      if (!rows_.there[i]) continue;
      const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
      bf16* out = static_cast<bf16*>(p_.out) + rows_.row[i] * p_.out_row + rows_.head[i] * kHeadDim + threadIdx.x % 4 * 2;
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        *reinterpret_cast<uint32_t*>(out + j * 8) = PackPair(sums[4 * j + 2 * i] * factor, sums[4 * j + 2 * i + 1] * factor);
      }
    }
  }

  const AttentionParams& p_;
  const PrefillWork& w_;
  unsigned char* const shared_;
  const uint32_t full_, empty_;
  const int group_, first_packed_;
  const LaneRows rows_;
  RingPlace<L::kStages> at_;
};

// Grid: x = kv heads, y = PrefillTileCount. A gate (device.h), or with `beside_decode` a kernel that reads what was there before the decode
// kernel, itself a gate, and runs beside it.
template <int kHeadDim, int kGroups>
__global__ void __launch_bounds__((1 + kGroups) * kGroup, WgmmaLayout<kHeadDim, kGroups>::kCtas)
    PrefillWgmma(const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v, const AttentionParams p, int cache_rows,
                 bool beside_decode) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // launched on no other card (WgmmaPrefillTakes)
  using L = WgmmaLayout<kHeadDim, kGroups>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t full = SharedAddress(shared) + L::kBarriers, empty = full + L::kStages * 8;
  if (threadIdx.x == 0) {
    for (const CUtensorMap* map : {&k, &v}) asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
    for (int i = 0; i < L::kStages; ++i) {
      BarrierInit(full + i * 8, 1);
      BarrierInit(empty + i * 8, kGroups * kGroup / kWarp);
    }
    BarrierInitDone();
  }
  if (!beside_decode) PassGate();
  __syncthreads();
  PrefillWork w;
  if (!FindPrefillWork<kGroups * kGroupRows>(p, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x), &w)) {
    if (beside_decode) WaitForPrevious();
    return;
  }
  if (threadIdx.x < kGroup) {
    GiveRegisters<kGroups == 1 ? 40 : 24>();
    Produce<kHeadDim, kGroups>(&k, &v, p, w, cache_rows, SharedAddress(shared) + L::kRing, full, empty);
  } else {
    TakeRegisters<kGroups == 1 ? 216 : 240>();
    Warpgroup<kHeadDim, kGroups>(p, w, shared, full, empty).Run(beside_decode);
  }
#endif
}

// ---- launch ---------------------------------------------------------------------------------------------------------

// K or V as a matrix [rows, head_dim], read in boxes of kBox rows and 64 columns; columns and rows outside are zeros.
CUresult MapCache(CUtensorMap* map, const void* data, int rows, int head_dim) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(head_dim) * 2};
  const cuuint32_t box[2] = {64, kBox}, steps[2] = {1, 1};
  return FindTensorMapEncoder()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, box, steps,
                                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

template <int kHeadDim, int kGroups>
cudaError_t LaunchGroups(const CUtensorMap& k, const CUtensorMap& v, const AttentionParams& p, int cache_rows, bool beside_decode,
                         cudaStream_t stream) {
  constexpr int kBytes = WgmmaLayout<kHeadDim, kGroups>::kBytes;
  const cudaError_t set = cudaFuncSetAttribute(PrefillWgmma<kHeadDim, kGroups>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (set != cudaSuccess) return set;
  const int64_t tiles = PrefillTileCount(p.tokens, p.sequences, p.group, kGroups * kGroupRows);
  const dim3 grid(static_cast<unsigned>(p.kv_heads), static_cast<unsigned>(tiles));
  Launch(PrefillWgmma<kHeadDim, kGroups>, grid, dim3((1 + kGroups) * kGroup), kBytes, stream, k, v, p, cache_rows, beside_decode);
  return cudaPeekAtLastError();
}

template <int kHeadDim>
cudaError_t LaunchRows(const CUtensorMap& k, const CUtensorMap& v, const AttentionParams& p, int cache_rows, int rows, bool beside_decode,
                       cudaStream_t stream) {
  return rows > kGroupRows ? LaunchGroups<kHeadDim, 2>(k, v, p, cache_rows, beside_decode, stream)
                           : LaunchGroups<kHeadDim, 1>(k, v, p, cache_rows, beside_decode, stream);
}

}  // namespace

bool WgmmaPrefillTakes(const Device* device, const AttentionParams& p) {
#ifdef PHALANX_CUDA_HOPPER
  constexpr int kFewKeys = 64;        // with so few, rounding of single weights shows; attention_prefill.cu keeps what it takes
  constexpr int kMostTiles = 65535;   // y of a grid
  return device->capability == 90 && FindTensorMapEncoder() != nullptr && p.block_size % kBox == 0 && p.scale > 0 &&
         (p.window <= 0 || p.window >= kFewKeys) && PrefillTileCount(p.tokens, p.sequences, p.group, kGroupRows) <= kMostTiles;
#else
  return false;
#endif
}

Code LaunchWgmmaPrefill(Device* device, const AttentionParams& p, int blocks, int rows, bool beside_decode, cudaStream_t stream) {
  const int cache_rows = blocks * p.kv_heads * p.block_size;
  CUtensorMap k, v;
  CUresult status = MapCache(&k, p.k, cache_rows, p.head_dim);
  if (status == CUDA_SUCCESS) status = MapCache(&v, p.v, cache_rows, p.head_dim);
  if (status != CUDA_SUCCESS) {
    return device->Fail(kDeviceError, "attention: cuTensorMapEncodeTiled, %d rows of %d: error %d", cache_rows, p.head_dim, status);
  }
  const auto launch = [&](auto launch_rows) {
    return device->Check(launch_rows(k, v, p, cache_rows, rows, beside_decode, stream), "attention");
  };
  switch (p.head_dim) {
    case 64: return launch(LaunchRows<64>);
    case 80: return launch(LaunchRows<80>);
    case 96: return launch(LaunchRows<96>);
    default: return launch(LaunchRows<128>);
  }
}

}  // namespace phalanx::kernels::cuda
