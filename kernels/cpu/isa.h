// kernels/cpu/isa.h: which instruction set level this machine can run, and which one is asked for.
// Refuses to know: what the levels do. Thread: any. Neighbours: table.cc picks a Level with it.
#pragma once

#include <string_view>

#include "kernels/kernels.h"

namespace phalanx::kernels::cpu {

// The highest level that the CPU has and the operating system saves the registers of. For AMX it asks the kernel for permission
// (arch_prctl), which stays granted for the process. The answer is taken once.
CpuIsa DetectIsa();

// "auto", "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16" -> level. False for any other name.
bool ParseIsa(std::string_view name, CpuIsa* out);
const char* IsaName(CpuIsa isa);

// The level to use: what is detected, lowered by `cap` (kIsaAuto = no cap) and by the environment's PHALANX_CPU_ISA.
// False with a one-line reason when the environment names no level, or one that this machine cannot run.
bool ChooseIsa(CpuIsa cap, const char* environment, CpuIsa detected, CpuIsa* out, char* error, size_t error_size);

}  // namespace phalanx::kernels::cpu
