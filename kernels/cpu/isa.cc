#include "kernels/cpu/isa.h"

#include <cstdint>
#include <cstdio>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace phalanx::kernels::cpu {
namespace {

constexpr const char* kNames[] = {"auto", "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"};

#if defined(__x86_64__)

// Extended control register 0: which register files the operating system saves.
uint64_t Xcr0() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool RequestAmxPermission() {
  constexpr long kArchRequestXcompPermission = 0x1023, kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchRequestXcompPermission, kXfeatureTileData) == 0;
}

CpuIsa Detect() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return kIsaPortable;
  const bool fma = c & (1u << 12), osxsave = c & (1u << 27), avx = c & (1u << 28);
  if (!fma || !osxsave || !avx) return kIsaPortable;
  const uint64_t saved = Xcr0();
  if ((saved & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return kIsaPortable;
  if (!(b & (1u << 5))) return kIsaPortable;  // AVX2
  const uint32_t leaf7_b = b, leaf7_d = d;
  constexpr uint32_t kAvx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
  if ((leaf7_b & kAvx512) != kAvx512 || (saved & 0xe6) != 0xe6) return kIsaAvx2;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5))) return kIsaAvx512;  // AVX512_BF16
  const bool amx = (leaf7_d & (1u << 22)) && (leaf7_d & (1u << 24));                    // AMX-BF16, AMX-TILE
  if (!amx || (saved & 0x60000) != 0x60000 || !RequestAmxPermission()) return kIsaAvx512Bf16;
  return kIsaAmxBf16;
}

#else
CpuIsa Detect() { return kIsaPortable; }
#endif

}  // namespace

CpuIsa DetectIsa() {
  static const CpuIsa detected = Detect();
  return detected;
}

bool ParseIsa(std::string_view name, CpuIsa* out) {
  for (int i = 0; i <= kIsaAmxBf16; ++i) {
    if (name != kNames[i]) continue;
    *out = static_cast<CpuIsa>(i);
    return true;
  }
  return false;
}

const char* IsaName(CpuIsa isa) { return isa >= 0 && isa <= kIsaAmxBf16 ? kNames[isa] : "unknown"; }

bool ChooseIsa(CpuIsa cap, const char* environment, CpuIsa detected, CpuIsa* out, char* error, size_t error_size) {
  *out = detected;
  if (cap < kIsaAuto || cap > kIsaAmxBf16) {
    std::snprintf(error, error_size, "isa_cap %d is no instruction set level", static_cast<int>(cap));
    return false;
  }
  if (cap != kIsaAuto && cap < *out) *out = cap;
  if (environment == nullptr || environment[0] == '\0') return true;
  CpuIsa wanted = kIsaAuto;
  if (!ParseIsa(environment, &wanted)) {
    std::snprintf(error, error_size, "PHALANX_CPU_ISA=%s: not one of auto, portable, avx2, avx512, avx512_bf16, amx_bf16", environment);
    return false;
  }
  if (wanted > detected) {
    std::snprintf(error, error_size, "PHALANX_CPU_ISA=%s: this machine has no more than %s", environment, IsaName(detected));
    return false;
  }
  if (wanted != kIsaAuto && wanted < *out) *out = wanted;
  return true;
}

}  // namespace phalanx::kernels::cpu
