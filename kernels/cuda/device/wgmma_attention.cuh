// kernels/cuda/device/wgmma_attention.cuh: the two products of attention on one warpgroup's tensor cores, bf16 with f32 sums.
// Refuses to know: softmax, masks, pages. Thread: device code, the four warps of a warpgroup together; sm_90a only.
// Neighbours: attention_prefill_wgmma.cu; fences and waits are in wgmma.cuh.
//
// Tiles in shared memory are panels of 64 columns: rows of 128 bytes with the 128-byte swizzle, a panel after the other. Sums of warp w
// and lane l, with row = 16 w + l / 4 and pair = 2 (l % 4): d[4 j], d[4 j + 1] at (row, 8 j + pair) and the next; d[4 j + 2], d[4 j + 3]
// the same at row + 8. So sums 8 i .. 8 i + 7, packed in pairs, are the left operand for the i-th sixteen columns of the next product.
// Source: PTX ISA 9.0, "wgmma.mma_async", matrix descriptors.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/wgmma.cuh"

namespace phalanx::kernels::cuda {

// A panel read across its columns, from a multiple of 1024 bytes; sixteen columns further is 2 more, as in WgmmaOperand.
__device__ __forceinline__ uint64_t AcrossColumns(uint32_t shared) { return WgmmaOperand(shared); }
// Panels read down their rows: the columns are the product's, `panel_bytes` from one 64 of them to the next.
__device__ __forceinline__ uint64_t DownRows(uint32_t shared, uint32_t panel_bytes) {
  constexpr uint64_t kEightRows = 1024 / 16, kSwizzle128 = 1;
  const uint64_t start = (shared & 0x3ffff) >> 4, panel = panel_bytes >> 4;
  return start | panel << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

// Keeps the compiler from moving uses of values that a product in the background reads or writes across this place.
template <int kN>
__device__ __forceinline__ void Pin(float (&values)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int kN>
__device__ __forceinline__ void Pin(uint32_t (&values)[kN][4]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+r"(values[i][0]), "+r"(values[i][1]), "+r"(values[i][2]), "+r"(values[i][3])::"memory");
}

#define PHALANX_D32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define PHALANX_D64 PHALANX_D32 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PHALANX_D80 PHALANX_D64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define PHALANX_D96 PHALANX_D80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define PHALANX_D128 PHALANX_D96 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PHALANX_V8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define PHALANX_V64 PHALANX_V8(0), PHALANX_V8(8), PHALANX_V8(16), PHALANX_V8(24)
#define PHALANX_V80 PHALANX_V64, PHALANX_V8(32)
#define PHALANX_V96 PHALANX_V80, PHALANX_V8(40)
#define PHALANX_V128 PHALANX_V96, PHALANX_V8(48), PHALANX_V8(56)

// d = a * b^T, or d += with `add`: a [64, 16], b [128, 16], both AcrossColumns.
__device__ __forceinline__ void MultiplyScores(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n"
      " .reg .pred add;\n"
      " setp.ne.b32 add, %66, 0;\n"
      " wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" PHALANX_D128 "}, %64, %65, add, 1, 1, 0, 0;\n"
      "}\n"
      : PHALANX_V128
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// d += a * b: a [64, 16] in registers, b [16, kN] DownRows.
template <int kN>
__device__ __forceinline__ void MultiplyValues(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b);

#define PHALANX_VALUES(n, a0, a1, a2, a3, operand_b)                                                                    \
  template <>                                                                                                           \
  __device__ __forceinline__ void MultiplyValues<n>(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b) {            \
    asm volatile(                                                                                                       \
        "{\n"                                                                                                           \
        " .reg .pred add;\n"                                                                                            \
        " setp.eq.u32 add, 0, 0;\n"                                                                                     \
        " wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" PHALANX_D##n "}, {" a0 ", " a1 ", " a2 ", " a3    \
        "}, " operand_b ", add, 1, 1, 1;\n"                                                                             \
        "}\n"                                                                                                           \
        : PHALANX_V##n                                                                                                  \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                          \
  }
PHALANX_VALUES(64, "%32", "%33", "%34", "%35", "%36")
PHALANX_VALUES(80, "%40", "%41", "%42", "%43", "%44")
PHALANX_VALUES(96, "%48", "%49", "%50", "%51", "%52")
PHALANX_VALUES(128, "%64", "%65", "%66", "%67", "%68")
#undef PHALANX_D32
#undef PHALANX_D64
#undef PHALANX_D80
#undef PHALANX_D96
#undef PHALANX_D128
#undef PHALANX_V8
#undef PHALANX_V64
#undef PHALANX_V80
#undef PHALANX_V96
#undef PHALANX_V128
#undef PHALANX_VALUES

}  // namespace phalanx::kernels::cuda
