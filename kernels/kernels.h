// kernels/kernels.h: the whole contract between the engine and a back end: a tensor view and one table of operations.
// Refuses to know: models, requests, files, processes. Plain C in shape: no C++ type, exception or ownership crosses it.
// Thread: one thread (the rank's engine thread) calls a device's operations; back ends use their own threads inside.
// Neighbours: kernels/reference, kernels/cpu and kernels/cuda fill the table; worker/model and worker/exec call it.
//
// Rules: new entries go at the end; a changed meaning is a new kTableVersion. A missing operation is a null pointer and is
// found at load (`RequireOperations`), never in mid-step. Every operation returns a Code and never aborts. Operations on one
// stream run in order; on the CPU they have finished when the call returns. `stream` is the last argument.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace phalanx::kernels {

constexpr uint32_t kTableVersion = 2;
constexpr int kMaxRank = 4;

enum Code : int32_t {
  kOk = 0,
  kBadShape = 1,      // shapes, strides or dtypes that the operation does not take
  kOutOfMemory = 2,   // the device has no room
  kUnsupported = 3,   // this device can never do it
  kDeviceError = 4,   // sticky: the rank must end
  kNotReady = 5,      // an event that has not happened yet
};

enum DType : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2, kI32 = 3, kI64 = 4, kU8 = 5, kU32 = 6 };

inline size_t DTypeBytes(DType t) {
  switch (t) {
    case kF32: case kI32: case kU32: return 4;
    case kBF16: case kF16: return 2;
    case kI64: return 8;
    case kU8: return 1;
  }
  return 0;
}

// A view of memory that somebody else owns. Strides count elements; the last dimension of every operand has stride 1.
struct Tensor {
  void* data;
  DType dtype;
  int32_t rank;
  int64_t shape[kMaxRank];
  int64_t stride[kMaxRank];
};

// A dense row-major view of `rank` dimensions.
inline Tensor Dense(void* data, DType dtype, int32_t rank, int64_t d0, int64_t d1 = 1, int64_t d2 = 1, int64_t d3 = 1) {
  Tensor t{data, dtype, rank, {d0, d1, d2, d3}, {1, 1, 1, 1}};
  for (int i = rank - 2; i >= 0; --i) t.stride[i] = t.stride[i + 1] * t.shape[i + 1];
  return t;
}

// A linear layer's weight [n, k] in the back end's own layout, made by `pack_weight`. The caller owns `data`.
struct Weight {
  const void* data;
  int64_t n;        // outputs
  int64_t k;        // inputs
  DType dtype;      // kBF16 or kF32: the value type that was packed
  int32_t layout;   // back end's own number; 0 = plain row-major
  uint64_t bytes;   // size of `data`
};

typedef struct StreamHandle* Stream;   // null = the device's default stream
typedef struct EventHandle* Event;
typedef struct GraphHandle* Graph;

struct DeviceOptions {
  int32_t device_index;   // GPU number; ignored on the CPU
  int32_t num_threads;    // CPU: threads of the pool, 0 = all cores this process may run on
  int32_t isa_cap;        // CPU: highest instruction set level to use (see CpuIsa), 0 = no cap
};

// CPU code paths, in rising order. DeviceOptions.isa_cap and DeviceInfo.isa carry them.
enum CpuIsa : int32_t { kIsaAuto = 0, kIsaPortable = 1, kIsaAvx2 = 2, kIsaAvx512 = 3, kIsaAvx512Bf16 = 4, kIsaAmxBf16 = 5 };

struct DeviceInfo {
  char name[128];         // for people: "AMD EPYC, AVX2+FMA, 2 threads"
  uint64_t memory_total;  // bytes
  uint64_t memory_free;   // bytes, now
  int32_t num_threads;
  int32_t isa;
};

struct Device;  // the back end's own state, one per rank

// ---- sampling -------------------------------------------------------------------------------------------------------

constexpr int kMaxTopLogprobs = 64;  // top_logprobs per sampled token; flags may cap lower

// One row's sampling options, plain bytes, same layout on host and device.
struct SamplingRow {
  float temperature;         // < 1e-5 = greedy
  float top_p;               // 1 = off
  float min_p;               // 0 = off
  float repetition_penalty;  // 1 = off
  float frequency_penalty;   // 0 = off
  float presence_penalty;    // 0 = off
  int32_t top_k;             // <= 0 = off
  int32_t num_logprobs;      // -1 = none; 0 = the chosen token's only; N = chosen + top N
  uint64_t seed;             // Philox key
  int32_t position;          // absolute position of the token being drawn (known tokens so far)
  int32_t state;             // row of the penalty state tables, -1 = none needed
  uint32_t stream;           // separates the choices of one request (Philox counter word)
  int32_t mask;              // row of `masks`, -1 = none
  int32_t bias_begin;        // this row's part of bias_ids / bias_values: [bias_begin, bias_end)
  int32_t bias_end;
};

// Draws one token a row. Order per row, in fp32 (vLLM's): keep raw logits for logprobs; mask (allowed ids, bad words, min_tokens,
// grammar) and logit bias; repetition penalty over prompt and output (x > 0 ? x / r : x * r); minus frequency x count, minus
// presence x (count > 0), outputs only; greedy if temperature < 1e-5 (ties to the lowest id); divide by temperature; min-p; top-k
// (keeps ties with the k-th); top-p on what is left (a token stays if the mass of strictly larger ones is below p); draw by
// Gumbel-max with g = -log(-log1p(-u)), u in (0, 1) from Philox4x32-10(key = seed, counter = (position, token id, stream, 0)).
// So a draw depends on nothing else in the batch. Ids >= vocab (padding) are never chosen.
struct SampleArgs {
  Tensor logits;                 // [rows, width] f32, raw; left unchanged
  int32_t vocab;                 // ids that may be chosen: [0, vocab), vocab <= width
  const SamplingRow* options;    // [rows], device memory
  const uint32_t* masks;         // [mask rows, ceil(width / 32)] bit = 1 may be chosen; null = none
  const int32_t* bias_ids;       // flat list of all rows
  const float* bias_values;      // same length; -inf allowed (a banned token)
  uint32_t* prompt_seen;         // [state rows, ceil(width / 32)] bitmask of prompt ids; null if no row has a state
  int32_t* output_counts;        // [state rows, width]; the chosen token's count is increased by this call
  int32_t* out_ids;              // [rows]; -1 = the row had NaN, or nothing could be chosen
  float* out_logprobs;           // [rows] log-softmax of the raw logits at the chosen id; written when num_logprobs >= 0
  int32_t* out_top_ids;          // [rows, kMaxTopLogprobs], best first, num_logprobs of them; null = not wanted by any row
  float* out_top_logprobs;       // [rows, kMaxTopLogprobs]
  int32_t* out_ranks;            // [rows] 1-based rank of the chosen id among raw logits, when num_logprobs >= 0; null = not wanted
};

// Log-softmax of given ids (prompt logprobs, echo): like SampleArgs without a choice.
struct LogprobArgs {
  Tensor logits;                 // [rows, width] f32
  int32_t vocab;
  const int32_t* ids;            // [rows] the ids that are there
  const int32_t* num_logprobs;   // [rows] top entries wanted, 0..kMaxTopLogprobs
  float* out_logprobs;           // [rows]
  int32_t* out_ranks;            // [rows]
  int32_t* out_top_ids;          // [rows, kMaxTopLogprobs]
  float* out_top_logprobs;       // [rows, kMaxTopLogprobs]
};

// ---- attention ------------------------------------------------------------------------------------------------------

// One layer's paged KV cache. K and V are separate arrays [blocks, kv_heads, block_size, head_dim] (HND), bf16 or f32.
struct KvLayer {
  void* k;
  void* v;
  DType dtype;
  int32_t num_blocks;
  int32_t kv_heads;
  int32_t block_size;
  int32_t head_dim;
};

// What the rows of one step are: sequences' query rows lie one after another.
struct StepLayout {
  int32_t num_tokens;             // query rows in all
  int32_t num_sequences;
  const int32_t* query_start;     // [num_sequences + 1] first row of each sequence
  const int32_t* context_length;  // [num_sequences] tokens in the cache after this step's append (past + this step's rows)
  const int32_t* block_table;     // [num_sequences, max_blocks] block ids
  int32_t max_blocks;             // row stride of block_table
  const int32_t* positions;       // [num_tokens] absolute position of each row
  const int32_t* slots;           // [num_tokens] block * block_size + offset: where the row's K and V go; -1 = nowhere (padding)
  int32_t max_query_length;       // host values that choose a kernel: rows of the longest sequence in this step
  int32_t max_context_length;
};

// Splits the fused qkv rows, adds nothing (bias is in the linear), applies the per-head norm where given, rotates q and k (half-split,
// NEOX: pairs (i, i + rotary_dim/2)), writes q to `q` and k, v to the cache slots.
struct RopeAppendArgs {
  Tensor qkv;                 // [tokens, (heads + 2 * kv_heads) * head_dim] model dtype: q heads, then k, then v
  Tensor q;                   // [tokens, heads, head_dim] out, model dtype
  int32_t heads;
  const void* q_norm;         // [head_dim] model dtype or null (Qwen3)
  const void* k_norm;         // [head_dim] model dtype or null
  float norm_epsilon;
  const float* cos_sin;       // [max positions, rotary_dim]: cos of rotary_dim/2 angles, then sin; f32 (already rounded as the model wants)
  int32_t rotary_dim;         // <= head_dim
  KvLayer cache;
};

struct AttentionArgs {
  Tensor q;          // [tokens, heads, head_dim] model dtype
  Tensor out;        // [tokens, heads * head_dim] model dtype
  KvLayer cache;     // already holds this step's rows
  float scale;       // usually head_dim^-0.5
  int32_t window;    // sliding window in tokens (a row sees positions > own - window); 0 = unlimited
};

enum Epilogue : int32_t {
  kEpilogueNone = 0,
  kEpilogueSiluMul = 1,   // weight rows are gate and up interleaved (row 2i = gate i, row 2i+1 = up i); out is [m, n / 2] = silu(gate) * up
  kEpilogueAdd = 2,       // out += product (the residual add)
};

struct LinearArgs {
  Tensor x;             // [m, k] model dtype
  Weight weight;        // [n, k]
  const void* bias;     // [n] f32 or null
  Tensor out;           // [m, n] model dtype or f32 (logits); [m, n / 2] with kEpilogueSiluMul
  Epilogue epilogue;
  // The norm before the layer: with `norm_gamma` the product is of rms_norm(x) * norm_gamma, rounded as rms_norm rounds, instead of x.
  const void* norm_gamma;  // [k] dtype of x; null = no norm
  float norm_epsilon;
  void* norm_scratch;      // [m, k] dtype of x, dense: a back end that does not fuse puts the normalised rows here; needed with norm_gamma
};

// ---- the table ------------------------------------------------------------------------------------------------------

struct Table {
  // head
  uint32_t version;         // kTableVersion
  uint32_t size;            // sizeof(Table) as the back end was built
  const char* name;         // "cpu", "cuda", "reference"
  uint64_t features;        // reserved, 0

  // device. `*device` is owned by the caller until destroy. On error a one-line reason is written to `error` (error_size bytes).
  Code (*create)(const DeviceOptions* options, Device** device, char* error, size_t error_size);
  void (*destroy)(Device* device);
  Code (*info)(Device* device, DeviceInfo* out);
  // The reason of the last failed call on this device, for logs; never null.
  const char* (*last_error)(Device* device);

  // memory. 64-byte aligned at least. `host_alloc` is memory that copies run fast from (pinned on a GPU).
  Code (*alloc)(Device* device, size_t bytes, void** out);
  void (*free)(Device* device, void* memory);
  Code (*host_alloc)(Device* device, size_t bytes, void** out);
  void (*host_free)(Device* device, void* memory);
  Code (*copy_to_device)(Device* device, void* to, const void* from_host, size_t bytes, Stream stream);
  Code (*copy_to_host)(Device* device, void* to_host, const void* from, size_t bytes, Stream stream);
  Code (*fill_zero)(Device* device, void* memory, size_t bytes, Stream stream);

  // streams, events. On the CPU a stream is null and events are always complete.
  Code (*stream_create)(Device* device, Stream* out);
  void (*stream_destroy)(Device* device, Stream stream);
  Code (*stream_synchronize)(Device* device, Stream stream);
  Code (*event_create)(Device* device, Event* out);
  void (*event_destroy)(Device* device, Event event);
  Code (*event_record)(Device* device, Event event, Stream stream);
  Code (*event_wait)(Device* device, Event event);    // host waits
  Code (*event_query)(Device* device, Event event);   // kOk or kNotReady

  // graphs; null when the back end has none (CPU).
  Code (*graph_begin)(Device* device, Stream stream);
  Code (*graph_end)(Device* device, Stream stream, Graph* out);
  Code (*graph_launch)(Device* device, Graph graph, Stream stream);
  void (*graph_destroy)(Device* device, Graph graph);

  // weights. `packed_bytes` gives the size of the packed form; `pack_weight` reads row-major host memory `rows` [n, k] (dtype of
  // `weight->dtype`, row stride k) and writes `to` (device memory of that size); fills weight->{data, layout, bytes} at once. `rows` must
  // stay until `stream` got there; from `host_alloc` memory the copy runs beside the caller.
  uint64_t (*packed_bytes)(Device* device, int64_t n, int64_t k, DType dtype);
  Code (*pack_weight)(Device* device, Weight* weight, const void* rows, void* to, Stream stream);

  // operations. Model dtype is kBF16 or kF32, the same for all operands of one call unless said.
  // out[i, :] = row ids[i] of the (packed) weight, as model dtype. ids in device memory; an id outside [0, n) gives zeros.
  Code (*embedding)(Device* device, const Weight* weight, const int32_t* ids, Tensor out, Stream stream);
  // out = rms_norm(x) * gamma; rows = product of the leading dimensions. The normalised value is rounded to the model dtype before gamma.
  Code (*rms_norm)(Device* device, Tensor x, const void* gamma, float epsilon, Tensor out, Stream stream);
  // residual += x, then out = rms_norm(residual) * gamma. out may alias x.
  Code (*add_rms_norm)(Device* device, Tensor residual, Tensor x, const void* gamma, float epsilon, Tensor out, Stream stream);
  Code (*linear)(Device* device, const LinearArgs* args, Stream stream);
  Code (*rope_append)(Device* device, const RopeAppendArgs* args, const StepLayout* layout, Stream stream);
  Code (*attention)(Device* device, const AttentionArgs* args, const StepLayout* layout, Stream stream);
  // out[i, :] = silu(gate_up[i, :n]) * gate_up[i, n:] for parts that are not interleaved.
  Code (*silu_mul)(Device* device, Tensor gate_up, Tensor out, Stream stream);
  // out[i, :] = x[rows[i], :]; rows in device memory.
  Code (*gather_rows)(Device* device, Tensor x, const int32_t* rows, Tensor out, Stream stream);
  // Penalty state: clears row `state` and counts ids into it (prompt ids into prompt_seen, output ids into output_counts). ids in host memory.
  Code (*sampling_state_set)(Device* device, int32_t width, uint32_t* prompt_seen, int32_t* output_counts, int32_t state,
                             const int32_t* prompt_ids, int32_t num_prompt, const int32_t* output_ids, int32_t num_output,
                             Stream stream);
  Code (*sample)(Device* device, const SampleArgs* args, Stream stream);
  Code (*logprobs)(Device* device, const LogprobArgs* args, Stream stream);

  // collectives; null until a back end has them. `buffer` is summed over the group in place.
  Code (*group_create)(Device* device, const void* unique_id, int32_t rank, int32_t size);
  Code (*all_reduce)(Device* device, Tensor buffer, Stream stream);
  Code (*all_gather)(Device* device, Tensor shard, Tensor out, Stream stream);

  // Since version 2.
  // rope_append and attention in one, for a step of which every sequence has one row: `attention.q` equals `rope.q`, which is scratch here.
  // Null: call the two.
  Code (*rope_attention)(Device* device, const RopeAppendArgs* rope, const AttentionArgs* attention, const StepLayout* layout,
                         Stream stream);
  // ids[i] = taken[from[i]] where from[i] >= 0; the other ids stay. All in device memory, [count]. Tokens that were drawn on the device
  // become the next step's inputs without passing the host.
  Code (*take_ids)(Device* device, int32_t* ids, const int32_t* from, const int32_t* taken, int32_t count, Stream stream);
  // Milliseconds between two recorded events of one stream that have happened. Null: not measured (CPU).
  Code (*event_elapsed)(Device* device, Event begin, Event end, float* ms);
  // Named ranges for a profiler, nested, on the calling thread; null when there is none. `name` is copied.
  void (*range_push)(const char* name);
  void (*range_pop)();
};

// The built-in tables (kernels/cpu and kernels/reference define them; link the one you want).
const Table* CpuTable();
const Table* ReferenceTable();

}  // namespace phalanx::kernels
