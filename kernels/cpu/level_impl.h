// kernels/cpu/level_impl.h: puts the templates together into a Level.
// Refuses to know: which instructions they become. Thread: any. Neighbours: included last by each level_*.cc.
#pragma once

#include "kernels/cpu/attention_impl.h"
#include "kernels/cpu/gemm_impl.h"
#include "kernels/cpu/level.h"
#include "kernels/cpu/rows_impl.h"

namespace {

// `Shape` says how many panels a tile of so many rows takes, so that sums fill the registers and hide the latency of fma:
//   static constexpr int kRows; static constexpr int Panels(int rows);
template <class V, class Shape, bool kPair, int Rows = Shape::kRows>
void FmaByRows(const TileArgs& a) {
  if constexpr (Rows > 0) {
    if (a.rows == Rows) {
      FmaTiles<V, Rows, Shape::Panels(Rows), kPair>(a);
    } else {
      FmaByRows<V, Shape, kPair, Rows - 1>(a);
    }
  }
}

template <class V, class Shape, bool kPair>
constexpr GemmKernel FmaKernel() {
  return {Shape::kRows, Shape::Panels(Shape::kRows), 4, PackXFloat<V>, FmaByRows<V, Shape, kPair>};
}

template <class V, class Shape>
phalanx::kernels::cpu::Level MakeLevel(phalanx::kernels::CpuIsa isa) {
  phalanx::kernels::cpu::Level level{};
  level.isa = isa;
  level.bf16 = level.bf16_f32x = FmaKernel<V, Shape, true>();
  level.f32 = FmaKernel<V, Shape, false>();
  level.finish = FinishRow<V>;
  level.rms_norm = RmsNormRow<V>;
  level.add = AddRow<V>;
  level.silu_mul = SiluMulRow<V>;
  level.rope = RopeRow<V>;
  level.to_f32 = ToFloat<V>;
  level.from_f32 = FromFloat<V>;
  level.load_heads = LoadHeads<V>;
  level.store_head = StoreHead<V>;
  level.attention_chunk = AttentionChunk<V>;
  level.attention_merge = AttentionMerge<V>;
  level.row_max = RowMax<V>;
  level.exp_sum = ExpSum<V>;
  level.exp_shift = ExpShift<V>;
  level.count_above = CountAbove<V>;
  level.collect = Collect<V>;
  level.philox = PhiloxRow<V>;
  level.within_reach = WithinReach<V>;
  level.divide = DivideRow<V>;
  level.read_bytes = ReadBytes<V>;
  level.fma_loop = FmaLoop<V>;
  return level;
}

}  // namespace
