// The AMX_BF16 level: as AVX-512, and bf16 x bf16 products on tiles of 16 rows x 16 outputs x 32 k.
//
// A full tile call is 32 rows x 2 panels: sums in tmm0-3, activations in tmm4-5, weights in tmm6-7, each loaded tile used twice.
// One row takes the same path with a one-row tile, so decode and prefill have the same bits.
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/gemm_impl.h"

namespace {

// Palette 1 of the tile configuration register. Source: Intel SDM volume 1, chapter 18.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_a_row[16] = {};
  uint8_t rows[16] = {};
};

// Sets up for `rows` activations: the first tile of rows has up to 16, the second the rest.
void Configure(int rows) {
  const int first = rows < 16 ? rows : 16, second = rows > 16 ? rows - 16 : 1;
  TileConfig config;
  const int tile_rows[8] = {first, first, second, second, first, second, 16, 16};
  for (int i = 0; i < 8; ++i) {
    config.bytes_a_row[i] = 64;
    config.rows[i] = static_cast<uint8_t>(tile_rows[i]);
  }
  _tile_loadconfig(&config);
}

// bf16 x as [padded_k / 32][rows][32].
void PackXTiles(const void* x, DType, int64_t x_stride, int rows, int64_t k, int64_t padded_k, void* out) {
  char* to = static_cast<char*>(out);
  for (int64_t i = 0; i < padded_k; i += 32) {
    const int64_t count = k - i < 32 ? k - i : 32;
    for (int r = 0; r < rows; ++r, to += 64) {
      std::memcpy(to, static_cast<const uint16_t*>(x) + r * x_stride + i, static_cast<size_t>(count) * 2);
      if (count < 32) std::memset(to + count * 2, 0, static_cast<size_t>(32 - count) * 2);
    }
  }
}

template <bool kSecondRows, bool kSecondPanel>
inline void AmxTile(const TileArgs& a, const char* weight, float* c) {
  const long c_bytes = a.c_stride * 4;
  float* c_low = c + 16 * a.c_stride;
  if (a.first) {
    _tile_zero(0);
    if (kSecondPanel) _tile_zero(1);
    if (kSecondRows) _tile_zero(2);
    if (kSecondRows && kSecondPanel) _tile_zero(3);
  } else {
    _tile_loadd(0, c, c_bytes);
    if (kSecondPanel) _tile_loadd(1, c + kPanel, c_bytes);
    if (kSecondRows) _tile_loadd(2, c_low, c_bytes);
    if (kSecondRows && kSecondPanel) _tile_loadd(3, c_low + kPanel, c_bytes);
  }
  const char* x = static_cast<const char*>(a.x);
  for (int64_t k = 0; k < a.k; k += 32) {
    _tile_loadd(6, weight, 64);
    _tile_loadd(4, x, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kSecondPanel) {
      _tile_loadd(7, weight + a.panel_bytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kSecondRows) {
      _tile_loadd(5, x + 16 * 64, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (kSecondPanel) _tile_dpbf16ps(3, 5, 7);
    }
    weight += 16 * 64;
    x += a.rows * 64;
  }
  _tile_stored(0, c, c_bytes);
  if (kSecondPanel) _tile_stored(1, c + kPanel, c_bytes);
  if (kSecondRows) _tile_stored(2, c_low, c_bytes);
  if (kSecondRows && kSecondPanel) _tile_stored(3, c_low + kPanel, c_bytes);
}

void AmxTiles(const TileArgs& a) {
  Configure(a.rows);
  int p = 0;
  for (; p + 2 <= a.panels; p += 2) {
    const char* weight = a.weight + p * a.panel_bytes;
    a.rows > 16 ? AmxTile<true, true>(a, weight, a.c + p * kPanel) : AmxTile<false, true>(a, weight, a.c + p * kPanel);
  }
  if (p < a.panels) {
    const char* weight = a.weight + p * a.panel_bytes;
    a.rows > 16 ? AmxTile<true, false>(a, weight, a.c + p * kPanel) : AmxTile<false, false>(a, weight, a.c + p * kPanel);
  }
  _tile_release();  // a thread that keeps tiles loaded pays for them at every switch
}

}  // namespace

namespace phalanx::kernels::cpu {

const Level* AmxLevel() {
  static const Level level = [] {
    Level l = *Avx512Level();
    l.isa = kIsaAmxBf16;
    l.bf16 = {32, 2, 2, PackXTiles, AmxTiles};
    return l;
  }();
  return &level;
}

}  // namespace phalanx::kernels::cpu
