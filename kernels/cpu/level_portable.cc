// The level for any CPU: four floats in compiler vectors.
#include "kernels/cpu/vec_portable.h"
#include "kernels/cpu/level_impl.h"

namespace {
struct Shape {
  static constexpr int kRows = 2;
  static constexpr int Panels(int) { return 1; }
};
}  // namespace

namespace phalanx::kernels::cpu {

const Level* PortableLevel() {
  static const Level level = MakeLevel<VecPortable, Shape>(kIsaPortable);
  return &level;
}

}  // namespace phalanx::kernels::cpu
