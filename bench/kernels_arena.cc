#include "bench/kernels_arena.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

namespace phalanx::bench {
namespace {

constexpr double kColdBytes = 128e6;  // what takes turns is at least so large together
constexpr int64_t kPeriod = 4'194'301;  // of the random values; a prime, so that rows of a weight differ

uint16_t ToBf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return static_cast<uint16_t>(bits >> 16);
}

}  // namespace

std::vector<uint16_t> RandomValues(int64_t count, float scale) {
  static std::minstd_rand rng(1);
  std::vector<uint16_t> values(static_cast<size_t>(count));
  std::uniform_real_distribution<float> uniform(-scale, scale);
  const int64_t fresh = std::min(count, kPeriod);
  for (int64_t i = 0; i < fresh; ++i) values[i] = ToBf16(uniform(rng));
  for (int64_t i = fresh; i < count; i += kPeriod) std::memcpy(&values[i], values.data(), std::min(kPeriod, count - i) * sizeof(uint16_t));
  return values;
}

int Turns(double bytes) { return static_cast<int>(std::clamp(std::ceil(kColdBytes / bytes), 1.0, 512.0)); }

Arena::~Arena() {
  for (void* memory : taken_) table_.free(device_, memory);
}

void Arena::Check(kernels::Code code) const {
  if (code == kernels::kOk) return;
  std::fprintf(stderr, "%s\n", table_.last_error(device_));
  std::exit(1);
}

void* Arena::Take(size_t bytes) {
  void* memory = nullptr;
  Check(table_.alloc(device_, bytes, &memory));
  taken_.push_back(memory);
  return memory;
}

void* Arena::Copy(const void* host, size_t bytes) {
  void* memory = Take(bytes);
  Check(table_.copy_to_device(device_, memory, host, bytes, nullptr));
  Check(table_.stream_synchronize(device_, nullptr));
  return memory;
}

void* Arena::Random(int64_t count, float scale) { return Copy(RandomValues(count, scale)); }

const std::vector<kernels::Weight>& ColdWeights::Get(int64_t n, int64_t k) {
  std::vector<kernels::Weight>& all = all_[{n, k}];
  if (!all.empty()) return all;
  const kernels::Table& t = arena_.table();
  const std::vector<uint16_t> rows = RandomValues(n * k, 1.0f / std::sqrt(static_cast<float>(k)));
  const uint64_t bytes = t.packed_bytes(arena_.device(), n, k, kernels::kBF16);
  all.assign(static_cast<size_t>(Turns(static_cast<double>(bytes))), kernels::Weight{nullptr, n, k, kernels::kBF16, 0, 0});
  for (kernels::Weight& weight : all) {
    arena_.Check(t.pack_weight(arena_.device(), &weight, rows.data(), arena_.Take(bytes), nullptr));
    arena_.Check(t.stream_synchronize(arena_.device(), nullptr));
  }
  return all;
}

}  // namespace phalanx::bench
