// kernels/cuda/device/wgmma.cuh: one warpgroup's tensor core step, 64 x kN x 16 in bf16 with f32 sums, both operands in shared memory.
// Refuses to know: what the matrices mean. Thread: device code, the four warps of a warpgroup together; sm_90a only.
// Neighbours: gemm_tiles.cuh.
//
// Both operands lie with k inside: rows of 64 values (128 bytes), eight rows after eight rows, the 16-byte parts of a row swapped by its
// number (the 128-byte swizzle that a tensor map writes). Sums of warp w and lane l, with row = 16 w + l / 4 and pair = 2 (l % 4), for
// the j-th eight columns: d[4 j], d[4 j + 1] at (row, 8 j + pair) and the next, d[4 j + 2], d[4 j + 3] the same at row + 8.
// Source: PTX ISA 9.0, "wgmma.mma_async".
#pragma once

#include <cstdint>

namespace phalanx::kernels::cuda {

// Describes an operand that starts at `shared`, a multiple of 1024 bytes. Sixteen further in k is 2 more.
__device__ __forceinline__ uint64_t WgmmaOperand(uint32_t shared) {
  constexpr uint64_t kEightRows = 1024 / 16, kSwizzle128 = 1;
  return static_cast<uint64_t>((shared & 0x3ffff) >> 4) | uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

// Before the first Wgmma after other code touched the sums.
__device__ __forceinline__ void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
// Closes a batch.
__device__ __forceinline__ void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Until at most `kLeft` batches are under way.
template <int kLeft>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kLeft) : "memory");
}

// d += a * b^T: a [64, 16], b [kN, 16].
template <int kN>
__device__ __forceinline__ void Wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b);

// Operands %0 to %(n/2 - 1) by name, and the sums they stand for, each list from the one before.
#define PHALANX_D32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define PHALANX_D64 PHALANX_D32 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PHALANX_D96 PHALANX_D64 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define PHALANX_D128 PHALANX_D96 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PHALANX_D160 PHALANX_D128 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define PHALANX_D192 PHALANX_D160 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define PHALANX_D224 PHALANX_D192 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define PHALANX_D256 PHALANX_D224 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define PHALANX_V(i)                                                                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7]),            \
      "+f"(d[i + 8]), "+f"(d[i + 9]), "+f"(d[i + 10]), "+f"(d[i + 11]), "+f"(d[i + 12]), "+f"(d[i + 13]), "+f"(d[i + 14]), "+f"(d[i + 15])
#define PHALANX_V32 PHALANX_V(0)
#define PHALANX_V64 PHALANX_V32, PHALANX_V(16)
#define PHALANX_V96 PHALANX_V64, PHALANX_V(32)
#define PHALANX_V128 PHALANX_V96, PHALANX_V(48)
#define PHALANX_V160 PHALANX_V128, PHALANX_V(64)
#define PHALANX_V192 PHALANX_V160, PHALANX_V(80)
#define PHALANX_V224 PHALANX_V192, PHALANX_V(96)
#define PHALANX_V256 PHALANX_V224, PHALANX_V(112)
#define PHALANX_WGMMA(n, operand_a, operand_b)                                                                                           \
  template <>                                                                                                                            \
  __device__ __forceinline__ void Wgmma<n>(float (&d)[n / 2], uint64_t a, uint64_t b) {                                                  \
    asm volatile(                                                                                                                        \
        "{\n"                                                                                                                            \
        " .reg .pred add;\n"                                                                                                             \
        " setp.eq.u32 add, 0, 0;\n"                                                                                                      \
        " wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" PHALANX_D##n "}, " operand_a ", " operand_b ", add, 1, 1, 0, 0;\n" \
        "}\n"                                                                                                                            \
        : PHALANX_V##n                                                                                                                   \
        : "l"(a), "l"(b));                                                                                                               \
  }
PHALANX_WGMMA(32, "%16", "%17")
PHALANX_WGMMA(64, "%32", "%33")
PHALANX_WGMMA(96, "%48", "%49")
PHALANX_WGMMA(128, "%64", "%65")
PHALANX_WGMMA(160, "%80", "%81")
PHALANX_WGMMA(192, "%96", "%97")
PHALANX_WGMMA(224, "%112", "%113")
PHALANX_WGMMA(256, "%128", "%129")
#undef PHALANX_D32
#undef PHALANX_V32
#undef PHALANX_D64
#undef PHALANX_V64
#undef PHALANX_D96
#undef PHALANX_V96
#undef PHALANX_D128
#undef PHALANX_V128
#undef PHALANX_D160
#undef PHALANX_V160
#undef PHALANX_D192
#undef PHALANX_V192
#undef PHALANX_D224
#undef PHALANX_V224
#undef PHALANX_D256
#undef PHALANX_V256
#undef PHALANX_V
#undef PHALANX_WGMMA

}  // namespace phalanx::kernels::cuda
