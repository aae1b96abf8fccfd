// kernels/cpu/level.h: what one instruction set level provides: the inner loops, as a table of functions.
// Refuses to know: threads, tensors, streams. Pointers and counts come from the drivers (gemm.cc, attention.cc, ...).
// Thread: any; the functions keep no state. Neighbours: level_*.cc fill one each, isa.h picks, device.h holds the choice.
//
// Every function computes an element of its result in one fixed order of operations, whatever the number of rows, their place
// or the cutting of the work. That is what makes a row's bits independent of its batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace phalanx::kernels::cpu {

constexpr int kPanel = 16;    // outputs of one packed weight panel
constexpr int kKAlign = 32;   // k of a packed bf16 panel is padded to this (one AMX tile of k)

// A block of `rows` activations, [rows, k], times `panels` weight panels, into c.
struct TileArgs {
  const void* x;           // as pack_x left it, at k position `k_begin`
  int rows;                // 1..tile_rows
  const char* weight;      // first panel, at k position `k_begin`
  int64_t panel_bytes;     // from one panel to the next
  int panels;
  int64_t k;               // a multiple of 2; of kKAlign but for the last block of k
  float* c;                // [rows, panels * kPanel] f32
  int64_t c_stride;        // floats
  bool first;              // start from zero instead of from c
  const char* next;        // memory to fetch meanwhile, because it is multiplied soon; null: none
  int next_step;           // bytes of it a pair of k
};

// One way to multiply: how activations are laid out and the tile loop over them.
struct GemmKernel {
  int tile_rows;           // rows of a full tile
  int tile_panels;         // panels that a full tile takes at once
  int x_element_bytes;     // of the packed form: 4 (f32) or 2 (bf16)
  // Packs `rows` rows of x (row stride in elements) into `out`: [k / unit][rows][unit]; k is padded with zeros to `padded_k`.
  void (*pack_x)(const void* x, DType dtype, int64_t x_stride, int rows, int64_t k, int64_t padded_k, void* out);
  void (*tile)(const TileArgs& args);
};

// What becomes of one row of f32 sums.
struct FinishArgs {
  float* sums;             // [columns padded to kPanel]; may be overwritten
  int64_t columns;         // valid ones
  const float* bias;       // [columns] or null
  Epilogue epilogue;
  DType dtype;             // of out
  void* out;               // first element of this row's part
};

// Attention of `queries` queries over one chunk of positions of one kv head.
struct ChunkArgs {
  const float* q;          // [queries, head_dim], as load_heads left it
  int queries;
  int head_dim;            // multiple of 8
  float scale;
  DType rows;              // of keys and values: bf16 as in the cache, or f32
  const void* const* k_rows;  // [kChunk] the key of each position; whole groups of four around [begin, end) are readable
  const void* const* v_rows;  // [kChunk]
  const void* const* fetch;      // rows to fetch meanwhile, in the order in which they will be needed
  const void* const* fetch_end;
  const int* begin;        // [queries] first position of the chunk that the query sees
  const int* end;          // [queries] one past the last; end <= begin: sees none
  float* scores;           // [queries, kChunk] scratch
  float* max;              // [queries] out: largest score; -inf if it sees none
  float* sum;              // [queries] out: sum of exp(score - max)
  float* out;              // [queries, head_dim] out: sum of exp(score - max) * v, in the order of load_heads
};
constexpr int kChunk = 256;  // positions; chunks begin at multiples of it, so that a row's sums never depend on the cutting

struct Level {
  CpuIsa isa;
  GemmKernel bf16;         // bf16 weights, bf16 activations
  GemmKernel bf16_f32x;    // bf16 weights, f32 activations
  GemmKernel f32;          // f32 weights
  void (*finish)(const FinishArgs& args);
  void (*rms_norm)(const void* x, DType dtype, const void* gamma, float epsilon, int64_t n, void* out);
  void (*add)(void* to, const void* x, DType dtype, int64_t n);
  void (*silu_mul)(const void* gate, const void* up, DType dtype, int64_t n, void* out);
  void (*rope)(const float* x, const float* cosine, const float* sine, int half, float* out);  // x, out [2 * half]
  void (*to_f32)(const void* x, DType dtype, int64_t n, float* out);
  void (*from_f32)(const float* x, int64_t n, DType dtype, void* out);
  // Heads as f32 in the order of lanes in which attention_chunk takes bf16 rows (paired = true), or in their own; and one back.
  void (*load_heads)(const void* x, DType dtype, int64_t rows, int head_dim, bool paired, float* out);
  void (*store_head)(const float* x, int head_dim, bool paired, DType dtype, void* out);
  void (*attention_chunk)(const ChunkArgs& args);
  // *max * scale of a running state and a chunk's: out = out * exp(max - new) + chunk_out * exp(chunk_max - new).
  void (*attention_merge)(int head_dim, float* max, float* sum, float* out, float chunk_max, float chunk_sum, const float* chunk_out);
  // Rows of logits. `bad`: some value is NaN or +infinity.
  float (*row_max)(const float* x, int64_t n, bool* bad);
  double (*exp_sum)(const float* x, int64_t n, float max);
  void (*exp_shift)(const float* x, int64_t n, float max, float* out);  // out = exp(x - max)
  int64_t (*count_above)(const float* x, int64_t n, float limit);
  int64_t (*collect)(const float* x, int64_t n, float limit, int32_t* ids);  // ids of values >= limit, ascending
  // The random words of a draw: one for each id.
  void (*philox)(uint64_t key, uint32_t position, uint32_t stream, const int32_t* ids, int64_t n, uint32_t* out);
  // Places whose word is at most mass * scale + 1, and perhaps a few more. Returns how many.
  int64_t (*within_reach)(const float* mass, const uint32_t* words, int64_t n, float scale, int32_t* places);
  void (*divide)(float* x, int64_t n, float by);
  double (*read_bytes)(const char* data, int64_t bytes);  // sums 64-byte lines, for the bandwidth probe
  double (*fma_loop)(int64_t rounds, float* sink);        // returns the floating operations done, for the peak probe
};

// Null where this build has no such code (another architecture).
const Level* PortableLevel();
const Level* Avx2Level();
const Level* Avx512Level();
const Level* Avx512Bf16Level();
const Level* AmxLevel();

}  // namespace phalanx::kernels::cpu
