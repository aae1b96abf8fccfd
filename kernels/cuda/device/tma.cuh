// kernels/cuda/device/tma.cuh: Hopper's copies of whole tiles into shared memory, the barriers they report to, and clusters of two CTAs.
// Refuses to know: what the tiles mean. Thread: device code; sm_90 and later. Neighbours: gemm_tiles.cuh.
//
// A barrier lives in shared memory and counts arrivals and bytes of one phase after another; a waiter names the parity of the phase it
// waits for. Shared addresses are 32 bits wide; the same address names the same place of every CTA of a cluster.
// Source: PTX ISA 9.0, "mbarrier" and "cp.async.bulk.tensor".
#pragma once

#include <cuda.h>

#include <cstdint>

namespace phalanx::kernels::cuda {

__device__ __forceinline__ void BarrierInit(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After the last BarrierInit, before a copy or another CTA of the cluster uses one.
__device__ __forceinline__ void BarrierInitDone() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

// One arrival, and `bytes` that copies will bring before the phase can end.
__device__ __forceinline__ void ArriveExpecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}
// One arrival at the barrier of CTA `rank` of the cluster. It orders what copies and tensor cores do, not this thread's own writes: a
// release for the whole cluster costs a wait for all of the thread's memory, near a microsecond.
__device__ __forceinline__ void ArriveAt(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      " .reg .b32 there;\n"
      " mapa.shared::cluster.u32 there, %0, %1;\n"
      " mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
// Until the phase of this parity has ended. A new barrier's phase 0 is open: waiting for parity 1 returns at once.
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      " .reg .pred done;\n"
      "again:\n"
      " mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      " @done bra over;\n"
      " bra again;\n"
      "over:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// The box of a 2-D tensor map at (column, row), to `shared` of this CTA; its bytes go to `barrier`.
__device__ __forceinline__ void CopyTile(uint32_t shared, const CUtensorMap* map, int column, int row, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(shared),
               "l"(map), "r"(column), "r"(row), "r"(barrier)
               : "memory");
}
// The same to the same place of both CTAs of a cluster of two, each of which counts the bytes at its own barrier.
__device__ __forceinline__ void CopyTileToBoth(uint32_t shared, const CUtensorMap* map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(shared),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<uint16_t>(3))
      : "memory");
}

__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}
// All threads of all CTAs of the cluster; what they wrote before is visible behind it.
__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release;\n barrier.cluster.wait.acquire;\n" ::: "memory");
}
// The same without their writes: all are here, no more.
__device__ __forceinline__ void ClusterMeet() {
  asm volatile("barrier.cluster.arrive.relaxed;\n barrier.cluster.wait;\n" ::: "memory");
}

// Fetches a tensor map, a kernel parameter, ahead of the first copy.
__device__ __forceinline__ void FetchMap(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory"); }

// Where CTA `rank` of the cluster has what lies at `shared` here.
__device__ __forceinline__ uint32_t PlaceAt(uint32_t shared, uint32_t rank) {
  uint32_t place;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(place) : "r"(shared), "r"(rank));
  return place;
}
__device__ __forceinline__ float4 LoadFromCluster(uint32_t place) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];\n" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(place) : "memory");
  return v;
}

// `threads` threads, whole warps, of this CTA at barrier `id`, 1 to 15.
__device__ __forceinline__ void NamedSync(int id, int threads) { asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory"); }

// Registers of a thread, for all warps of a warpgroup together: 24 to 256, a multiple of 8.
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

}  // namespace phalanx::kernels::cuda
