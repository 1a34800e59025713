#include "kernels/formats.h"

namespace moebius {
namespace {

constexpr int kLineElements = 2 * kPanelRows;  // of one line(j, p)

// Element of W [n][k] at (row, column) in PackedMatrix order.
size_t MatrixOffset(int row, int column, int k) {
  const size_t line = static_cast<size_t>(row / kPanelRows) * (k / 2) +
                      static_cast<size_t>(column / 2);
  return line * kLineElements + 2 * (row % kPanelRows) + column % 2;
}

// The same in RowParallelMatrix order.
size_t RowParallelOffset(int row, int column, int n) {
  const size_t block =
      static_cast<size_t>(column / kUnitRows) * (n / kPanelRows) +
      static_cast<size_t>(row / kPanelRows);
  const size_t line = block * (kUnitRows / 2) + (column % kUnitRows) / 2;
  return line * kLineElements + 2 * (row % kPanelRows) + column % 2;
}

}  // namespace

void PackMatrix(const Bf16* w, int n, int k, ptrdiff_t stride, Bf16* out) {
  CHECK(n >= 0 && k >= 0 && k % 2 == 0);
  const int padded = (n + kPanelRows - 1) / kPanelRows * kPanelRows;
  for (int first = 0; first < padded; first += kPanelRows) {
    for (int row = first; row < first + kPanelRows; ++row) {
      Bf16* to = out + MatrixOffset(row, 0, k);
      for (int p = 0; p < k / 2; ++p, to += kLineElements) {
        to[0] = row < n ? w[row * stride + 2 * p] : Bf16{};
        to[1] = row < n ? w[row * stride + 2 * p + 1] : Bf16{};
      }
    }
  }
}

void UnpackMatrix(PackedMatrix packed, Bf16* w, ptrdiff_t stride) {
  for (int row = 0; row < packed.n; ++row) {
    for (int column = 0; column < packed.k; ++column) {
      w[row * stride + column] =
          packed.data[MatrixOffset(row, column, packed.k)];
    }
  }
}

void PackRowParallel(const Bf16* w, int n, int k, ptrdiff_t stride, Bf16* out) {
  CHECK(n >= 0 && k >= 0 && n % kPanelRows == 0 && k % kUnitRows == 0);
  for (int row = 0; row < n; ++row) {
    for (int first = 0; first < k; first += kUnitRows) {
      Bf16* to = out + RowParallelOffset(row, first, n);
      const Bf16* from = w + row * stride + first;
      for (int p = 0; p < kUnitRows / 2; ++p, to += kLineElements, from += 2) {
        to[0] = from[0];
        to[1] = from[1];
      }
    }
  }
}

void UnpackRowParallel(RowParallelMatrix packed, Bf16* w, ptrdiff_t stride) {
  for (int row = 0; row < packed.n; ++row) {
    for (int column = 0; column < packed.k; ++column) {
      w[row * stride + column] =
          packed.data[RowParallelOffset(row, column, packed.n)];
    }
  }
}

void PackExpert(const Bf16* gate, const Bf16* up, const Bf16* down, int hidden,
                int intermediate, int begin, int end, Bf16* out) {
  CHECK(begin % kUnitRows == 0 && end % kUnitRows == 0 &&
        hidden % kPanelRows == 0);
  CHECK(0 <= begin && begin <= end && end <= intermediate);
  const ptrdiff_t first = ptrdiff_t{begin} * hidden;
  const size_t matrix_elements =
      static_cast<size_t>(end - begin) * static_cast<size_t>(hidden);
  PackMatrix(gate + first, end - begin, hidden, hidden, out);
  PackMatrix(up + first, end - begin, hidden, hidden, out + matrix_elements);
  PackRowParallel(down + begin, hidden, end - begin, intermediate,
                  out + 2 * matrix_elements);
}

}  // namespace moebius
