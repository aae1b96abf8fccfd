#include "kernels/cpu/slabs.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <new>

namespace phalanx::kernels::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kSlab = 0;  // every piece is its own, so that running over its end is seen
#else
constexpr size_t kSlab = size_t{32} << 20;
#endif

size_t RoundUpTo(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Slabs::~Slabs() {
  for (const auto& [slab, state] : slabs_) std::free(slab);
}

char* Slabs::NewSlab(size_t bytes) {
  const size_t unit = bytes >= kHugePage ? kHugePage : 64;
  bytes = RoundUpTo(bytes, unit);
  char* slab = static_cast<char*>(std::aligned_alloc(unit, bytes));
  if (slab == nullptr) return nullptr;
  if (unit == kHugePage) madvise(slab, bytes, MADV_HUGEPAGE);  // a wish: without it the memory is the same, only slower
  try {
    slabs_[slab] = {bytes, 0, 0};
  } catch (const std::bad_alloc&) {
    std::free(slab);
    return nullptr;
  }
  return slab;
}

void* Slabs::Take(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  bytes = RoundUpTo(bytes == 0 ? 1 : bytes, 64);
  char* slab = open_;
  if (bytes > kSlab / 4) {
    slab = NewSlab(bytes);
  } else if (slab == nullptr || slabs_[slab].bytes - slabs_[slab].used < bytes) {
    slab = open_ = NewSlab(kSlab);
  }
  if (slab == nullptr) return nullptr;
  Slab& state = slabs_[slab];
  void* piece = slab + state.used;
  state.used += bytes;
  ++state.pieces;
  return piece;
}

void Slabs::Give(void* piece) {
  if (piece == nullptr) return;
  const auto slab = std::prev(slabs_.upper_bound(static_cast<char*>(piece)));
  if (--slab->second.pieces > 0) return;
  if (slab->first == open_) open_ = nullptr;
  std::free(slab->first);
  slabs_.erase(slab);
}

}  // namespace phalanx::kernels::cpu
