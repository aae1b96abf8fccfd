// kernels/cuda/device/prefill_work.cuh: which query rows a prefill CTA works on, found from the step's row starts.
// Refuses to know: how attention is computed. Thread: device code, all lanes of a warp together.
// Neighbours: attention_prefill.cu, attention_prefill_wgmma.cu; PrefillTileCount (attention_config.h) bounds the grid.
//
// Query rows and the heads of a group are packed: packed query i is row i / group, head i % group. Tiles of kRows of them are numbered
// sequence after sequence, the last rows of each first, because they see most; sequences of one row have none (decode).
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device/warp.cuh"

namespace phalanx::kernels::cuda {

struct PrefillWork {
  int sequence, kv_head;
  int first_row, rows;  // of q and out; rows of the sequence
  int length;           // positions of the sequence
  int first_packed;
  int first_own, last_own;  // positions of the tile's first and last row
  int begin, end;           // positions that any of its rows sees

  // The position of packed query `packed`, of the last row past the end.
  __device__ __forceinline__ int OwnOf(int packed, int group) const { return length - rows + min(packed / group, rows - 1); }
};

// The work of tile `tile`; false past the last one.
template <int kRows>
__device__ __forceinline__ bool FindPrefillWork(const AttentionParams& p, int tile, int kv_head, PrefillWork* w) {
  const int lane = threadIdx.x % kWarp;
  for (int first = 0, before = 0; first < p.sequences; first += kWarp) {
    const int s = first + lane;
    const int start = s < p.sequences ? p.query_start[s] : 0, rows = s < p.sequences ? p.query_start[s + 1] - start : 0;
    const int length = s < p.sequences ? p.context_length[s] : 0;
    const int tiles = rows > 1 ? static_cast<int>((int64_t{rows} * p.group + kRows - 1) / kRows) : 0;
    int past = before + tiles;  // tiles up to this sequence
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, past - before, step);
      if (lane >= step) past += other;
    }
    const unsigned behind = __ballot_sync(0xffffffffu, past > tile);
    if (behind == 0) {
      before = __shfl_sync(0xffffffffu, past, kWarp - 1);
      continue;
    }
    const int owner = __ffs(static_cast<int>(behind)) - 1;
    w->sequence = first + owner, w->kv_head = kv_head;
    w->first_row = __shfl_sync(0xffffffffu, start, owner);
    w->rows = __shfl_sync(0xffffffffu, rows, owner);
    w->first_packed = (__shfl_sync(0xffffffffu, past, owner) - 1 - tile) * kRows;
    w->length = __shfl_sync(0xffffffffu, length, owner);
    w->first_own = w->OwnOf(w->first_packed, p.group), w->last_own = w->OwnOf(w->first_packed + kRows - 1, p.group);
    w->begin = p.window > 0 ? max(0, w->first_own - p.window + 1) : 0, w->end = w->last_own + 1;
    return true;
  }
  return false;
}

// The lane's two queries of a warp's sixteen: rows l / 4 and l / 4 + 8 of a tensor core's fragment.
struct LaneRows {
  bool there[2];
  int row[2], head[2];  // of q and out
  int own[2];           // position; of the last row where there is no query
};

__device__ __forceinline__ LaneRows RowsOf(const AttentionParams& p, const PrefillWork& w, int first_packed) {
  LaneRows l;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int packed = first_packed + static_cast<int>(threadIdx.x) % kWarp / 4 + i * 8, row = packed / p.group;
    l.there[i] = row < w.rows;
    l.row[i] = w.first_row + row;
    l.head[i] = w.kv_head * p.group + packed - row * p.group;
    l.own[i] = w.OwnOf(packed, p.group);
  }
  return l;
}

}  // namespace phalanx::kernels::cuda
