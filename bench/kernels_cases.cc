#include "bench/kernels_cases.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace phalanx::bench {
namespace {

using kernels::Dense;
using kernels::kBF16;
using kernels::Tensor;
using kernels::Weight;

constexpr ModelShape kShapes[] = {
    {"smollm2", 30, 576, 9, 3, 64, 1536, 49152},
    {"1.5b", 28, 1536, 12, 2, 128, 8960, 151936},
};
constexpr double kColdBytes = 128e6;  // what takes turns is at least so large together
constexpr int kBlock = 16;

uint16_t ToBf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return static_cast<uint16_t>(bits >> 16);
}

int Turns(double bytes) { return static_cast<int>(std::clamp(std::ceil(kColdBytes / bytes), 1.0, 512.0)); }

// The same weight several times over.
std::vector<Weight> ColdWeights(Arena& arena, int64_t n, int64_t k) {
  const kernels::Table& t = arena.table();
  const size_t bytes = t.packed_bytes(arena.device(), n, k, kBF16);
  Arena rows(t, arena.device());
  const void* values = rows.Random(n * k, 1.0f / std::sqrt(static_cast<float>(k)));
  std::vector<Weight> all(Turns(static_cast<double>(bytes)), Weight{nullptr, n, k, kBF16, 0, 0});
  if (t.pack_weight(arena.device(), &all[0], values, arena.Take(bytes), nullptr) != kernels::kOk) std::abort();
  for (size_t i = 1; i < all.size(); ++i) {
    all[i] = all[0];
    all[i].data = arena.Copy(all[0].data, bytes);
  }
  return all;
}

// out: f32 for logits.
Case Linear(Arena& arena, std::string name, int calls, int64_t m, int64_t n, int64_t k, kernels::Epilogue epilogue, bool f32_out = false) {
  const int64_t columns = epilogue == kernels::kEpilogueSiluMul ? n / 2 : n;
  const Tensor x = Dense(arena.Random(m * k), kBF16, 2, m, k);
  const Tensor out = Dense(arena.Take(static_cast<size_t>(m * columns * 4)), f32_out ? kernels::kF32 : kBF16, 2, m, columns);
  auto weights = std::make_shared<std::vector<Weight>>(ColdWeights(arena, n, k));
  const double bytes = 2.0 * static_cast<double>(n * k + m * k) + static_cast<double>(m * columns) * (f32_out ? 4 : 2);
  return {std::move(name), calls, bytes, 2.0 * static_cast<double>(m * n * k), true, [=, &arena](int repeat) {
            const kernels::LinearArgs args{x, (*weights)[repeat % weights->size()], nullptr, out, epilogue, nullptr, 0, nullptr};
            return arena.table().linear(arena.device(), &args, nullptr);
          }};
}

// Everything that describes the step to rope_append and attention.
kernels::StepLayout Layout(Arena& arena, const StepShape& s) {
  const int blocks = (s.context + kBlock - 1) / kBlock;
  std::vector<int32_t> starts, contexts(s.sequences, s.context), table, positions, slots;
  for (int q = 0; q < s.sequences; ++q) {
    starts.push_back(q * s.rows);
    for (int b = 0; b < blocks; ++b) table.push_back(b * s.sequences + q);  // scattered, as after a while of serving
    for (int r = 0; r < s.rows; ++r) {
      const int position = s.context - s.rows + r;
      positions.push_back(position);
      slots.push_back(table[q * blocks + position / kBlock] * kBlock + position % kBlock);
    }
  }
  starts.push_back(s.tokens());
  return {s.tokens(), s.sequences, arena.Copy(starts), arena.Copy(contexts), arena.Copy(table), blocks, arena.Copy(positions),
          arena.Copy(slots), s.rows, s.context};
}

std::vector<kernels::KvLayer> ColdCache(Arena& arena, const ModelShape& m, const StepShape& s) {
  const int blocks = (s.context + kBlock - 1) / kBlock * s.sequences;
  const int64_t values = int64_t{blocks} * m.kv_heads * kBlock * m.head_dim;
  std::vector<kernels::KvLayer> all(std::min(Turns(static_cast<double>(values) * 4), m.layers));
  for (auto& kv : all) kv = {arena.Random(values), arena.Random(values), kBF16, blocks, m.kv_heads, kBlock, m.head_dim};
  return all;
}

Case Rope(Arena& arena, const ModelShape& m, const StepShape& s, const kernels::StepLayout& layout,
          std::shared_ptr<std::vector<kernels::KvLayer>> cache) {
  const int64_t tokens = s.tokens(), width = int64_t{m.heads + 2 * m.kv_heads} * m.head_dim;
  const Tensor qkv = Dense(arena.Random(tokens * width), kBF16, 2, tokens, width);
  const Tensor q = Dense(arena.Take(static_cast<size_t>(tokens * m.heads * m.head_dim * 2)), kBF16, 3, tokens, m.heads, m.head_dim);
  std::vector<float> angles(static_cast<size_t>(s.context) * m.head_dim, 0.7f);
  const float* cos_sin = arena.Copy(angles);
  const double values = static_cast<double>(tokens * width);
  return {"rope_append", m.layers, 4 * values, 3 * values, false, [=, &arena](int repeat) {
            const kernels::KvLayer& kv = (*cache)[repeat % cache->size()];
            const kernels::RopeAppendArgs args{qkv, q, m.heads, nullptr, nullptr, 1e-5f, cos_sin, m.head_dim, kv};
            return arena.table().rope_append(arena.device(), &args, &layout, nullptr);
          }};
}

Case Attention(Arena& arena, const ModelShape& m, const StepShape& s, const kernels::StepLayout& layout,
               std::shared_ptr<std::vector<kernels::KvLayer>> cache) {
  const int64_t tokens = s.tokens(), width = int64_t{m.heads} * m.head_dim;
  const Tensor q = Dense(arena.Random(tokens * width), kBF16, 3, tokens, m.heads, m.head_dim);
  const Tensor out = Dense(arena.Take(static_cast<size_t>(tokens * width * 2)), kBF16, 2, tokens, width);
  const double seen = static_cast<double>(s.sequences) * s.rows * (s.context - (s.rows - 1) / 2.0);  // (row, position) pairs
  const double bytes = 4.0 * s.sequences * s.context * m.kv_heads * m.head_dim + 4.0 * static_cast<double>(tokens * width);
  return {"attention", m.layers, bytes, 4.0 * seen * static_cast<double>(width), false, [=, &arena](int repeat) {
            const kernels::AttentionArgs args{q, out, (*cache)[repeat % cache->size()], 0.125f, 0};
            return arena.table().attention(arena.device(), &args, &layout, nullptr);
          }};
}

Case Norm(Arena& arena, int calls, int64_t tokens, int64_t hidden) {
  const Tensor x = Dense(arena.Random(tokens * hidden), kBF16, 2, tokens, hidden);
  const Tensor out = Dense(arena.Take(static_cast<size_t>(tokens * hidden * 2)), kBF16, 2, tokens, hidden);
  const void* gamma = arena.Random(hidden);
  const double values = static_cast<double>(tokens * hidden);
  return {"rms_norm", calls, 4 * values, 4 * values, false, [=, &arena](int) {
            return arena.table().rms_norm(arena.device(), x, gamma, 1e-5f, out, nullptr);
          }};
}

Case Embedding(Arena& arena, const ModelShape& m, int64_t tokens) {
  auto weights = std::make_shared<std::vector<Weight>>(ColdWeights(arena, m.vocab, m.hidden));
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 7919 % m.vocab);
  const int32_t* device_ids = arena.Copy(ids);
  const Tensor out = Dense(arena.Take(static_cast<size_t>(tokens * m.hidden * 2)), kBF16, 2, tokens, m.hidden);
  return {"embedding", 1, 4.0 * static_cast<double>(tokens * m.hidden), 0, false, [=, &arena](int repeat) {
            return arena.table().embedding(arena.device(), &(*weights)[repeat % weights->size()], device_ids, out, nullptr);
          }};
}

Case Sample(Arena& arena, const ModelShape& m, int64_t rows, std::string name, float temperature, float top_p) {
  std::vector<float> logits(static_cast<size_t>(rows * m.vocab));
  std::minstd_rand rng(2);
  std::normal_distribution<float> normal(0, 3);
  for (float& x : logits) x = normal(rng);
  std::vector<kernels::SamplingRow> options(static_cast<size_t>(rows), {temperature, top_p, 0, 1, 0, 0, 0, -1, 7, 0, -1, 0, -1, 0, 0});
  for (size_t i = 0; i < options.size(); ++i) options[i].position = static_cast<int32_t>(i);
  kernels::SampleArgs args{};
  args.logits = Dense(arena.Copy(logits), kernels::kF32, 2, rows, m.vocab);
  args.vocab = m.vocab;
  args.options = arena.Copy(options);
  args.out_ids = static_cast<int32_t*>(arena.Take(static_cast<size_t>(rows) * 4));
  return {std::move(name), 0, 4.0 * static_cast<double>(rows * m.vocab), 0, false, [=, &arena](int) {
            return arena.table().sample(arena.device(), &args, nullptr);
          }};
}

}  // namespace

double ModelShape::token_flops() const {
  const double qkv = double(heads + 2 * kv_heads) * head_dim * hidden, o = double(heads) * head_dim * hidden;
  return 2.0 * layers * (qkv + o + 3.0 * intermediate * hidden);
}
double ModelShape::weight_bytes() const { return token_flops() + 2.0 * vocab * hidden; }

const ModelShape* FindShape(std::string_view name) {
  for (const ModelShape& shape : kShapes) {
    if (shape.name == name) return &shape;
  }
  return nullptr;
}

Arena::~Arena() {
  for (void* memory : taken_) table_.free(device_, memory);
}

void* Arena::Take(size_t bytes) {
  void* memory = nullptr;
  if (table_.alloc(device_, bytes, &memory) != kernels::kOk) {
    std::fprintf(stderr, "%s\n", table_.last_error(device_));
    std::exit(1);
  }
  taken_.push_back(memory);
  return memory;
}

void* Arena::Copy(const void* host, size_t bytes) {
  void* memory = Take(bytes);
  if (table_.copy_to_device(device_, memory, host, bytes, nullptr) != kernels::kOk) std::abort();
  return memory;
}

void* Arena::Random(int64_t count, float scale) {
  std::vector<uint16_t> values(static_cast<size_t>(count));
  std::uniform_real_distribution<float> uniform(-scale, scale);
  for (auto& v : values) v = ToBf16(uniform(rng_));
  return Copy(values.data(), values.size() * 2);
}

std::vector<Case> StepCases(Arena& arena, const ModelShape& m, const StepShape& s) {
  const int64_t tokens = s.tokens(), heads = int64_t{m.heads} * m.head_dim, all_heads = heads + 2 * int64_t{m.kv_heads} * m.head_dim;
  const kernels::StepLayout layout = Layout(arena, s);
  auto cache = std::make_shared<std::vector<kernels::KvLayer>>(ColdCache(arena, m, s));
  std::vector<Case> cases;
  cases.push_back(Embedding(arena, m, tokens));
  cases.push_back(Norm(arena, 2 * m.layers, tokens, m.hidden));
  cases.push_back(Linear(arena, "linear qkv", m.layers, tokens, all_heads, m.hidden, kernels::kEpilogueNone));
  cases.push_back(Rope(arena, m, s, layout, cache));
  cases.push_back(Attention(arena, m, s, layout, cache));
  cases.push_back(Linear(arena, "linear o", m.layers, tokens, m.hidden, heads, kernels::kEpilogueAdd));
  cases.push_back(Linear(arena, "linear gate+up", m.layers, tokens, 2 * m.intermediate, m.hidden, kernels::kEpilogueSiluMul));
  cases.push_back(Linear(arena, "linear down", m.layers, tokens, m.hidden, m.intermediate, kernels::kEpilogueAdd));
  cases.push_back(Linear(arena, "linear head", 1, s.sequences, m.vocab, m.hidden, kernels::kEpilogueNone, true));
  cases.push_back(Sample(arena, m, s.sequences, "sample greedy", 0, 1));
  cases.back().calls = 1;
  cases.push_back(Sample(arena, m, s.sequences, "sample t=1", 1, 1));  // these two stand in the place of greedy: not in the sum
  cases.push_back(Sample(arena, m, s.sequences, "sample t=0.8 p=0.95", 0.8f, 0.95f));
  return cases;
}

Case PeakCase(Arena& arena, int64_t m, int64_t n, int64_t k) { return Linear(arena, "linear peak", 1, m, n, k, kernels::kEpilogueNone); }

}  // namespace phalanx::bench
