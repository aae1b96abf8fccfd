#include "bench/kernels_roof.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/cpu/pool.h"

namespace phalanx::bench {
namespace {

using kernels::cpu::Level;
using kernels::cpu::Pool;

constexpr int64_t kReadBytes = int64_t{384} << 20;  // several times a large L3 slice
constexpr int kReadPasses = 9;
constexpr int64_t kFmaRounds = 4'000'000;  // about 10 ms
constexpr int kFmaPasses = 15;

std::atomic<float> g_sink{0};  // keeps results alive

double Seconds(Clock clock) {
  timespec t;
  clock_gettime(clock == Clock::kThread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

void ProbeRead(Clock clock, const Level& level, Pool& pool, Roof* roof) {
  const int64_t part = kReadBytes / pool.threads() / 4096 * 4096;
  std::unique_ptr<char, void (*)(void*)> buffer(static_cast<char*>(std::aligned_alloc(2 << 20, kReadBytes)), std::free);
  if (buffer == nullptr) return;
  madvise(buffer.get(), kReadBytes, MADV_HUGEPAGE);  // as the back end's own memory
  pool.For(pool.threads(), [&](int task, int) { std::fill_n(buffer.get() + task * part, part, char{1}); });
  std::vector<double> rates;
  for (int pass = 0; pass < kReadPasses; ++pass) {
    const double begin = Seconds(clock);
    pool.For(pool.threads(), [&](int task, int) { g_sink = static_cast<float>(level.read_bytes(buffer.get() + task * part, part)); });
    rates.push_back(static_cast<double>(part * pool.threads()) / (Seconds(clock) - begin));
  }
  roof->read_bytes = *std::max_element(rates.begin(), rates.end());
  roof->read_bytes_median = Median(rates);
}

void ProbeFma(Clock clock, const Level& level, Pool& pool, Roof* roof) {
  std::vector<double> rates;
  for (int pass = 0; pass < kFmaPasses; ++pass) {
    std::vector<double> done(pool.threads());
    const double begin = Seconds(clock);
    pool.For(pool.threads(), [&](int task, int) {
      float sink = 0.5f;
      done[task] = level.fma_loop(kFmaRounds, &sink);
      g_sink = sink;
    });
    const double seconds = Seconds(clock) - begin;
    double flops = 0;
    for (double d : done) flops += d;
    rates.push_back(flops / seconds);
  }
  roof->fma_flops = *std::max_element(rates.begin(), rates.end());
  roof->fma_flops_median = Median(rates);
}

}  // namespace

Timing Measure(Clock clock, double budget_s, const std::function<void(int repeat)>& call) {
  call(0);
  std::vector<double> times;
  const double until = Seconds(clock) + budget_s;
  for (int i = 1; i <= 5 || Seconds(clock) < until; ++i) {
    const double begin = Seconds(clock);
    call(i);
    times.push_back(Seconds(clock) - begin);
  }
  std::sort(times.begin(), times.end());
  const size_t last = times.size() - 1;
  return {times[times.size() / 2], times[last / 10], times[last - last / 10], static_cast<int>(times.size())};
}

Roof ProbeRoof(Clock clock, const Level& level, int threads) {
  Pool pool(threads);
  Roof roof;
  ProbeRead(clock, level, pool, &roof);
  ProbeFma(clock, level, pool, &roof);
  return roof;
}

const Level* FindLevel(int32_t isa) {
  switch (isa) {
    case kernels::kIsaAmxBf16: return kernels::cpu::AmxLevel();
    case kernels::kIsaAvx512Bf16: return kernels::cpu::Avx512Bf16Level();
    case kernels::kIsaAvx512: return kernels::cpu::Avx512Level();
    case kernels::kIsaAvx2: return kernels::cpu::Avx2Level();
    default: return kernels::cpu::PortableLevel();
  }
}

}  // namespace phalanx::bench
