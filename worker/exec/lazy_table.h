// worker/exec/lazy_table.h: the CPU table behind a stream that does nothing until somebody waits, with graphs: a GPU's manners on a laptop.
// Refuses to know: models, plans. Thread: the test's engine thread; one device at a time in a process.
// Neighbours: executor tests run on it what a GPU would run.
//
// Operations are kept as closures and run at event_wait or stream_synchronize, in order. A copy from memory of `host_alloc` reads it
// then, so a staging buffer that is filled again too early shows; other host memory is read at once, as pageable memory is on a GPU. A
// graph is a list of closures with the arguments of its recording, so an address or a size that should not have been baked in shows.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/kernels.h"

namespace phalanx::worker::exec {

class LazyStream {
 public:
  using Work = std::function<kernels::Code()>;
  static LazyStream& Get() {
    static LazyStream stream;
    return stream;
  }

  kernels::Code Add(Work work) {
    (recording_ != nullptr ? *recording_ : queue_).push_back(std::move(work));
    return kernels::kOk;
  }
  // Runs what is there, up to and with an event.
  kernels::Code RunUntil(kernels::Event event) {
    while (!queue_.empty() && happened_[event] == 0) RunFirst();
    return code_;
  }
  kernels::Code RunAll() {
    while (!queue_.empty()) RunFirst();
    return code_;
  }
  void Reset() { *this = LazyStream{}; }

  std::map<const char*, size_t> host_memory;  // what host_alloc gave
  int graphs_launched = 0;
  int steps_waited_with_work_behind = 0;      // waits that left later work in the queue

  bool InHostMemory(const void* at) const {
    const auto after = host_memory.upper_bound(static_cast<const char*>(at));
    if (after == host_memory.begin()) return false;
    const auto& [begin, bytes] = *std::prev(after);
    return static_cast<const char*>(at) < begin + bytes;
  }
  kernels::Code RecordEvent(kernels::Event event) {
    happened_[event] = 0;
    return Add([this, event] { return happened_[event] = 1, kernels::kOk; });
  }
  kernels::Code Wait(kernels::Event event) {
    const kernels::Code code = RunUntil(event);
    steps_waited_with_work_behind += !queue_.empty();
    return code;
  }
  kernels::Code Begin() {
    if (recording_ != nullptr) return kernels::kDeviceError;
    recording_ = std::make_unique<std::deque<Work>>();
    return kernels::kOk;
  }
  kernels::Code End(kernels::Graph* out) {
    graphs_.push_back(std::move(*recording_));
    recording_.reset();
    *out = reinterpret_cast<kernels::Graph>(graphs_.size());
    return kernels::kOk;
  }
  kernels::Code LaunchGraph(kernels::Graph graph) {
    ++graphs_launched;
    const auto& works = graphs_[reinterpret_cast<size_t>(graph) - 1];
    queue_.insert(queue_.end(), works.begin(), works.end());
    return kernels::kOk;
  }

 private:
  void RunFirst() {
    const Work work = std::move(queue_.front());
    queue_.pop_front();
    if (const kernels::Code code = work(); code != kernels::kOk && code_ == kernels::kOk) code_ = code;
  }

  std::deque<Work> queue_;
  std::unique_ptr<std::deque<Work>> recording_;
  std::vector<std::deque<Work>> graphs_;
  std::map<kernels::Event, int> happened_;
  kernels::Code code_ = kernels::kOk;
};

namespace lazy {

using kernels::Code;
using kernels::Device;
using kernels::Event;
using kernels::Stream;
using kernels::Table;

// An argument as a closure keeps it: descriptions by value, addresses of device memory as they are.
template <typename T>
struct Held {
  T value;
  T get() const { return value; }
};
template <typename T>
  requires(std::is_class_v<T>)
struct Held<const T*> {
  explicit Held(const T* from) : value(*from) {}
  T value;
  const T* get() const { return &value; }
};

// The CPU table's operation `member`, put off.
template <auto member>
struct Later;
template <typename... Args, Code (*Table::*member)(Device*, Args...)>
struct Later<member> {
  static Code Call(Device* device, Args... args) {
    return LazyStream::Get().Add([device, held = std::make_tuple(Held<Args>{args}...)] {
      return std::apply([&](const auto&... each) { return (kernels::CpuTable()->*member)(device, each.get()...); }, held);
    });
  }
};

inline std::shared_ptr<std::string> Snapshot(const void* from, size_t bytes) {
  return std::make_shared<std::string>(static_cast<const char*>(from), bytes);
}

inline Code CopyToDevice(Device* device, void* to, const void* from, size_t bytes, Stream stream) {
  LazyStream& lazy = LazyStream::Get();
  if (bytes == 0) return kernels::kOk;
  if (lazy.InHostMemory(from)) {
    return lazy.Add([=] { return kernels::CpuTable()->copy_to_device(device, to, from, bytes, stream); });
  }
  return lazy.Add([=, kept = Snapshot(from, bytes)] { return kernels::CpuTable()->copy_to_device(device, to, kept->data(), bytes, stream); });
}

inline Code SamplingStateSet(Device* device, int32_t width, uint32_t* prompt_seen, int32_t* output_counts, int32_t state,
                             const int32_t* prompt_ids, int32_t num_prompt, const int32_t* output_ids, int32_t num_output, Stream stream) {
  const std::vector<int32_t> prompt(prompt_ids, prompt_ids + num_prompt), output(output_ids, output_ids + num_output);
  return LazyStream::Get().Add([=] {
    return kernels::CpuTable()->sampling_state_set(device, width, prompt_seen, output_counts, state, prompt.data(), num_prompt,
                                                   output.data(), num_output, stream);
  });
}

inline Code HostAlloc(Device* device, size_t bytes, void** out) {
  const Code code = kernels::CpuTable()->host_alloc(device, bytes, out);
  if (code == kernels::kOk) LazyStream::Get().host_memory[static_cast<const char*>(*out)] = bytes;
  return code;
}

inline void HostFree(Device* device, void* memory) {
  LazyStream::Get().host_memory.erase(static_cast<const char*>(memory));
  kernels::CpuTable()->host_free(device, memory);
}

inline Code PackWeight(Device* device, kernels::Weight* weight, const void* rows, void* to, Stream stream) {
  LazyStream::Get().RunAll();
  return kernels::CpuTable()->pack_weight(device, weight, rows, to, stream);
}

inline Code EventCreate(Device*, Event* out) {
  static intptr_t made = 0;
  return *out = reinterpret_cast<Event>(++made), kernels::kOk;
}

}  // namespace lazy

inline const kernels::Table* LazyTable() {
  static const kernels::Table table = [] {
    using kernels::Table;
    Table t = *kernels::CpuTable();
    t.host_alloc = lazy::HostAlloc;
    t.host_free = lazy::HostFree;
    t.copy_to_device = lazy::CopyToDevice;
    t.copy_to_host = lazy::Later<&Table::copy_to_host>::Call;
    t.fill_zero = lazy::Later<&Table::fill_zero>::Call;
    t.stream_synchronize = [](auto*, auto*) { return LazyStream::Get().RunAll(); };
    t.event_create = lazy::EventCreate;
    t.event_destroy = [](auto*, auto*) {};
    t.event_record = [](auto*, kernels::Event event, auto*) { return LazyStream::Get().RecordEvent(event); };
    t.event_wait = [](auto*, kernels::Event event) { return LazyStream::Get().Wait(event); };
    t.graph_begin = [](auto*, auto*) { return LazyStream::Get().Begin(); };
    t.graph_end = [](auto*, auto*, kernels::Graph* out) { return LazyStream::Get().End(out); };
    t.graph_launch = [](auto*, kernels::Graph graph, auto*) { return LazyStream::Get().LaunchGraph(graph); };
    t.graph_destroy = [](auto*, auto*) {};
    t.pack_weight = lazy::PackWeight;
    t.embedding = lazy::Later<&Table::embedding>::Call;
    t.rms_norm = lazy::Later<&Table::rms_norm>::Call;
    t.add_rms_norm = lazy::Later<&Table::add_rms_norm>::Call;
    t.linear = lazy::Later<&Table::linear>::Call;
    t.rope_append = lazy::Later<&Table::rope_append>::Call;
    t.attention = lazy::Later<&Table::attention>::Call;
    t.silu_mul = lazy::Later<&Table::silu_mul>::Call;
    t.gather_rows = lazy::Later<&Table::gather_rows>::Call;
    t.sampling_state_set = lazy::SamplingStateSet;
    t.sample = lazy::Later<&Table::sample>::Call;
    t.logprobs = lazy::Later<&Table::logprobs>::Call;
    t.take_ids = lazy::Later<&Table::take_ids>::Call;
    t.rope_attention = nullptr;
    return t;
  }();
  return &table;
}

}  // namespace phalanx::worker::exec
