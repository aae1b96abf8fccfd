// kernels/cpu/device.h: the CPU device: its level, its threads, its scratch memory; and the operations of the table.
// Refuses to know: models, requests. Thread: one caller at a time. Neighbours: table.cc fills the table with these functions.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/cpu/level.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/slabs.h"

namespace phalanx::kernels::cpu {

// A buffer that only grows.
class Scratch {
 public:
  Scratch() = default;
  Scratch(Scratch&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr, other.bytes_ = 0; }
  Scratch& operator=(Scratch&&) = delete;
  ~Scratch() { std::free(data_); }
  // At least `bytes` bytes, 64-byte aligned; null when there is no memory. What was in it is lost.
  template <class T = char>
  T* Get(size_t bytes) {
    if (bytes > bytes_) {
      std::free(data_);
      bytes_ = (bytes + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(64, bytes_);
      if (data_ == nullptr) bytes_ = 0;
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace phalanx::kernels::cpu

namespace phalanx::kernels {

struct Device {
  Device(const cpu::Level* chosen, int threads) : level(chosen), pool(threads), thread_scratch(static_cast<size_t>(threads)) {}

  const cpu::Level* level;
  cpu::Pool pool;
  cpu::Slabs slabs;                          // what alloc gave out
  cpu::Scratch shared;                       // one operation's common buffer
  std::vector<cpu::Scratch> thread_scratch;  // one a thread
  char error[192] = "no error";

  // Keeps the reason and returns the code.
  Code Fail(Code code, const char* format, ...) __attribute__((format(printf, 3, 4))) {
    va_list list;
    va_start(list, format);
    std::vsnprintf(error, sizeof(error), format, list);
    va_end(list);
    return code;
  }

  // Gives every thread at least `bytes` of scratch before tasks start, so that no task can fail. False: no memory.
  bool ReserveThreads(size_t bytes) {
    for (cpu::Scratch& s : thread_scratch) {
      if (s.Get(bytes) == nullptr) return false;
    }
    return true;
  }
};

}  // namespace phalanx::kernels

namespace phalanx::kernels::cpu {

inline bool IsModelDType(DType dtype) { return dtype == kF32 || dtype == kBF16; }
inline int64_t Rows(const Tensor& t) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < t.rank; ++i) rows *= t.shape[i];
  return rows;
}
inline int64_t Columns(const Tensor& t) { return t.rank < 1 ? 0 : t.shape[t.rank - 1]; }

// The leading dimensions of a tensor as one row dimension with one stride; false if its strides do not allow that.
inline bool RowStride(const Tensor& t, int64_t* stride) {
  if (t.rank < 1 || t.rank > kMaxRank || t.stride[t.rank - 1] != 1) return false;
  *stride = t.rank == 1 ? t.shape[0] : t.stride[t.rank - 2];
  for (int i = t.rank - 3; i >= 0; --i) {
    if (t.shape[i] > 1 && t.stride[i] != t.stride[i + 1] * t.shape[i + 1]) return false;
  }
  return true;
}
inline char* At(const Tensor& t, int64_t element) {
  return static_cast<char*>(t.data) + element * static_cast<int64_t>(DTypeBytes(t.dtype));
}

Code Embedding(Device* device, const Weight* weight, const int32_t* ids, Tensor out, Stream);
Code RmsNorm(Device* device, Tensor x, const void* gamma, float epsilon, Tensor out, Stream);
Code AddRmsNorm(Device* device, Tensor residual, Tensor x, const void* gamma, float epsilon, Tensor out, Stream);
Code Linear(Device* device, const LinearArgs* args, Stream);
Code RopeAppend(Device* device, const RopeAppendArgs* args, const StepLayout* layout, Stream);
Code Attention(Device* device, const AttentionArgs* args, const StepLayout* layout, Stream);
Code SiluMul(Device* device, Tensor gate_up, Tensor out, Stream);
Code GatherRows(Device* device, Tensor x, const int32_t* rows, Tensor out, Stream);
Code TakeIds(Device* device, int32_t* ids, const int32_t* from, const int32_t* taken, int32_t count, Stream stream);
Code SamplingStateSet(Device* device, int32_t width, uint32_t* prompt_seen, int32_t* output_counts, int32_t state,
                      const int32_t* prompt_ids, int32_t num_prompt, const int32_t* output_ids, int32_t num_output, Stream);
Code Sample(Device* device, const SampleArgs* args, Stream);
Code Logprobs(Device* device, const LogprobArgs* args, Stream);

}  // namespace phalanx::kernels::cpu
