// kernels/cpu/pool.h: the threads of one device: they run numbered tasks and then wait for the next batch of them.
// Refuses to know: what the tasks are. Thread: Run is called by one thread at a time, which works too.
// Neighbours: gemm.cc, attention.cc and the others cut their work into tasks.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace phalanx::kernels::cpu {

// Cores that this process may use: the affinity mask, lowered by the cgroup's CPU quota (rounded up). At least 1.
int UsableCores();

class Pool {
 public:
  // `threads` in all, the caller's included (>= 1). Workers are pinned one to a core when every usable core has its own thread
  // and the operating system allows it.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs fn(context, task, thread) for every task in [0, tasks); thread is in [0, threads()). Tasks begin in falling order, on
  // whatever thread is free. Returns when all have ended. Does not allocate.
  using Function = void (*)(void* context, int task, int thread);
  void Run(int tasks, Function fn, void* context);

  // Run with a callable fn(task, thread).
  template <class Fn>
  void For(int tasks, Fn&& fn) {
    Run(tasks, [](void* context, int task, int thread) { (*static_cast<Fn*>(context))(task, thread); }, &fn);
  }

 private:
  void Work(int thread);
  bool TakeOne(int thread);

  // Tasks left, in the low half; the batch's number in the high half. Taking a task is a compare-and-swap of the whole word, so
  // a worker that slept through a batch cannot take a task with an old function: fn_ and context_ are read after the take, and
  // the batch cannot end before the taken task has.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int> done_{0};
  std::atomic<uint32_t> wake_{0};      // what sleepers wait on
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  Function fn_ = nullptr;
  void* context_ = nullptr;
  std::vector<std::thread> workers_;
};

}  // namespace phalanx::kernels::cpu
