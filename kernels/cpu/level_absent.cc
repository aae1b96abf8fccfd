// Stand-ins for the x86 levels on other architectures: isa.cc never detects them there.
#include "kernels/cpu/level.h"

namespace phalanx::kernels::cpu {

const Level* Avx2Level() { return nullptr; }
const Level* Avx512Level() { return nullptr; }
const Level* Avx512Bf16Level() { return nullptr; }
const Level* AmxLevel() { return nullptr; }

}  // namespace phalanx::kernels::cpu
