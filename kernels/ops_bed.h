// kernels/ops_bed.h: what the conformance tests stand on: devices under test, the twin, random operands, comparisons.
// Refuses to know: any one operation. Thread: the test's. Neighbours: ops_test.cc, ops_sampling_test.cc.
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace phalanx::kernels::testing {

inline float FromBf16(uint16_t h) {
  uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint16_t ToBf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Host values of one dtype.
struct Values {
  DType dtype = kF32;
  std::vector<char> bytes;
  int64_t size() const { return static_cast<int64_t>(bytes.size() / DTypeBytes(dtype)); }
  float at(int64_t i) const {
    if (dtype == kF32) return reinterpret_cast<const float*>(bytes.data())[i];
    return FromBf16(reinterpret_cast<const uint16_t*>(bytes.data())[i]);
  }
  void set(int64_t i, float v) {
    if (dtype == kF32) {
      reinterpret_cast<float*>(bytes.data())[i] = v;
    } else {
      reinterpret_cast<uint16_t*>(bytes.data())[i] = ToBf16(v);
    }
  }
};

inline Values Filled(DType dtype, int64_t n, float value) {
  Values v{dtype, std::vector<char>(static_cast<size_t>(n) * DTypeBytes(dtype))};
  for (int64_t i = 0; i < n; ++i) v.set(i, value);
  return v;
}
inline Values Random(std::mt19937* rng, DType dtype, int64_t n, float scale = 1.0f) {
  Values v = Filled(dtype, n, 0);
  std::normal_distribution<float> normal(0, scale);
  for (int64_t i = 0; i < n; ++i) v.set(i, normal(*rng));
  return v;
}

// One device and everything that was allocated on it.
class Bed {
 public:
  Bed(const Table* table, DeviceOptions options) : table_(table) {
    char error[256] = "";
    code_ = table->create(&options, &device_, error, sizeof(error));
    EXPECT_EQ(code_, kOk) << error;
  }
  ~Bed() {
    for (void* memory : owned_) table_->free(device_, memory);
    if (code_ == kOk) table_->destroy(device_);
  }
  Bed(const Bed&) = delete;

  const Table* operator->() const { return table_; }
  Device* device() const { return device_; }
  const char* error() const { return table_->last_error(device_); }

  template <class T = char>
  T* Put(const void* host, size_t bytes) {
    void* memory = nullptr;
    EXPECT_EQ(table_->alloc(device_, bytes, &memory), kOk);
    owned_.push_back(memory);
    EXPECT_EQ(table_->copy_to_device(device_, memory, host, bytes, nullptr), kOk);
    return static_cast<T*>(memory);
  }
  void* Put(const Values& v) { return Put(v.bytes.data(), v.bytes.size()); }
  template <class T>
  T* PutAll(const std::vector<T>& v) {
    return Put<T>(v.data(), v.size() * sizeof(T));
  }
  Values Get(const void* memory, DType dtype, int64_t n) {
    Values v{dtype, std::vector<char>(static_cast<size_t>(n) * DTypeBytes(dtype))};
    EXPECT_EQ(table_->copy_to_host(device_, v.bytes.data(), memory, v.bytes.size(), nullptr), kOk);
    EXPECT_EQ(table_->stream_synchronize(device_, nullptr), kOk);
    return v;
  }
  template <class T>
  std::vector<T> GetAll(const T* memory, int64_t n) {
    std::vector<T> v(static_cast<size_t>(n));
    EXPECT_EQ(table_->copy_to_host(device_, v.data(), memory, v.size() * sizeof(T), nullptr), kOk);
    EXPECT_EQ(table_->stream_synchronize(device_, nullptr), kOk);
    return v;
  }
  Weight Pack(const Values& rows, int64_t n, int64_t k) {
    Weight w{nullptr, n, k, rows.dtype, 0, 0};
    void* memory = nullptr;
    EXPECT_EQ(table_->alloc(device_, table_->packed_bytes(device_, n, k, rows.dtype), &memory), kOk);
    owned_.push_back(memory);
    EXPECT_EQ(table_->pack_weight(device_, &w, rows.bytes.data(), memory, nullptr), kOk);
    EXPECT_EQ(table_->stream_synchronize(device_, nullptr), kOk);
    return w;
  }

 private:
  const Table* table_;
  Device* device_ = nullptr;
  Code code_ = kOk;
  std::vector<void*> owned_;
};

// A table with options, under a name for messages.
struct Subject {
  std::string name;
  const Table* table;
  DeviceOptions options;
  bool same_bits;  // promises bits that do not depend on the batch or the threads
};

// PHALANX_OPS_PLUGIN=<shared object> puts that back end in the place of the CPU.
inline const Table* PluginTable() {
  const char* path = std::getenv("PHALANX_OPS_PLUGIN");
  if (path == nullptr) return nullptr;
  void* object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (object == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(1);
  }
  auto entry = reinterpret_cast<const Table* (*)(uint32_t)>(dlsym(object, "PhalanxKernelTable"));
  const Table* table = entry == nullptr ? nullptr : entry(kTableVersion);
  if (table == nullptr || table->version != kTableVersion) {
    std::fprintf(stderr, "%s gives no table of version %u\n", path, kTableVersion);
    std::exit(1);
  }
  return table;
}

// Every level this machine can run, with several threads; levels it lacks are named on stderr.
inline const std::vector<Subject>& Subjects() {
  static const std::vector<Subject> subjects = [] {
    std::vector<Subject> all;
    if (const Table* plugin = PluginTable()) {
      all.push_back({plugin->name, plugin, DeviceOptions{}, false});
      return all;
    }
    const char* names[] = {"", "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
    for (int isa = kIsaPortable; isa <= kIsaAmxBf16; ++isa) {
      Subject s{names[isa], CpuTable(), DeviceOptions{0, 3, isa}, true};
      Device* device = nullptr;
      char error[256] = "";
      DeviceInfo info{};
      bool there = s.table->create(&s.options, &device, error, sizeof(error)) == kOk;
      if (there) {
        s.table->info(device, &info);
        there = info.isa == isa;
        s.table->destroy(device);
      }
      std::fprintf(stderr, "%s %s %s\n", there ? "[  LEVEL   ]" : "[ NO LEVEL ]", s.name.c_str(),
                   there ? "is tested" : "IS NOT TESTED: this machine cannot run it");
      if (there) all.push_back(s);
    }
    return all;
  }();
  return subjects;
}

// |got - want| <= absolute + relative * |want|, with NaN equal to NaN.
inline void ExpectClose(const Values& got, const Values& want, float absolute, float relative, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (int64_t i = 0; i < want.size(); ++i) {
    const float g = got.at(i), w = want.at(i);
    if (std::isnan(g) && std::isnan(w)) continue;
    if (g == w || std::fabs(g - w) <= absolute + relative * std::fabs(w)) continue;
    FAIL() << what << ": element " << i << " is " << g << ", the twin has " << w;
  }
}

// Half a bf16 step either way, or f32 sums in another order.
inline float Relative(DType dtype) { return dtype == kBF16 ? 0.0085f : 2e-5f; }

}  // namespace phalanx::kernels::testing
