// The AVX2 + FMA level: eight floats, sixteen registers. A full tile is 6 rows x 16 outputs: 12 sums, 2 weights, 1 broadcast.
#include "kernels/cpu/vec_avx2.h"
#include "kernels/cpu/level_impl.h"

namespace {
struct Shape {
  static constexpr int kRows = 6;
  static constexpr int Panels(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
};
}  // namespace

namespace phalanx::kernels::cpu {

const Level* Avx2Level() {
  static const Level level = MakeLevel<VecAvx2, Shape>(kIsaAvx2);
  return &level;
}

}  // namespace phalanx::kernels::cpu
