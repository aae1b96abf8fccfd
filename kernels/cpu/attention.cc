// Paged attention, prefill and decode in one form.
//
// A unit is (sequence, kv head, up to 48 queries): some rows x the heads of the group, which share every key they read. A unit
// walks chunks of 256 positions: few queries read the chunk's keys and values where they lie, for many they become f32 once; each
// query gets its partial (max, sum, values), and partials are merged in rising order. With few units (decode, long contexts) chunks run
// as tasks of their own and their partials are merged afterwards, in the same order with the same arithmetic: the cutting is free, the
// bits stay.
#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "kernels/cpu/device.h"

namespace phalanx::kernels::cpu {
namespace {

constexpr int kUnitQueries = 48;
constexpr int kDirectQueries = 6;  // so few read the cache directly
constexpr int kFirstRows = 64;     // keys of the next chunk that are fetched during this one

struct Unit {
  int sequence, kv_head, row, rows;  // row: first query row of the step
  int first_chunk, chunks;           // chunks that some query sees
  int64_t partial;                   // first partial of this unit, counted in chunks x queries
};

struct Job {
  const AttentionArgs* args;
  const StepLayout* layout;
  const Level* level;
  int group, head_dim;
  bool paired;  // the order of lanes, as ChunkArgs has it
  int64_t out_stride;
  float* partials;  // [partials, 2 + head_dim]: max, sum, values
};

// A thread's buffers, carved from one piece.
struct Buffers {
  float *q, *k, *v, *scores, *max, *sum, *out;
  const void **k_rows, **v_rows;  // of a chunk
  const void** fetch;             // rows in the order in which they are needed
  int *begin, *end;
  float *state_max, *state_sum, *state;
};

size_t Carve(int head_dim, int queries, char* memory, Buffers* b) {
  size_t used = 0;
  auto take = [&](int64_t floats) {
    char* at = memory + used;
    used += static_cast<size_t>((floats * 4 + 63) / 64 * 64);
    return at;
  };
  auto take_floats = [&](int64_t n) { return reinterpret_cast<float*>(take(n)); };
  b->q = take_floats(queries * head_dim);
  b->k = take_floats(kChunk * head_dim);
  b->v = take_floats(kChunk * head_dim);
  b->scores = take_floats(queries * kChunk);
  b->max = take_floats(queries);
  b->sum = take_floats(queries);
  b->out = take_floats(queries * head_dim);
  b->k_rows = reinterpret_cast<const void**>(take(kChunk * 2));
  b->v_rows = reinterpret_cast<const void**>(take(kChunk * 2));
  b->fetch = reinterpret_cast<const void**>(take((2 * kChunk + kFirstRows) * 2));
  b->begin = reinterpret_cast<int*>(take(queries));
  b->end = reinterpret_cast<int*>(take(queries));
  b->state_max = take_floats(queries);
  b->state_sum = take_floats(queries);
  b->state = take_floats(queries * head_dim);
  return used;
}

// Position of a query row in its sequence.
int64_t OwnPosition(const StepLayout& l, int sequence, int row) {
  return static_cast<int64_t>(l.context_length[sequence]) - (l.query_start[sequence + 1] - row);
}

void LoadQueries(const Job& job, const Unit& u, const Buffers& b) {
  for (int r = 0; r < u.rows; ++r) {
    for (int g = 0; g < job.group; ++g) {
      const Tensor& q = job.args->q;
      const char* head = At(q, (u.row + r) * q.stride[0] + (u.kv_head * job.group + g) * q.stride[1]);
      job.level->load_heads(head, q.dtype, 1, job.head_dim, job.paired, b.q + static_cast<int64_t>(r * job.group + g) * job.head_dim);
    }
  }
}

// The positions [begin, end) of a chunk that a row sees; end <= begin: none.
struct Span {
  int begin, end;
};

Span Seen(const Job& job, const Unit& u, int row, int64_t chunk_begin) {
  const int64_t own = OwnPosition(*job.layout, u.sequence, row);
  const int64_t from = job.args->window > 0 ? std::max<int64_t>(0, own - job.args->window + 1) : 0;
  auto in_chunk = [](int64_t position) { return static_cast<int>(std::clamp<int64_t>(position, 0, kChunk)); };
  return {in_chunk(from - chunk_begin), in_chunk(own + 1 - chunk_begin)};
}

// Calls run(position in the chunk, positions, byte offset in k and v) for each stretch of positions that lie together in the cache.
template <class Fn>
void ForRuns(const Job& job, const Unit& u, int64_t chunk_begin, Span span, Fn run) {
  const KvLayer& kv = job.args->cache;
  const int32_t* table = job.layout->block_table + static_cast<int64_t>(u.sequence) * job.layout->max_blocks;
  const int64_t row_bytes = kv.head_dim * static_cast<int64_t>(DTypeBytes(kv.dtype));
  int64_t block = (chunk_begin + span.begin) / kv.block_size;
  int offset = static_cast<int>((chunk_begin + span.begin) % kv.block_size);
  for (int p = span.begin; p < span.end; ++block, offset = 0) {
    const int count = std::min(kv.block_size - offset, span.end - p);
    run(p, count, ((static_cast<int64_t>(table[block]) * kv.kv_heads + u.kv_head) * kv.block_size + offset) * row_bytes);
    p += count;
  }
}

// Where the keys and values of a chunk lie; `direct`: in the cache, else as f32 in the thread's buffers. Groups of four are made whole
// with the nearest row, because the kernel reads them whole.
void FindRows(const Job& job, const Unit& u, int64_t chunk_begin, Span span, bool direct, const Buffers& b) {
  const KvLayer& kv = job.args->cache;
  const int64_t step = kv.head_dim * (direct ? static_cast<int64_t>(DTypeBytes(kv.dtype)) : 4);
  ForRuns(job, u, chunk_begin, span, [&](int p, int count, int64_t at) {
    const char *k = static_cast<const char*>(kv.k) + at, *v = static_cast<const char*>(kv.v) + at;
    if (!direct) {
      float *k_f32 = b.k + static_cast<int64_t>(p) * kv.head_dim, *v_f32 = b.v + static_cast<int64_t>(p) * kv.head_dim;
      job.level->load_heads(k, kv.dtype, count, kv.head_dim, job.paired, k_f32);
      job.level->load_heads(v, kv.dtype, count, kv.head_dim, job.paired, v_f32);
      k = reinterpret_cast<const char*>(k_f32), v = reinterpret_cast<const char*>(v_f32);
    }
    for (int i = 0; i < count; ++i) b.k_rows[p + i] = k + i * step, b.v_rows[p + i] = v + i * step;
  });
  for (int p = span.begin & ~3; p < span.begin; ++p) b.k_rows[p] = b.k_rows[span.begin], b.v_rows[p] = b.v_rows[span.begin];
  for (int p = span.end; p % 4 != 0; ++p) b.k_rows[p] = b.k_rows[span.end - 1], b.v_rows[p] = b.v_rows[span.end - 1];
}

// A unit's chunk that a thread probably runs after this one; unit == null: nothing is known.
struct Next {
  const Unit* unit;
  int chunk;
};

// Lists what the kernel fetches while it computes: the keys that nobody fetched before, the values, then the first keys of the next chunk.
// Scattered blocks are far slower to read when they are waited for. Returns the end of the list.
const void** ListFetches(const Job& job, Span span, Next next, const Buffers& b) {
  const void** to = b.fetch;
  for (int p = span.begin + kFirstRows; p < span.end; ++p) *to++ = b.k_rows[p];
  to = std::copy(b.v_rows + span.begin, b.v_rows + span.end, to);
  if (next.unit == nullptr) return to;
  const KvLayer& kv = job.args->cache;
  const int64_t chunk_begin = static_cast<int64_t>(next.chunk) * kChunk;
  const int64_t row_bytes = kv.head_dim * static_cast<int64_t>(DTypeBytes(kv.dtype));
  Span first = Seen(job, *next.unit, next.unit->row, chunk_begin);
  first.end = std::min(first.end, first.begin + kFirstRows);
  ForRuns(job, *next.unit, chunk_begin, first, [&](int, int count, int64_t at) {
    for (int i = 0; i < count; ++i) *to++ = static_cast<const char*>(kv.k) + at + i * row_bytes;
  });
  return to;
}

// Partials of all queries of a unit over one chunk, into max, sum and out.
void RunChunk(const Job& job, const Unit& u, int chunk, Next next, const Buffers& b, float* max, float* sum, float* out) {
  const int64_t chunk_begin = static_cast<int64_t>(chunk) * kChunk;
  Span all{kChunk, 0};
  for (int r = 0; r < u.rows; ++r) {
    const Span seen = Seen(job, u, u.row + r, chunk_begin);
    if (seen.end > seen.begin) all = {std::min(all.begin, seen.begin), std::max(all.end, seen.end)};
    std::fill_n(b.begin + r * job.group, job.group, seen.begin);
    std::fill_n(b.end + r * job.group, job.group, seen.end);
  }
  const int queries = u.rows * job.group;
  const bool direct = job.args->cache.dtype == kF32 || queries <= kDirectQueries;
  const void** fetch_end = b.fetch;
  if (all.end > all.begin) {
    FindRows(job, u, chunk_begin, all, direct, b);
    if (direct) fetch_end = ListFetches(job, all, next, b);
  }
  const DType rows = direct ? job.args->cache.dtype : kF32;
  const ChunkArgs c{b.q, queries, job.head_dim, job.args->scale, rows, b.k_rows, b.v_rows, b.fetch, fetch_end, b.begin, b.end, b.scores, max,
                    sum, out};
  job.level->attention_chunk(c);
}

void WriteOut(const Job& job, const Unit& u, int query, float sum, float* values) {
  const int row = u.row + query / job.group, head = u.kv_head * job.group + query % job.group;
  job.level->divide(values, job.head_dim, sum);
  job.level->store_head(values, job.head_dim, job.paired, job.args->out.dtype,
                        At(job.args->out, row * job.out_stride + static_cast<int64_t>(head) * job.head_dim));
}

void ClearState(const Buffers& b, int queries, int head_dim) {
  std::fill(b.state_max, b.state_max + queries, -INFINITY);
  std::fill(b.state_sum, b.state_sum + queries, 0.0f);
  std::fill(b.state, b.state + static_cast<int64_t>(queries) * head_dim, 0.0f);
}

void RunUnit(const Job& job, const Unit& u, const Unit* after, const Buffers& b) {
  const int queries = u.rows * job.group, hd = job.head_dim;
  LoadQueries(job, u, b);
  ClearState(b, queries, hd);
  for (int c = 0; c < u.chunks; ++c) {
    const Next next = c + 1 < u.chunks ? Next{&u, u.first_chunk + c + 1} : Next{after, after == nullptr ? 0 : after->first_chunk};
    RunChunk(job, u, u.first_chunk + c, next, b, b.max, b.sum, b.out);
    for (int q = 0; q < queries; ++q) {
      job.level->attention_merge(hd, b.state_max + q, b.state_sum + q, b.state + static_cast<int64_t>(q) * hd, b.max[q], b.sum[q],
                                 b.out + static_cast<int64_t>(q) * hd);
    }
  }
  for (int q = 0; q < queries; ++q) WriteOut(job, u, q, b.state_sum[q], b.state + static_cast<int64_t>(q) * hd);
}

// One chunk's partials, kept: [max of all queries][sum of all queries][values].
void RunPartial(const Job& job, const Unit& u, int chunk, Next next, const Buffers& b) {
  const int64_t queries = static_cast<int64_t>(u.rows) * job.group, hd = job.head_dim;
  float* at = job.partials + (u.partial + chunk * queries) * (2 + hd);
  LoadQueries(job, u, b);
  RunChunk(job, u, u.first_chunk + chunk, next, b, at, at + queries, at + 2 * queries);
}

void MergePartials(const Job& job, const Unit& u, const Buffers& b) {
  const int64_t queries = static_cast<int64_t>(u.rows) * job.group, hd = job.head_dim;
  ClearState(b, static_cast<int>(queries), job.head_dim);
  for (int c = 0; c < u.chunks; ++c) {
    const float* at = job.partials + (u.partial + c * queries) * (2 + hd);
    for (int64_t q = 0; q < queries; ++q) {
      job.level->attention_merge(job.head_dim, b.state_max + q, b.state_sum + q, b.state + q * hd, at[q], at[queries + q],
                                 at + 2 * queries + q * hd);
    }
  }
  for (int64_t q = 0; q < queries; ++q) WriteOut(job, u, static_cast<int>(q), b.state_sum[q], b.state + q * hd);
}

std::vector<Unit> CutUnits(const Job& job, int64_t* partials) {
  const StepLayout& l = *job.layout;
  const int rows_a_unit = std::max(1, kUnitQueries / job.group);
  std::vector<Unit> units;
  *partials = 0;
  for (int s = 0; s < l.num_sequences; ++s) {
    for (int row = l.query_start[s]; row < l.query_start[s + 1]; row += rows_a_unit) {
      Unit u{s, 0, row, std::min(rows_a_unit, l.query_start[s + 1] - row), 0, 0, 0};
      const int64_t first_own = OwnPosition(l, s, row), last_own = OwnPosition(l, s, row + u.rows - 1);
      const int64_t from = job.args->window > 0 ? std::max<int64_t>(0, first_own - job.args->window + 1) : 0;
      u.first_chunk = static_cast<int>(from / kChunk);
      u.chunks = static_cast<int>(last_own / kChunk) - u.first_chunk + 1;
      for (u.kv_head = 0; u.kv_head < job.args->cache.kv_heads; ++u.kv_head) {
        u.partial = *partials;
        *partials += static_cast<int64_t>(u.chunks) * u.rows * job.group;
        units.push_back(u);
      }
    }
  }
  return units;
}

Code RunUnits(Device* device, Job* job) {
  int64_t partials;
  const std::vector<Unit> units = CutUnits(*job, &partials);
  const int queries = std::max(1, kUnitQueries / job->group) * job->group;
  Buffers sizes;
  if (!device->ReserveThreads(Carve(job->head_dim, queries, nullptr, &sizes))) return device->Fail(kOutOfMemory, "attention: no memory");
  auto buffers = [&](int thread) {
    Buffers b;
    Carve(job->head_dim, queries, device->thread_scratch[thread].Get(0), &b);
    return b;
  };
  const int threads = device->pool.threads();
  std::vector<std::pair<int, int>> tasks;  // unit, chunk; empty: whole units are the tasks
  for (size_t u = 0; units.size() < static_cast<size_t>(4 * threads) && threads > 1 && u < units.size(); ++u) {
    for (int c = 0; c < units[u].chunks; ++c) tasks.emplace_back(static_cast<int>(u), c);
  }
  if (tasks.size() <= units.size()) {  // enough units, or one chunk each: nothing to split
    device->pool.For(static_cast<int>(units.size()), [&](int task, int thread) {
      RunUnit(*job, units[task], task >= threads ? &units[task - threads] : nullptr, buffers(thread));  // tasks begin in falling order
    });
    return kOk;
  }
  job->partials = device->shared.Get<float>(static_cast<size_t>(partials * (2 + job->head_dim)) * 4);
  if (job->partials == nullptr) return device->Fail(kOutOfMemory, "attention: no memory for partial results");
  device->pool.For(static_cast<int>(tasks.size()), [&](int task, int thread) {
    const Unit& u = units[tasks[task].first];
    Next next{nullptr, 0};
    if (task >= threads) {
      const auto& [unit, chunk] = tasks[task - threads];
      next = {&units[unit], units[unit].first_chunk + chunk};
    }
    RunPartial(*job, u, tasks[task].second, next, buffers(thread));
  });
  device->pool.For(static_cast<int>(units.size()), [&](int task, int thread) { MergePartials(*job, units[task], buffers(thread)); });
  return kOk;
}

}  // namespace

Code Attention(Device* device, const AttentionArgs* args, const StepLayout* layout, Stream) {
  const KvLayer& kv = args->cache;
  Job job{args, layout, device->level, 0, kv.head_dim, kv.dtype == kBF16, 0, nullptr};
  if (!IsModelDType(args->q.dtype) || args->out.dtype != args->q.dtype || !IsModelDType(kv.dtype) || args->q.rank != 3 ||
      args->q.shape[2] != kv.head_dim || kv.head_dim < 8 || kv.head_dim % 8 != 0 || kv.head_dim > 256 || kv.kv_heads < 1 ||
      args->q.shape[1] % kv.kv_heads != 0 || kv.block_size < 1 || !RowStride(args->out, &job.out_stride) ||
      Columns(args->out) != args->q.shape[1] * kv.head_dim || Rows(args->out) < layout->num_tokens) {
    return device->Fail(kBadShape, "attention: %lld heads, %d kv heads of %d", static_cast<long long>(args->q.shape[1]), kv.kv_heads,
                        kv.head_dim);
  }
  job.group = static_cast<int>(args->q.shape[1] / kv.kv_heads);
  for (int s = 0; s < layout->num_sequences; ++s) {
    if (layout->context_length[s] < layout->query_start[s + 1] - layout->query_start[s]) {
      return device->Fail(kBadShape, "attention: sequence %d has more rows than context", s);
    }
  }
  try {
    return RunUnits(device, &job);
  } catch (const std::bad_alloc&) {
    return device->Fail(kOutOfMemory, "attention: no memory for the task list");
  }
}

}  // namespace phalanx::kernels::cpu
