// bench/kernels_cases.h: the operations of one model step as cases with operands, bytes and floating operations.
// Refuses to know: how they are timed and shown. Thread: main.
// Neighbours: kernels_bench.cc. It calls a back end through its table alone, as worker/model does.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"

namespace phalanx::bench {

struct ModelShape {
  std::string_view name;
  int layers, hidden, heads, kv_heads, head_dim, intermediate, vocab;
  double weight_bytes() const;  // bf16 bytes that a decode step reads
  double token_flops() const;   // of the layers' products, for one token
};

// "smollm2" or "1.5b"; null for any other name.
const ModelShape* FindShape(std::string_view name);

// One step: `sequences` that each bring `rows` tokens and then have `context` tokens in the cache.
struct StepShape {
  int sequences, rows, context;
  int tokens() const { return sequences * rows; }
};

struct Case {
  std::string name;
  int calls;      // of one step
  double bytes;   // that one call must read and write
  double flops;   // that one call must do
  bool product;   // a linear layer: its weights are counted in ModelShape::weight_bytes
  std::function<kernels::Code(int repeat)> run;
};

// Device memory that is given back together.
class Arena {
 public:
  Arena(const kernels::Table& table, kernels::Device* device) : table_(table), device_(device) {}
  ~Arena();
  Arena(const Arena&) = delete;
  // Exits the program when there is no memory.
  void* Take(size_t bytes);
  // bf16 values around zero.
  void* Random(int64_t count, float scale = 1.0f);
  template <class T>
  T* Copy(const std::vector<T>& values) {
    return static_cast<T*>(Copy(values.data(), values.size() * sizeof(T)));
  }
  void* Copy(const void* host, size_t bytes);

  const kernels::Table& table() const { return table_; }
  kernels::Device* device() const { return device_; }

 private:
  const kernels::Table& table_;
  kernels::Device* const device_;
  std::vector<void*> taken_;
  std::minstd_rand rng_{1};
};

// The cases of one step, in the order of the model. Operands that a real step finds cold (weights, the KV cache) exist several times
// and take turns, so that they are never in a cache when their turn comes. The arena must outlive the cases.
std::vector<Case> StepCases(Arena& arena, const ModelShape& model, const StepShape& step);

// One large product [m, k] x [n, k]: what the back end reaches at its best.
Case PeakCase(Arena& arena, int64_t m, int64_t n, int64_t k);

}  // namespace phalanx::bench
