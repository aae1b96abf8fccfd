// Conformance: every operation of a table equals the twin over a grid of awkward shapes; on the CPU at every level the machine
// has, and with bits that depend on neither batch nor threads. Sampling is in ops_sampling_test.cc.
#include <algorithm>
#include <numeric>

#include "kernels/ops_bed.h"

namespace phalanx::kernels::testing {
namespace {

struct LinearCase {
  int64_t m, n, k;
  DType x, w, out;
  Epilogue epilogue = kEpilogueNone;
  bool bias = false;
  bool norm = false;  // x is normalised first; gamma is its first k values
};

Values RunLinear(Bed* bed, const LinearCase& c, const Values& x, const Values& w, const Values& bias, const Values& before) {
  const int64_t outputs = c.epilogue == kEpilogueSiluMul ? c.n / 2 : c.n;
  void* out = bed->Put(before);
  LinearArgs a{Dense(bed->Put(x), c.x, 2, c.m, c.k), bed->Pack(w, c.n, c.k), c.bias ? bed->Put(bias) : nullptr,
               Dense(out, c.out, 2, c.m, outputs), c.epilogue, nullptr, 1e-5f, nullptr};
  if (c.norm) {
    a.norm_gamma = bed->Put(x.bytes.data(), static_cast<size_t>(c.k) * DTypeBytes(c.x));
    a.norm_scratch = bed->Put(Filled(c.x, c.m * c.k, NAN));
  }
  EXPECT_EQ((*bed)->linear(bed->device(), &a, nullptr), kOk) << bed->error();
  return bed->Get(out, c.out, c.m * outputs);
}

TEST(Ops, Linear) {
  std::vector<LinearCase> cases;
  for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 31, 33, 50}) cases.push_back({m, 70, 70, kBF16, kBF16, kBF16});
  for (int64_t m : {1, 3, 19}) {
    for (int64_t n : {1, 15, 16, 17, 65, 200}) {
      for (int64_t k : {1, 2, 31, 33, 64, 100}) {
        cases.push_back({m, n, k, kBF16, kBF16, kF32});
        cases.push_back({m, n, k, kF32, kBF16, kF32});
        cases.push_back({m, n, k, kF32, kF32, kF32, kEpilogueNone, true});
      }
    }
    for (Epilogue e : {kEpilogueNone, kEpilogueAdd, kEpilogueSiluMul}) {
      cases.push_back({m, 98, 160, kBF16, kBF16, kBF16, e, true});
      cases.push_back({m, 98, 160, kF32, kF32, kF32, e, false});
    }
  }
  for (int64_t m : {1, 2, 8, 9, 16, 17, 40}) {
    cases.push_back({m, 98, 1544, kBF16, kBF16, kBF16, kEpilogueSiluMul, true, true});
    cases.push_back({m, 70, 100, kBF16, kBF16, kF32, kEpilogueNone, true, true});
    cases.push_back({m, 66, 100, kF32, kF32, kF32, kEpilogueSiluMul, false, true});
  }
  // Many rows of every kernel that a back end has for them: tails of rows, outputs and k, each epilogue, f32 out.
  for (int64_t m : {17, 24, 40, 65, 100, 129, 193, 257, 300}) {
    cases.push_back({m, 200, 136, kBF16, kBF16, kBF16, kEpilogueSiluMul, m % 2 == 0});
    cases.push_back({m, 137, 72, kBF16, kBF16, kBF16, kEpilogueAdd, m % 2 == 1});
    cases.push_back({m, 131, 64, kBF16, kBF16, kF32});
  }
  cases.push_back({18, 1537, 1088, kBF16, kBF16, kBF16, kEpilogueNone, true});
  cases.push_back({70, 400, 1992, kBF16, kBF16, kBF16, kEpilogueAdd, true, true});
  cases.push_back({256, 1026, 776, kBF16, kBF16, kBF16, kEpilogueSiluMul, true, true});
  cases.push_back({3, 2048, 1536, kBF16, kBF16, kBF16, kEpilogueNone, true, true});
  cases.push_back({150, 576, 1536, kBF16, kBF16, kBF16, kEpilogueAdd});
  cases.push_back({1, 1536, 576, kBF16, kBF16, kBF16});
  cases.push_back({0, 16, 16, kBF16, kBF16, kBF16});
  Bed twin(ReferenceTable(), {});
  std::mt19937 rng(1);
  for (const LinearCase& c : cases) {
    const Values x = Random(&rng, c.x, c.m * c.k), w = Random(&rng, c.w, c.n * c.k, 1.0f / std::sqrt(static_cast<float>(c.k)));
    const Values bias = Random(&rng, kF32, c.n), before = Random(&rng, c.out, c.m * (c.epilogue == kEpilogueSiluMul ? c.n / 2 : c.n));
    const Values want = RunLinear(&twin, c, x, w, bias, before);
    for (const Subject& s : Subjects()) {
      Bed bed(s.table, s.options);
      ExpectClose(RunLinear(&bed, c, x, w, bias, before), want, c.out == kBF16 ? 0.01f : 2e-5f, Relative(c.out),
                  s.name + " m " + std::to_string(c.m) + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) + " epilogue " +
                      std::to_string(c.epilogue) + (c.norm ? " norm" : ""));
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST(Ops, LinearSpreadsNanAndInfinityOnlyAlongTheirRow) {
  std::mt19937 rng(2);
  const LinearCase c{7, 40, 66, kBF16, kBF16, kF32};
  Values x = Random(&rng, kBF16, c.m * c.k), w = Random(&rng, kBF16, c.n * c.k);
  reinterpret_cast<uint16_t*>(x.bytes.data())[2 * c.k + 65] = 0x7fc0;  // NaN
  reinterpret_cast<uint16_t*>(x.bytes.data())[4 * c.k] = 0x7f80;       // infinity
  for (const Subject& s : Subjects()) {
    Bed bed(s.table, s.options);
    const Values got = RunLinear(&bed, c, x, w, Values{}, Filled(kF32, c.m * c.n, 0));
    for (int64_t i = 0; i < c.m * c.n; ++i) {
      EXPECT_EQ(std::isfinite(got.at(i)), i / c.n != 2 && i / c.n != 4) << s.name << " element " << i;
      EXPECT_EQ(std::isnan(got.at(i)), i / c.n == 2) << s.name << " element " << i;
    }
  }
}

TEST(Ops, LinearBitsDoNotDependOnTheBatchOrTheThreads) {
  std::mt19937 rng(3);
  for (DType dtype : {kBF16, kF32}) {
    const int64_t most = 140, n = 330, k = 1500;
    const Values x = Random(&rng, dtype, most * k), w = Random(&rng, dtype, n * k);
    for (const Subject& s : Subjects()) {
      if (!s.same_bits) continue;
      Values first;
      for (int threads : {1, 2, 5}) {
        DeviceOptions options = s.options;
        options.num_threads = threads;
        Bed bed(s.table, options);
        Values all = RunLinear(&bed, {most, n, k, dtype, dtype, kF32}, x, w, Values{}, Filled(kF32, most * n, 0));
        if (threads == 1) first = all;
        EXPECT_EQ(all.bytes, first.bytes) << s.name << " threads " << threads;
        for (int64_t m : {1, 2, 5, 13, 97}) {
          const int64_t row = most - m;
          Values part = x;
          const size_t row_bytes = static_cast<size_t>(k) * DTypeBytes(dtype);
          part.bytes.assign(x.bytes.begin() + static_cast<int64_t>(row_bytes) * row, x.bytes.end());
          Values got = RunLinear(&bed, {m, n, k, dtype, dtype, kF32}, part, w, Values{}, Filled(kF32, m * n, 0));
          EXPECT_EQ(0, std::memcmp(got.bytes.data(), first.bytes.data() + row * n * 4, got.bytes.size())) << s.name << " m " << m;
        }
      }
    }
  }
}

TEST(Ops, RefusesWrongShapes) {
  std::mt19937 rng(4);
  const Values x = Random(&rng, kBF16, 64), w = Random(&rng, kBF16, 64);
  for (const Subject& s : Subjects()) {
    Bed bed(s.table, s.options);
    LinearArgs a{Dense(bed.Put(x), kBF16, 2, 2, 32), bed.Pack(w, 4, 16), nullptr, Dense(bed.Put(x), kBF16, 2, 2, 4), kEpilogueNone, nullptr, 0, nullptr};
    EXPECT_EQ(bed->linear(bed.device(), &a, nullptr), kBadShape);
    EXPECT_NE(std::string(bed.error()), "");
    EXPECT_EQ(bed->silu_mul(bed.device(), Dense(bed.Put(x), kBF16, 2, 2, 32), Dense(bed.Put(x), kBF16, 2, 2, 15), nullptr), kBadShape);
    void* memory = nullptr;
    EXPECT_EQ(bed->alloc(bed.device(), SIZE_MAX / 2, &memory), kOutOfMemory);
  }
}

TEST(Ops, EmbeddingAndGather) {
  std::mt19937 rng(5);
  for (DType dtype : {kBF16, kF32}) {
    const int64_t n = 37, k = 70;
    const Values w = Random(&rng, dtype, n * k);
    const std::vector<int32_t> ids = {0, 36, -1, 5, 37, 17, 16}, rows = {6, 0, 0, 3};
    auto run = [&](Bed* bed) {
      Weight weight = bed->Pack(w, n, k);
      void* out = bed->Put(Filled(dtype, 7 * k, 9));
      void* gathered = bed->Put(Filled(dtype, 4 * k, 9));
      EXPECT_EQ((*bed)->embedding(bed->device(), &weight, bed->PutAll(ids), Dense(out, dtype, 2, 7, k), nullptr), kOk);
      EXPECT_EQ((*bed)->gather_rows(bed->device(), Dense(out, dtype, 2, 7, k), bed->PutAll(rows), Dense(gathered, dtype, 2, 4, k), nullptr), kOk);
      Values all = bed->Get(out, dtype, 7 * k), some = bed->Get(gathered, dtype, 4 * k);
      all.bytes.insert(all.bytes.end(), some.bytes.begin(), some.bytes.end());
      return all;
    };
    Bed twin(ReferenceTable(), {});
    const Values want = run(&twin);
    for (const Subject& s : Subjects()) {
      Bed bed(s.table, s.options);
      EXPECT_EQ(run(&bed).bytes, want.bytes) << s.name;
    }
  }
}

TEST(Ops, TakeIds) {
  for (const Subject& s : Subjects()) {
    Bed bed(s.table, s.options);
    const std::vector<int32_t> from = {-1, 2, 0, -1, 2};
    int32_t* ids = bed.PutAll<int32_t>({10, 11, 12, 13, 14});
    EXPECT_EQ(bed->take_ids(bed.device(), ids, bed.PutAll(from), bed.PutAll<int32_t>({7, 8, 9}), 5, nullptr), kOk);
    EXPECT_EQ(bed.GetAll(ids, 5), (std::vector<int32_t>{10, 9, 7, 13, 9})) << s.name;
    EXPECT_EQ(bed->take_ids(bed.device(), ids, ids, ids, 0, nullptr), kOk);
  }
}

TEST(Ops, NormsAndSilu) {
  std::mt19937 rng(6);
  for (DType dtype : {kBF16, kF32}) {
    for (int64_t columns : {1, 3, 8, 13, 64, 576, 1537}) {
      for (int64_t rows : {1, 5, 200}) {
        const Values x = Random(&rng, dtype, rows * columns * 2), gamma = Random(&rng, dtype, columns), residual = Random(&rng, dtype, rows * columns);
        auto run = [&](Bed* bed, int which) {
          void* out = bed->Put(Filled(dtype, rows * columns, 0));
          Tensor o = Dense(out, dtype, 2, rows, columns);
          Tensor strided = Dense(bed->Put(x), dtype, 2, rows, columns);
          strided.stride[0] = 2 * columns;
          Code code = kOk;
          if (which == 0) code = (*bed)->rms_norm(bed->device(), strided, bed->Put(gamma), 1e-5f, o, nullptr);
          if (which == 1) {
            void* sum = bed->Put(residual);
            code = (*bed)->add_rms_norm(bed->device(), Dense(sum, dtype, 2, rows, columns), strided, bed->Put(gamma), 1e-5f, o, nullptr);
            Values both = bed->Get(out, dtype, rows * columns), sums = bed->Get(sum, dtype, rows * columns);
            both.bytes.insert(both.bytes.end(), sums.bytes.begin(), sums.bytes.end());
            EXPECT_EQ(code, kOk);
            return both;
          }
          if (which == 2) code = (*bed)->silu_mul(bed->device(), Dense(bed->Put(x), dtype, 2, rows, 2 * columns), o, nullptr);
          EXPECT_EQ(code, kOk);
          return bed->Get(out, dtype, rows * columns);
        };
        for (int which : {0, 1, 2}) {
          Bed twin(ReferenceTable(), {});
          const Values want = run(&twin, which);
          for (const Subject& s : Subjects()) {
            Bed bed(s.table, s.options);
            // A normalised value at the edge of two bf16 steps may round either way before gamma, and the product again: two steps.
            ExpectClose(run(&bed, which), want, 1e-6f, dtype == kBF16 ? 0.0157f : 2e-5f, s.name + " which " + std::to_string(which));
          }
        }
      }
    }
  }
}

// A step: sequences with some past, their pages shuffled over the blocks.
struct Step {
  std::vector<int32_t> query_start, context, table, positions, slots;
  int32_t max_blocks = 0, blocks = 0;

  Step(std::mt19937* rng, const std::vector<std::pair<int, int>>& past_and_rows, int block_size) {
    query_start = {0};
    int needed = 0;
    for (auto [past, rows] : past_and_rows) {
      query_start.push_back(query_start.back() + rows);
      context.push_back(past + rows);
      max_blocks = std::max(max_blocks, (past + rows + block_size - 1) / block_size);
      needed += (past + rows + block_size - 1) / block_size;
    }
    blocks = needed + 2;
    std::vector<int32_t> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), *rng);
    table.assign(past_and_rows.size() * static_cast<size_t>(max_blocks), -1);
    int next = 0;
    for (size_t s = 0; s < past_and_rows.size(); ++s) {
      for (int b = 0; b * block_size < context[s]; ++b) table[s * static_cast<size_t>(max_blocks) + static_cast<size_t>(b)] = order[static_cast<size_t>(next++)];
      for (int p = past_and_rows[s].first; p < context[s]; ++p) {
        positions.push_back(p);
        slots.push_back(table[s * static_cast<size_t>(max_blocks) + static_cast<size_t>(p / block_size)] * block_size + p % block_size);
      }
    }
  }
  StepLayout On(Bed* bed) const {
    StepLayout l{};
    l.num_tokens = query_start.back();
    l.num_sequences = static_cast<int32_t>(context.size());
    l.query_start = bed->PutAll(query_start);
    l.context_length = bed->PutAll(context);
    l.block_table = bed->PutAll(table);
    l.max_blocks = max_blocks;
    l.positions = bed->PutAll(positions);
    l.slots = bed->PutAll(slots);
    for (size_t s = 0; s < context.size(); ++s) l.max_query_length = std::max(l.max_query_length, query_start[s + 1] - query_start[s]);
    l.max_context_length = *std::max_element(context.begin(), context.end());
    return l;
  }
};

struct HeadCase {
  int heads, kv_heads, head_dim, block_size;
  DType dtype, cache;
  int window = 0;
};

Values RunAttention(Bed* bed, const HeadCase& c, const Step& step, const Values& q, const Values& k, const Values& v) {
  const int64_t tokens = step.query_start.back();
  void* out = bed->Put(Filled(c.dtype, tokens * c.heads * c.head_dim, 0));
  AttentionArgs a{Dense(bed->Put(q), c.dtype, 3, tokens, c.heads, c.head_dim), Dense(out, c.dtype, 2, tokens, c.heads * c.head_dim),
                  KvLayer{bed->Put(k), bed->Put(v), c.cache, step.blocks, c.kv_heads, c.block_size, c.head_dim},
                  1.0f / std::sqrt(static_cast<float>(c.head_dim)), c.window};
  StepLayout layout = step.On(bed);
  EXPECT_EQ((*bed)->attention(bed->device(), &a, &layout, nullptr), kOk) << bed->error();
  return bed->Get(out, c.dtype, tokens * c.heads * c.head_dim);
}

TEST(Ops, Attention) {
  const std::vector<HeadCase> heads = {{9, 3, 64, 16, kBF16, kBF16}, {4, 2, 64, 16, kF32, kF32},    {7, 1, 128, 32, kBF16, kBF16},
                                       {12, 2, 128, 16, kBF16, kF32}, {2, 2, 8, 5, kF32, kF32},      {5, 1, 80, 16, kBF16, kBF16},
                                       {3, 1, 40, 16, kF32, kBF16},   {64, 1, 16, 16, kF32, kF32},   {2, 1, 256, 16, kBF16, kBF16},
                                       {9, 3, 64, 16, kBF16, kBF16, 7}, {4, 2, 64, 16, kF32, kF32, 300}};
  const std::vector<std::vector<std::pair<int, int>>> steps = {
      {{0, 1}}, {{0, 37}}, {{700, 1}}, {{255, 2}, {0, 1}, {30, 1}, {256, 1}}, {{300, 40}, {511, 1}, {0, 5}}, {{17, 1}, {1, 1}, {90, 1}, {5, 3}, {2, 2}, {9, 1}, {0, 1}}};
  std::mt19937 rng(7);
  for (const HeadCase& c : heads) {
    for (const auto& s : steps) {
      const Step step(&rng, s, c.block_size);
      const int64_t cache = static_cast<int64_t>(step.blocks) * c.kv_heads * c.block_size * c.head_dim;
      const Values q = Random(&rng, c.dtype, step.query_start.back() * c.heads * c.head_dim), k = Random(&rng, c.cache, cache), v = Random(&rng, c.cache, cache);
      Bed twin(ReferenceTable(), {});
      const Values want = RunAttention(&twin, c, step, q, k, v);
      for (const Subject& subject : Subjects()) {
        Bed bed(subject.table, subject.options);
        ExpectClose(RunAttention(&bed, c, step, q, k, v), want, c.dtype == kBF16 ? 2e-3f : 3e-6f, Relative(c.dtype) * 2,
                    subject.name + " heads " + std::to_string(c.heads) + " dim " + std::to_string(c.head_dim) + " window " + std::to_string(c.window));
      }
    }
  }
}

// Prompts and chunks of them beside decode rows: lengths around the borders of tiles of 64 and 128 rows and positions, every head_dim that
// has a kernel of its own, every way in which a group may lie in a tile.
TEST(Ops, AttentionOfPrompts) {
  const std::vector<HeadCase> heads = {{1, 1, 64, 16, kBF16, kBF16},        {8, 2, 80, 16, kBF16, kBF16},       {6, 1, 96, 32, kBF16, kBF16},
                                       {6, 1, 128, 16, kBF16, kBF16},       {7, 1, 128, 16, kBF16, kBF16, 100}, {8, 1, 64, 48, kBF16, kBF16, 64},
                                       {2, 2, 128, 16, kBF16, kBF16, 200},  {4, 1, 80, 16, kBF16, kBF16, 129},  {3, 1, 96, 16, kBF16, kBF16, 3},
                                       {2, 1, 128, 8, kBF16, kBF16}};
  const std::vector<std::vector<std::pair<int, int>>> steps = {
      {{0, 128}}, {{0, 129}}, {{1, 127}}, {{0, 2}, {0, 64}, {126, 3}, {500, 1}, {63, 65}}, {{0, 1}, {383, 130}, {0, 16}}, {{200, 60}, {255, 1}, {250, 7}}};
  std::mt19937 rng(13);
  for (const HeadCase& c : heads) {
    for (const auto& s : steps) {
      const Step step(&rng, s, c.block_size);
      const int64_t cache = static_cast<int64_t>(step.blocks) * c.kv_heads * c.block_size * c.head_dim;
      const Values q = Random(&rng, c.dtype, step.query_start.back() * c.heads * c.head_dim), k = Random(&rng, c.cache, cache), v = Random(&rng, c.cache, cache);
      Bed twin(ReferenceTable(), {});
      const Values want = RunAttention(&twin, c, step, q, k, v);
      for (const Subject& subject : Subjects()) {
        Bed bed(subject.table, subject.options);
        const Values got = RunAttention(&bed, c, step, q, k, v);
        const std::string what = subject.name + " heads " + std::to_string(c.heads) + " dim " + std::to_string(c.head_dim) + " window " +
                                 std::to_string(c.window) + " rows " + std::to_string(s[0].second);
        ExpectClose(got, want, 2e-3f, Relative(c.dtype) * 2, what);
        EXPECT_EQ(RunAttention(&bed, c, step, q, k, v).bytes, got.bytes) << what << ": other bits when run again";
      }
      if (::testing::Test::HasFailure()) return;
    }
  }
}

// Enough rows and heads for the largest tiles.
TEST(Ops, AttentionOfLongPrompts) {
  std::mt19937 rng(14);
  for (const HeadCase& c : {HeadCase{40, 5, 64, 16, kBF16, kBF16}, HeadCase{42, 6, 128, 16, kBF16, kBF16}, HeadCase{48, 8, 96, 16, kBF16, kBF16, 150},
                            HeadCase{40, 40, 80, 16, kBF16, kBF16}}) {
    const Step step(&rng, {{0, 1}, {77, 200}, {5, 2}, {200, 1}, {0, 260}}, c.block_size);
    const int64_t cache = static_cast<int64_t>(step.blocks) * c.kv_heads * c.block_size * c.head_dim;
    const Values q = Random(&rng, c.dtype, step.query_start.back() * c.heads * c.head_dim), k = Random(&rng, c.cache, cache), v = Random(&rng, c.cache, cache);
    Bed twin(ReferenceTable(), {});
    const Values want = RunAttention(&twin, c, step, q, k, v);
    for (const Subject& subject : Subjects()) {
      Bed bed(subject.table, subject.options);
      ExpectClose(RunAttention(&bed, c, step, q, k, v), want, 2e-3f, Relative(c.dtype) * 2,
                  subject.name + " heads " + std::to_string(c.heads) + " dim " + std::to_string(c.head_dim));
    }
    if (::testing::Test::HasFailure()) return;
  }
}

// On the CPU a row alone is a chunk like any other; a GPU has another kernel for it.
TEST(Ops, AttentionBitsDoNotDependOnTheBatchTheChunkOrTheThreads) {
  std::mt19937 rng(8);
  for (const HeadCase& c : {HeadCase{9, 3, 64, 16, kBF16, kBF16}, HeadCase{40, 20, 128, 16, kBF16, kBF16, 256}}) {
    const int length = 600;
    const Step whole(&rng, {{0, length}}, c.block_size);
    const int64_t cache = static_cast<int64_t>(whole.blocks) * c.kv_heads * c.block_size * c.head_dim, row = c.heads * c.head_dim;
    const Values q = Random(&rng, c.dtype, length * row), k = Random(&rng, c.cache, cache), v = Random(&rng, c.cache, cache);
    for (const Subject& s : Subjects()) {
      Bed one(s.table, {0, 1, s.options.isa_cap});
      const Values want = RunAttention(&one, c, whole, q, k, v);
      for (int threads : {1, 2, 4}) {
        if (!s.same_bits && threads > 1) continue;
        Bed bed(s.table, {0, threads, s.options.isa_cap});
        for (auto [past, rows] : {std::pair{599, 1}, {500, 100}, {250, 7}, {0, 256}, {511, 2}, {100, 500}}) {
          if (!s.same_bits && rows == 1) continue;
          Step part = whole;  // the same pages, other rows
          part.context = {past + rows};
          part.query_start = {0, rows};
          Values some = q;
          some.bytes.assign(q.bytes.begin() + past * row * 2, q.bytes.begin() + (past + rows) * row * 2);
          const Values got = RunAttention(&bed, c, part, some, k, v);
          EXPECT_EQ(0, std::memcmp(got.bytes.data(), want.bytes.data() + past * row * 2, got.bytes.size()))
              << s.name << " heads " << c.heads << " past " << past << " rows " << rows << " threads " << threads;
        }
      }
    }
  }
}

TEST(Ops, AttentionNeverReadsPastTheContext) {
  std::mt19937 rng(9);
  for (const HeadCase& c : {HeadCase{3, 1, 64, 16, kF32, kF32}, HeadCase{3, 1, 64, 16, kBF16, kBF16}, HeadCase{7, 1, 128, 32, kBF16, kBF16},
                            HeadCase{4, 2, 80, 16, kBF16, kBF16, 90}, HeadCase{2, 1, 96, 16, kBF16, kBF16}}) {
    const Step step(&rng, {{20, 1}, {3, 2}, {0, 150}, {100, 60}, {0, 17}, {120, 7}, {383, 4}}, c.block_size);
    const int64_t cache = static_cast<int64_t>(step.blocks) * c.kv_heads * c.block_size * c.head_dim;
    Values k = Filled(c.cache, cache, NAN), v = Filled(c.cache, cache, NAN);
    for (size_t s = 0; s < step.context.size(); ++s) {
      for (int p = 0; p < step.context[s]; ++p) {
        const int block = step.table[s * static_cast<size_t>(step.max_blocks) + static_cast<size_t>(p / c.block_size)];
        for (int head = 0; head < c.kv_heads; ++head) {
          const int64_t at = ((int64_t{block} * c.kv_heads + head) * c.block_size + p % c.block_size) * c.head_dim;
          for (int i = 0; i < c.head_dim; ++i) k.set(at + i, 0.1f * static_cast<float>(i % 5)), v.set(at + i, 1.0f);
        }
      }
    }
    const Values q = Random(&rng, c.dtype, step.query_start.back() * c.heads * c.head_dim);
    for (const Subject& s : Subjects()) {
      Bed bed(s.table, s.options);
      const Values got = RunAttention(&bed, c, step, q, k, v);
      for (int64_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got.at(i), 1.0f, c.dtype == kBF16 ? 5e-3f : 1e-5f) << s.name << " head_dim " << c.head_dim << " element " << i;
      }
    }
  }
}

TEST(Ops, RopeAppend) {
  std::mt19937 rng(10);
  struct Case {
    HeadCase heads;
    int rotary;
    bool norm;
  };
  for (const Case& c : {Case{{9, 3, 64, 16, kBF16, kBF16}, 64, false}, Case{{4, 2, 64, 16, kF32, kF32}, 32, false},
                        Case{{7, 1, 128, 32, kBF16, kBF16}, 128, true}, Case{{2, 2, 24, 5, kF32, kBF16}, 24, true},
                        Case{{3, 1, 80, 16, kBF16, kF32}, 80, true}, Case{{2, 1, 8, 16, kBF16, kBF16}, 6, false}}) {
    const HeadCase& h = c.heads;
    Step step(&rng, {{0, 3}, {40, 1}, {17, 30}}, h.block_size);
    step.slots[1] = -1;
    const int64_t tokens = step.query_start.back(), width = (h.heads + 2 * h.kv_heads) * h.head_dim;
    const int64_t cache = static_cast<int64_t>(step.blocks) * h.kv_heads * h.block_size * h.head_dim;
    const Values qkv = Random(&rng, h.dtype, tokens * width), q_norm = Random(&rng, h.dtype, h.head_dim), k_norm = Random(&rng, h.dtype, h.head_dim);
    const Values angles = Random(&rng, kF32, 64 * c.rotary);
    auto run = [&](Bed* bed) {
      void* q = bed->Put(Filled(h.dtype, tokens * h.heads * h.head_dim, 7));
      KvLayer kv{bed->Put(Filled(h.cache, cache, 3)), bed->Put(Filled(h.cache, cache, 4)), h.cache, step.blocks, h.kv_heads, h.block_size, h.head_dim};
      RopeAppendArgs a{Dense(bed->Put(qkv), h.dtype, 2, tokens, width), Dense(q, h.dtype, 3, tokens, h.heads, h.head_dim), h.heads,
                       c.norm ? bed->Put(q_norm) : nullptr, c.norm ? bed->Put(k_norm) : nullptr, 1e-6f,
                       static_cast<const float*>(bed->Put(angles)), c.rotary, kv};
      StepLayout layout = step.On(bed);
      EXPECT_EQ((*bed)->rope_append(bed->device(), &a, &layout, nullptr), kOk) << bed->error();
      return std::vector<Values>{bed->Get(q, h.dtype, tokens * h.heads * h.head_dim), bed->Get(kv.k, h.cache, cache), bed->Get(kv.v, h.cache, cache)};
    };
    Bed twin(ReferenceTable(), {});
    const std::vector<Values> want = run(&twin);
    for (const Subject& s : Subjects()) {
      Bed bed(s.table, s.options);
      const std::vector<Values> got = run(&bed);
      for (int i = 0; i < 3; ++i) {
        // A normed value that rounds the other way moves the rotated sum by a bf16 step of its larger term.
        const bool rough = h.dtype == kBF16 || h.cache == kBF16;
        ExpectClose(got[static_cast<size_t>(i)], want[static_cast<size_t>(i)], rough ? (c.norm ? 0.05f : 1e-5f) : 5e-6f, rough ? 0.0085f : 2e-5f,
                    s.name + " output " + std::to_string(i));
      }
    }
  }
}

// A step of one row a sequence: rope_attention against the twin's rope_append and attention.
struct RopeAttentionCase {
  HeadCase heads;
  int rotary;
  bool norm = false;
};

struct RopeAttentionOperands {
  Values qkv, q_norm, k_norm, angles, k, v;

  RopeAttentionOperands(std::mt19937* rng, const RopeAttentionCase& c, const Step& step) {
    const HeadCase& h = c.heads;
    const int64_t cache = static_cast<int64_t>(step.blocks) * h.kv_heads * h.block_size * h.head_dim;
    qkv = Random(rng, h.dtype, step.query_start.back() * static_cast<int64_t>(h.heads + 2 * h.kv_heads) * h.head_dim);
    q_norm = Random(rng, h.dtype, h.head_dim), k_norm = Random(rng, h.dtype, h.head_dim);
    k = Random(rng, h.cache, cache), v = Random(rng, h.cache, cache);
    const int positions = *std::max_element(step.context.begin(), step.context.end()), half = c.rotary / 2;
    angles = Filled(kF32, int64_t{positions} * c.rotary, 0);
    for (int p = 0; p < positions; ++p) {
      for (int i = 0; i < half; ++i) {
        const float angle = static_cast<float>(p) * std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(half));
        angles.set(int64_t{p} * c.rotary + i, std::cos(angle)), angles.set(int64_t{p} * c.rotary + half + i, std::sin(angle));
      }
    }
  }
};

// Output, then the cache's k and v. `max_context`: at least this is said of the longest context.
std::vector<Values> RunRopeAttention(Bed* bed, const RopeAttentionCase& c, const Step& step, const RopeAttentionOperands& o, int max_context = 0) {
  const HeadCase& h = c.heads;
  const int64_t tokens = step.query_start.back(), width = (h.heads + 2 * h.kv_heads) * h.head_dim, q_width = int64_t{h.heads} * h.head_dim;
  const KvLayer kv{bed->Put(o.k), bed->Put(o.v), h.cache, step.blocks, h.kv_heads, h.block_size, h.head_dim};
  const Tensor q = Dense(bed->Put(Filled(h.dtype, tokens * q_width, NAN)), h.dtype, 3, tokens, h.heads, h.head_dim);
  void* out = bed->Put(Filled(h.dtype, tokens * q_width, NAN));
  const RopeAppendArgs rope{Dense(bed->Put(o.qkv), h.dtype, 2, tokens, width), q, h.heads, c.norm ? bed->Put(o.q_norm) : nullptr,
                            c.norm ? bed->Put(o.k_norm) : nullptr, 1e-6f, static_cast<const float*>(bed->Put(o.angles)), c.rotary, kv};
  const AttentionArgs attention{q, Dense(out, h.dtype, 2, tokens, q_width), kv, 1.0f / std::sqrt(static_cast<float>(h.head_dim)), h.window};
  StepLayout layout = step.On(bed);
  layout.max_context_length = std::max(layout.max_context_length, max_context);
  if ((*bed)->rope_attention != nullptr) {
    EXPECT_EQ((*bed)->rope_attention(bed->device(), &rope, &attention, &layout, nullptr), kOk) << bed->error();
  } else {
    EXPECT_EQ((*bed)->rope_append(bed->device(), &rope, &layout, nullptr), kOk) << bed->error();
    EXPECT_EQ((*bed)->attention(bed->device(), &attention, &layout, nullptr), kOk) << bed->error();
  }
  return {bed->Get(out, h.dtype, tokens * q_width), bed->Get(kv.k, h.cache, o.k.size()), bed->Get(kv.v, h.cache, o.v.size())};
}

TEST(Ops, RopeAttention) {
  const std::vector<RopeAttentionCase> cases = {
      {{12, 2, 128, 16, kBF16, kBF16}, 128},      {{9, 3, 64, 16, kBF16, kBF16}, 64},         {{7, 1, 128, 32, kBF16, kBF16}, 128, true},
      {{5, 1, 80, 16, kBF16, kBF16}, 80, true},   {{6, 2, 96, 5, kBF16, kBF16}, 48},          {{40, 2, 64, 16, kBF16, kBF16}, 64, true},
      {{14, 2, 64, 16, kBF16, kBF16, 70}, 64},    {{4, 1, 128, 16, kBF16, kBF16, 1}, 20},     {{4, 2, 64, 16, kF32, kF32}, 64},
      {{3, 1, 40, 16, kBF16, kBF16}, 40, true},   {{6, 1, 64, 16, kBF16, kF32}, 64},          {{2, 1, 128, 16, kBF16, kBF16}, 126}};
  const std::vector<std::vector<std::pair<int, int>>> steps = {
      {{0, 1}}, {{700, 1}}, {{2999, 1}}, {{127, 1}, {128, 1}, {0, 1}, {511, 1}, {64, 1}, {1025, 1}}};
  std::mt19937 rng(11);
  for (const RopeAttentionCase& c : cases) {
    for (const auto& s : steps) {
      Step step(&rng, s, c.heads.block_size);
      if (s.size() > 2) step.slots[1] = -1;  // stores nothing, and attends to what the cache has
      const RopeAttentionOperands o(&rng, c, step);
      Bed twin(ReferenceTable(), {});
      const std::vector<Values> want = RunRopeAttention(&twin, c, step, o);
      for (const Subject& subject : Subjects()) {
        Bed bed(subject.table, subject.options);
        const std::vector<Values> got = RunRopeAttention(&bed, c, step, o);
        const std::string what = subject.name + " heads " + std::to_string(c.heads.heads) + " dim " + std::to_string(c.heads.head_dim) +
                                 " rotary " + std::to_string(c.rotary) + " window " + std::to_string(c.heads.window);
        const bool rough = c.heads.dtype == kBF16;
        for (size_t i : {1, 2}) {
          ExpectClose(got[i], want[i], rough ? (c.norm ? 0.05f : 1e-5f) : 5e-6f, rough ? 0.0085f : 2e-5f, what + " cache " + std::to_string(i));
        }
        // With a norm a query or key may round the other way, which moves scores by some 1e-2.
        ExpectClose(got[0], want[0], rough ? (c.norm ? 0.03f : 4e-3f) : 3e-6f, Relative(c.heads.dtype) * 2, what);
        EXPECT_EQ(RunRopeAttention(&bed, c, step, o)[0].bytes, got[0].bytes) << what << ": other bits when run again";
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(Ops, RopeAttentionBitsDoNotDependOnPadding) {
  std::mt19937 rng(12);
  const RopeAttentionCase c{{12, 2, 128, 16, kBF16, kBF16}, 128};
  const Step padded(&rng, {{900, 1}, {3, 1}, {300, 1}, {0, 1}}, 16);
  Step own = padded;
  own.query_start.pop_back(), own.context.pop_back(), own.positions.pop_back(), own.slots.pop_back();
  const RopeAttentionOperands o(&rng, c, padded);
  RopeAttentionOperands part = o;
  part.qkv.bytes.resize(o.qkv.bytes.size() / 4 * 3);
  for (const Subject& s : Subjects()) {
    Bed bed(s.table, s.options);
    const Values want = RunRopeAttention(&bed, c, own, part)[0], got = RunRopeAttention(&bed, c, padded, o, 16384)[0];
    EXPECT_EQ(0, std::memcmp(want.bytes.data(), got.bytes.data(), want.bytes.size())) << s.name;
  }
}

}  // namespace
}  // namespace phalanx::kernels::testing
