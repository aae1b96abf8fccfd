#include "kernels/cpu/pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

namespace phalanx::kernels::cpu {
namespace {

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Between two operations of one step lie microseconds: a worker spins that long, then sleeps, so that idle engines cost nothing.
constexpr auto kSpin = std::chrono::microseconds(60);

// cgroup v2 "max 100000" or "200000 100000"; v1 has two files. 0 = no limit.
int QuotaCores() {
  double quota = 0, period = 0;
  char word[32];
  if (FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%31s %lf", word, &period) == 2 && std::strcmp(word, "max") != 0) quota = std::atof(word);
    std::fclose(file);
  } else if (FILE* v1 = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
    if (std::fscanf(v1, "%lf", &quota) != 1) quota = 0;
    std::fclose(v1);
    if (FILE* p = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
      if (std::fscanf(p, "%lf", &period) != 1) period = 0;
      std::fclose(p);
    }
  }
  if (quota <= 0 || period <= 0) return 0;
  return static_cast<int>((quota + period - 1) / period);
}

}  // namespace

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(std::thread::hardware_concurrency());
  if (int quota = QuotaCores(); quota > 0) cores = std::min(cores, quota);
  return std::max(cores, 1);
}

Pool::Pool(int threads) {
  cpu_set_t usable;
  CPU_ZERO(&usable);
  const bool pin = sched_getaffinity(0, sizeof(usable), &usable) == 0 && threads == CPU_COUNT(&usable) && threads == UsableCores();
  int core = -1;
  auto next_core = [&] {
    do {
      ++core;
    } while (core < CPU_SETSIZE && !CPU_ISSET(core, &usable));
    return core;
  };
  if (pin) next_core();  // the first one stays for the caller, who is not ours to pin
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i] { Work(i); });
    if (!pin) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(next_core(), &one);
    pthread_setaffinity_np(workers_.back().native_handle(), sizeof(one), &one);  // not allowed: it floats
  }
}

Pool::~Pool() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

bool Pool::TakeOne(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(ticket) != 0) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
    fn_(context_, static_cast<int>(static_cast<uint32_t>(ticket) - 1), thread);
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }
  return false;
}

void Pool::Work(int thread) {
  while (!stop_.load(std::memory_order_relaxed)) {
    if (TakeOne(thread)) continue;
    const auto until = std::chrono::steady_clock::now() + kSpin;
    bool found = false;
    while (!found && std::chrono::steady_clock::now() < until) {
      for (int i = 0; i < 64 && !found; ++i) {
        Pause();
        found = static_cast<uint32_t>(ticket_.load(std::memory_order_relaxed)) != 0;
      }
    }
    if (found) continue;
    const uint32_t seen = wake_.load();
    sleepers_.fetch_add(1);
    // A batch that came before the sleeper was counted is seen here; one that comes later sees the sleeper and wakes it.
    if (static_cast<uint32_t>(ticket_.load()) == 0 && !stop_.load()) wake_.wait(seen);
    sleepers_.fetch_sub(1);
  }
}

void Pool::Run(int tasks, Function fn, void* context) {
  if (tasks <= 0) return;
  if (workers_.empty() || tasks == 1) {
    for (int i = tasks - 1; i >= 0; --i) fn(context, i, 0);
    return;
  }
  fn_ = fn;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t batch = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store((batch << 32) | static_cast<uint32_t>(tasks));
  if (sleepers_.load() > 0) {
    wake_.fetch_add(1);
    wake_.notify_all();
  }
  while (TakeOne(0)) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) != tasks; ++spins) {
    Pause();
    if (spins > 2000) std::this_thread::yield();  // a worker lost its core in mid-task
  }
}

}  // namespace phalanx::kernels::cpu
