#include "bench/kernels_cases.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <utility>

namespace phalanx::bench {
namespace {

using kernels::Code;
using kernels::Dense;
using kernels::kBF16;
using kernels::Tensor;
using kernels::Weight;

constexpr ModelShape kShapes[] = {
    {"smollm2", 30, 576, 9, 3, 64, 1536, 49152, false},
    {"1.5b", 28, 1536, 12, 2, 128, 8960, 151936, true},
    {"7b", 28, 3584, 28, 4, 128, 18944, 152064, true},
};
constexpr int kBlock = 16;
constexpr float kEpsilon = 1e-5f;

double Half(int64_t values) { return 2.0 * static_cast<double>(values); }  // bytes of bf16 values

Tensor Rows(void* data, int64_t rows, int64_t columns) { return Dense(data, kBF16, 2, rows, columns); }

// What a linear layer of the model looks like, beside its shape.
struct Layer {
  kernels::Epilogue epilogue = kernels::kEpilogueNone;
  bool norm = false;     // the norm before it
  bool bias = false;
  bool logits = false;   // f32 out
};

Case Linear(Arena& arena, ColdWeights& cold, std::string name, int calls, int64_t m, int64_t n, int64_t k, Layer layer = {}) {
  const int64_t columns = layer.epilogue == kernels::kEpilogueSiluMul ? n / 2 : n;
  const Tensor x = Rows(arena.Random(m * k), m, k);
  const Tensor out = Dense(arena.Take(static_cast<size_t>(m * columns * 4)), layer.logits ? kernels::kF32 : kBF16, 2, m, columns);
  const void* gamma = layer.norm ? arena.Random(k) : nullptr;
  void* scratch = layer.norm ? arena.Take(static_cast<size_t>(m * k * 2)) : nullptr;
  const float* bias = layer.bias ? arena.Copy(std::vector<float>(static_cast<size_t>(n), 0.3f)) : nullptr;
  const std::vector<Weight>* weights = &cold.Get(n, k);
  const double bytes = Half(n * k + m * k) + static_cast<double>(m * columns) * (layer.logits ? 4 : 2);
  return {std::move(name), calls, bytes, 2.0 * static_cast<double>(m * n * k), true, [=, &arena](int repeat) {
            const Weight& weight = (*weights)[repeat % weights->size()];
            const kernels::LinearArgs args{x, weight, bias, out, layer.epilogue, gamma, kEpsilon, scratch};
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

// Operands of a layer's attention: rope_append and attention, or both in one where the table has that and the step is decode.
struct Attend {
  kernels::StepLayout layout;
  std::vector<kernels::KvLayer> cache;
  kernels::RopeAppendArgs rope;  // `cache` is filled in turn, here and below
  kernels::AttentionArgs attention;
  double rope_bytes, rope_flops, bytes, flops;

  Attend(Arena& arena, const ModelShape& m, const StepShape& s) : layout(Layout(arena, s)), cache(ColdCache(arena, m, s)) {
    const int64_t tokens = s.tokens(), q_width = int64_t{m.heads} * m.head_dim, width = q_width + int64_t{2} * m.kv_heads * m.head_dim;
    const Tensor q = Dense(arena.Random(tokens * q_width), kBF16, 3, tokens, m.heads, m.head_dim);
    const float* cos_sin = arena.Copy(std::vector<float>(static_cast<size_t>(s.context) * m.head_dim, 0.7f));
    rope = {Rows(arena.Random(tokens * width), tokens, width), q, m.heads, nullptr, nullptr, kEpsilon, cos_sin, m.head_dim, {}};
    attention = {q, Rows(arena.Take(static_cast<size_t>(tokens * q_width * 2)), tokens, q_width), {}, 0.125f, 0};
    rope_bytes = 2 * Half(tokens * width);
    rope_flops = 3.0 * static_cast<double>(tokens * width);
    const double seen = static_cast<double>(s.sequences) * s.rows * (s.context - (s.rows - 1) / 2.0);  // (row, position) pairs
    bytes = 4.0 * s.sequences * s.context * m.kv_heads * m.head_dim + 2 * Half(tokens * q_width);
    flops = 4.0 * seen * static_cast<double>(q_width);
  }
};

void AddAttention(Arena& arena, const ModelShape& m, const StepShape& s, std::vector<Case>* cases) {
  const auto attend = std::make_shared<Attend>(arena, m, s);
  const auto args = [attend](int repeat) {
    kernels::RopeAppendArgs rope = attend->rope;
    kernels::AttentionArgs attention = attend->attention;
    rope.cache = attention.cache = attend->cache[repeat % attend->cache.size()];
    return std::pair{rope, attention};
  };
  const bool both = arena.table().rope_attention != nullptr && s.rows == 1;
  if (both) {
    cases->push_back({"rope_attention", m.layers, attend->bytes + attend->rope_bytes - Half(2 * s.tokens() * int64_t{m.heads} * m.head_dim),
                      attend->flops + attend->rope_flops, false, [=, &arena](int repeat) {
                        const auto [rope, attention] = args(repeat);
                        return arena.table().rope_attention(arena.device(), &rope, &attention, &attend->layout, nullptr);
                      }});
  }
  const int calls = both ? 0 : m.layers;
  cases->push_back({"rope_append", calls, attend->rope_bytes, attend->rope_flops, false, [=, &arena](int repeat) {
                      const kernels::RopeAppendArgs rope = args(repeat).first;
                      return arena.table().rope_append(arena.device(), &rope, &attend->layout, nullptr);
                    }});
  cases->push_back({"attention", calls, attend->bytes, attend->flops, false, [=, &arena](int repeat) {
                      const kernels::AttentionArgs attention = args(repeat).second;
                      return arena.table().attention(arena.device(), &attention, &attend->layout, nullptr);
                    }});
}

Case Norm(Arena& arena, int64_t tokens, int64_t hidden) {
  const Tensor x = Rows(arena.Random(tokens * hidden), tokens, hidden);
  const Tensor out = Rows(arena.Take(static_cast<size_t>(tokens * hidden * 2)), tokens, hidden);
  const void* gamma = arena.Random(hidden);
  return {"rms_norm", 0, 2 * Half(tokens * hidden), 4.0 * static_cast<double>(tokens * hidden), false, [=, &arena](int) {
            return arena.table().rms_norm(arena.device(), x, gamma, kEpsilon, out, nullptr);
          }};
}

Case Embedding(Arena& arena, ColdWeights& cold, const ModelShape& m, int64_t tokens) {
  const std::vector<Weight>* weights = &cold.Get(m.vocab, m.hidden);
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 7919 % m.vocab);
  const int32_t* device_ids = arena.Copy(ids);
  const Tensor out = Rows(arena.Take(static_cast<size_t>(tokens * m.hidden * 2)), tokens, m.hidden);
  return {"embedding", 1, 2 * Half(tokens * m.hidden), 0, false, [=, &arena](int repeat) {
            return arena.table().embedding(arena.device(), &(*weights)[repeat % weights->size()], device_ids, out, nullptr);
          }};
}

// The rows whose logits are wanted, one a sequence, as they are taken out before the last layer's output product.
Case Gather(Arena& arena, std::string name, const StepShape& s, int64_t columns) {
  const Tensor x = Rows(arena.Random(s.tokens() * columns), s.tokens(), columns);
  const Tensor out = Rows(arena.Take(static_cast<size_t>(s.sequences * columns * 2)), s.sequences, columns);
  std::vector<int32_t> rows;
  for (int q = 1; q <= s.sequences; ++q) rows.push_back(q * s.rows - 1);
  const int32_t* device_rows = arena.Copy(rows);
  return {std::move(name), 1, 2 * Half(s.sequences * columns), 0, false, [=, &arena](int) {
            return arena.table().gather_rows(arena.device(), x, device_rows, out, nullptr);
          }};
}

Case Sample(Arena& arena, const ModelShape& m, int64_t rows, std::string name, int calls, float temperature, float top_p, int32_t top_k) {
  std::vector<float> logits(static_cast<size_t>(rows * m.vocab));
  std::minstd_rand rng(2);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> one(static_cast<size_t>(m.vocab));
  for (float& x : one) x = normal(rng);
  for (int64_t row = 0; row < rows; ++row) {  // every row the same values, turned
    std::rotate_copy(one.begin(), one.begin() + row * 977 % m.vocab, one.end(), logits.begin() + row * m.vocab);
  }
  std::vector<kernels::SamplingRow> options(static_cast<size_t>(rows),
                                            {temperature, top_p, 0, 1, 0, 0, top_k, -1, 7, 0, -1, 0, -1, 0, 0});
  for (size_t i = 0; i < options.size(); ++i) options[i].position = static_cast<int32_t>(i);
  kernels::SampleArgs args{};
  args.logits = Dense(arena.Copy(logits), kernels::kF32, 2, rows, m.vocab);
  args.vocab = m.vocab;
  args.options = arena.Copy(options);
  args.out_ids = static_cast<int32_t*>(arena.Take(static_cast<size_t>(rows) * 4));
  return {std::move(name), calls, 4.0 * static_cast<double>(rows * m.vocab), 0, false, [=, &arena](int) {
            return arena.table().sample(arena.device(), &args, nullptr);
          }};
}

// The three products after attention. `suffix` tells the last layer's apart, where they see only the wanted rows.
void AddOutputAndMlp(Arena& arena, ColdWeights& cold, const ModelShape& m, int64_t rows, int calls, const std::string& suffix,
                     std::vector<Case>* cases) {
  const int64_t q_width = int64_t{m.heads} * m.head_dim;
  cases->push_back(Linear(arena, cold, "linear o" + suffix, calls, rows, m.hidden, q_width, {.epilogue = kernels::kEpilogueAdd}));
  cases->push_back(Linear(arena, cold, "norm+linear gate+up" + suffix, calls, rows, 2 * m.intermediate, m.hidden,
                          {.epilogue = kernels::kEpilogueSiluMul, .norm = true}));
  cases->push_back(Linear(arena, cold, "linear down" + suffix, calls, rows, m.hidden, m.intermediate, {.epilogue = kernels::kEpilogueAdd}));
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

std::vector<Case> StepCases(Arena& arena, ColdWeights& cold, const ModelShape& m, const StepShape& s) {
  const int64_t tokens = s.tokens(), q_width = int64_t{m.heads} * m.head_dim, qkv_width = q_width + 2 * int64_t{m.kv_heads} * m.head_dim;
  const bool last_differs = s.rows > 1;
  std::vector<Case> cases;
  cases.push_back(Embedding(arena, cold, m, tokens));
  cases.push_back(Linear(arena, cold, "norm+linear qkv", m.layers, tokens, qkv_width, m.hidden, {.norm = true, .bias = m.qkv_bias}));
  AddAttention(arena, m, s, &cases);
  AddOutputAndMlp(arena, cold, m, tokens, m.layers - int{last_differs}, "", &cases);
  cases.push_back(Gather(arena, "gather_rows hidden", s, m.hidden));
  cases.push_back(Gather(arena, "gather_rows heads", s, q_width));
  if (last_differs) AddOutputAndMlp(arena, cold, m, s.sequences, 1, ", last", &cases);
  cases.push_back(Linear(arena, cold, "norm+linear head", 1, s.sequences, m.vocab, m.hidden, {.norm = true, .logits = true}));
  cases.push_back(Sample(arena, m, s.sequences, "sample greedy", 1, 0, 1, 0));
  // These stand in the place of another, and are not in the sum.
  cases.push_back(Sample(arena, m, s.sequences, "sample t=1", 0, 1, 1, 0));
  cases.push_back(Sample(arena, m, s.sequences, "sample t=0.8 p=0.95", 0, 0.8f, 0.95f, 0));
  cases.push_back(Sample(arena, m, s.sequences, "sample k=50 p=0.95", 0, 0.8f, 0.95f, 50));
  cases.push_back(Norm(arena, tokens, m.hidden));
  return cases;
}

Case PeakCase(Arena& arena, ColdWeights& cold, int64_t m, int64_t n, int64_t k) {
  return Linear(arena, cold, "linear peak", 1, m, n, k);
}

Case CopyCase(Arena& arena, int64_t bytes) {
  constexpr int64_t kColumns = 4096;
  return Gather(arena, "gather_rows copy", {static_cast<int>(bytes / (2 * kColumns)), 1, 1}, kColumns);
}

}  // namespace phalanx::bench
