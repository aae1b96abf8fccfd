// kernels/cuda/device/chain.cuh: a kernel's two words to its neighbours in the stream; the rule is in device.h, "launches that overlap".
// Refuses to know: what the kernels do. Thread: device code, all threads of a CTA. Neighbours: every kernel launched with Launch.
//
// Before compute capability 9.0 both do nothing and launches do not overlap.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace phalanx::kernels::cuda {

// Until the previous kernel has ended and all its writes are visible.
__device__ __forceinline__ void WaitForPrevious() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// The next kernel may start, once all CTAs have said so.
__device__ __forceinline__ void LetNextStart() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// 16 bytes that an earlier kernel wrote, zeros if not `wanted`. An ordinary load: never through the read-only path, which need not notice
// what was written since this kernel started.
__device__ __forceinline__ uint4 LoadFresh(const void* from, bool wanted) {
  uint4 v;
  asm volatile(
      "{\n"
      " .reg .pred p;\n"
      " setp.ne.b32 p, %5, 0;\n"
      " mov.b32 %0, 0;\n mov.b32 %1, 0;\n mov.b32 %2, 0;\n mov.b32 %3, 0;\n"
      " @p ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}\n"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(from), "r"(static_cast<int>(wanted))
      : "memory");
  return v;
}

// A gate: everything before this kernel is over, here and when the next kernel starts.
__device__ __forceinline__ void PassGate() {
  WaitForPrevious();
  LetNextStart();
}

}  // namespace phalanx::kernels::cuda
