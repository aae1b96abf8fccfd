// kernels/cpu/shape_avx512.h: tile shapes for thirty-two registers of sixteen floats: up to 24 sums, 2 weights, 1 broadcast.
// Refuses to know: instructions. Thread: any. Neighbours: the three AVX-512 levels share it.
#pragma once

namespace {
struct Shape {
  static constexpr int kRows = 12;
  static constexpr int Panels(int rows) { return rows == 1 ? 8 : rows <= 6 ? 4 : 2; }
};
}  // namespace
