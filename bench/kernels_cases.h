// bench/kernels_cases.h: the operations of one model step as cases with operands, bytes and floating operations.
// Refuses to know: how they are timed and shown. Thread: main.
// Neighbours: kernels_bench.cc. It calls a back end through its table alone, as worker/model/decoder.cc does.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/kernels_arena.h"
#include "kernels/kernels.h"

namespace phalanx::bench {

struct ModelShape {
  std::string_view name;
  int layers, hidden, heads, kv_heads, head_dim, intermediate, vocab;
  bool qkv_bias;
  double weight_bytes() const;  // bf16 bytes that a decode step reads
  double token_flops() const;   // of the layers' products, for one token
};

// "smollm2", "1.5b" or "7b"; null for any other name.
const ModelShape* FindShape(std::string_view name);

// One step: `sequences` that each bring `rows` tokens and then have `context` tokens in the cache.
struct StepShape {
  int sequences, rows, context;
  int tokens() const { return sequences * rows; }
};

struct Case {
  std::string name;
  int calls;      // of one step; 0: shown for itself, not in the sum
  double bytes;   // that one call must read and write
  double flops;   // that one call must do
  bool product;   // a linear layer: its weights are counted in ModelShape::weight_bytes
  std::function<kernels::Code(int repeat)> run;
};

// The cases of one step, in the order of the model. Operands that a real step finds cold (weights, the KV cache) exist several times
// and take turns, so that they are never in a cache when their turn comes. Arena and weights must outlive the cases.
std::vector<Case> StepCases(Arena& arena, ColdWeights& weights, const ModelShape& model, const StepShape& step);

// One large product [m, k] x [n, k]: what the back end reaches at its best.
Case PeakCase(Arena& arena, ColdWeights& weights, int64_t m, int64_t n, int64_t k);

// gather_rows of `bytes` in and as many out: what a copy through the table reaches.
Case CopyCase(Arena& arena, int64_t bytes);

}  // namespace phalanx::bench
