// bench/kernels_arena.h: operands of the kernels bench in device memory: random values, and weights that are never warm.
// Refuses to know: operations, models, timing. Thread: main.
// Neighbours: kernels_cases.cc. Device memory is reached through the table alone, so it may be a GPU's.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace phalanx::bench {

// `count` random bf16 values in (-1, 1) * scale. Long ones repeat after some millions of values, which no cache line notices.
std::vector<uint16_t> RandomValues(int64_t count, float scale);

// How many operands of `bytes` take turns, so that each is out of every cache when its turn comes.
int Turns(double bytes);

// Device memory that is given back together.
class Arena {
 public:
  Arena(const kernels::Table& table, kernels::Device* device) : table_(table), device_(device) {}
  ~Arena();
  Arena(const Arena&) = delete;
  // Exits the program when there is no memory.
  void* Take(size_t bytes);
  void* Random(int64_t count, float scale = 1.0f);
  void* Copy(const void* host, size_t bytes);
  template <class T>
  T* Copy(const std::vector<T>& values) {
    return static_cast<T*>(Copy(values.data(), values.size() * sizeof(T)));
  }
  // Exits the program with the back end's words unless `code` is kOk.
  void Check(kernels::Code code) const;

  const kernels::Table& table() const { return table_; }
  kernels::Device* device() const { return device_; }

 private:
  const kernels::Table& table_;
  kernels::Device* const device_;
  std::vector<void*> taken_;
};

// Packed bf16 weights by shape, each several times over. They are kept for all steps of a run: packing takes longer than timing.
class ColdWeights {
 public:
  ColdWeights(const kernels::Table& table, kernels::Device* device) : arena_(table, device) {}
  // Stays valid as long as this object.
  const std::vector<kernels::Weight>& Get(int64_t n, int64_t k);

 private:
  Arena arena_;
  std::map<std::pair<int64_t, int64_t>, std::vector<kernels::Weight>> all_;
};

}  // namespace phalanx::bench
