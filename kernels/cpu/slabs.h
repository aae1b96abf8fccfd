// kernels/cpu/slabs.h: memory of the device: pieces cut from large slabs of huge pages.
// Refuses to know: what lies in it. Thread: the device's caller. Neighbours: table.cc (alloc, free).
//
// A model's weights are hundreds of pieces of a megabyte or so. Each by itself would lie on small pages, and reading it would run into
// the page tables before it runs into the memory (measured here: a sixth of the read rate; half of it in strided reads of a KV cache).
#pragma once

#include <cstddef>
#include <map>

namespace phalanx::kernels::cpu {

class Slabs {
 public:
  Slabs() = default;
  ~Slabs();
  Slabs(const Slabs&) = delete;
  Slabs& operator=(const Slabs&) = delete;

  // 64-byte aligned; null when there is no memory.
  void* Take(size_t bytes);
  // A piece that Take returned, or null. A slab goes back to the system with its last piece.
  void Give(void* piece);

 private:
  struct Slab {
    size_t bytes;
    size_t used;
    size_t pieces;
  };
  char* NewSlab(size_t bytes);

  std::map<char*, Slab> slabs_;
  char* open_ = nullptr;  // the slab that small pieces are cut from
};

}  // namespace phalanx::kernels::cpu
