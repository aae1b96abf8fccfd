// The AVX512_BF16 level: as AVX-512, and bf16 x bf16 products by dot instructions.
#include "kernels/cpu/gemm_dot_impl.h"
#include "kernels/cpu/shape_avx512.h"

namespace phalanx::kernels::cpu {

const Level* Avx512Bf16Level() {
  static const Level level = [] {
    Level l = *Avx512Level();
    l.isa = kIsaAvx512Bf16;
    l.bf16 = {Shape::kRows, Shape::Panels(Shape::kRows), 2, PackXPairs, DotByRows<Shape>};
    return l;
  }();
  return &level;
}

}  // namespace phalanx::kernels::cpu
