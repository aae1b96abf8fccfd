#include "kernels/cpu/slabs.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace phalanx::kernels::cpu {
namespace {

// Pieces of all sizes, taken and given back in random order: none overlaps another, all keep what was written into them.
TEST(Slabs, PiecesAreApart) {
  struct Piece {
    unsigned char* at;
    size_t bytes;
    unsigned char mark;
  };
  Slabs slabs;
  std::mt19937 rng(1);
  std::vector<Piece> live;
  for (int step = 0; step < 4000; ++step) {
    if (live.size() > 40 || (!live.empty() && rng() % 3 == 0)) {
      std::swap(live[rng() % live.size()], live.back());
      const Piece piece = live.back();
      live.pop_back();
      for (size_t i : {size_t{0}, piece.bytes / 2, piece.bytes - 1}) ASSERT_EQ(piece.at[i], piece.mark);
      slabs.Give(piece.at);
      continue;
    }
    const size_t bytes = 1 + rng() % (step % 10 == 0 ? 12'000'000 : step % 3 == 0 ? 1'500'000 : 300);
    auto* at = static_cast<unsigned char*>(slabs.Take(bytes));
    ASSERT_NE(at, nullptr);
    ASSERT_EQ(reinterpret_cast<uintptr_t>(at) % 64, 0u);
    const auto mark = static_cast<unsigned char>(step);
    at[0] = at[bytes / 2] = at[bytes - 1] = mark;
    live.push_back({at, bytes, mark});
  }
}

TEST(Slabs, NoPieceIsTooSmallAndSomeAreTooLarge) {
  Slabs slabs;
  void* a = slabs.Take(0);
  void* b = slabs.Take(0);
  EXPECT_NE(a, nullptr);
  EXPECT_NE(a, b);
  slabs.Give(a);
  slabs.Give(b);
  slabs.Give(nullptr);
  EXPECT_EQ(slabs.Take(SIZE_MAX - 10), nullptr);
  EXPECT_EQ(slabs.Take(SIZE_MAX / 2 - 100), nullptr);
  EXPECT_NE(slabs.Take(100), nullptr);  // a refusal spoils nothing
}

}  // namespace
}  // namespace phalanx::kernels::cpu
