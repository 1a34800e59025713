#include "tests/backends/pack_tiles.h"

#include <algorithm>

namespace moebius {
namespace {

// Outputs [first, first + count) of 16; the rest is zeros.
void PackTile(const Bf16* w, int count, ptrdiff_t stride, Bf16* out) {
  std::fill_n(out, kTileElements, Bf16{});
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < kTileRows; ++j)
      out[TileIndex(i, j)] = w[i * stride + j];
  }
}

}  // namespace

void PackTiles(const Bf16* w, int n, int k, ptrdiff_t stride, Bf16* out) {
  for (int i = 0; i < n; i += kTileRows) {
    for (int j = 0; j < k; j += kTileRows, out += kTileElements) {
      PackTile(w + i * stride + j, std::min(kTileRows, n - i), stride, out);
    }
  }
}

void PackRowParallelTiles(const Bf16* w, int n, int k, ptrdiff_t stride,
                          Bf16* out) {
  for (int j = 0; j < k; j += kTileRows) {
    for (int i = 0; i < n; i += kTileRows, out += kTileElements) {
      PackTile(w + i * stride + j, kTileRows, stride, out);
    }
  }
}

}  // namespace moebius
