// Where weights come from: a checkpoint, or made up.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/bf16.h"

namespace moebius {

// Rows [row_begin, row_end) and columns [col_begin, col_end) of a matrix of
// `rows` x `cols`.
struct MatrixSlice {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t col_begin = 0;
  int64_t col_end = 0;

  static MatrixSlice Whole(int64_t rows, int64_t cols) {
    return {rows, cols, 0, rows, 0, cols};
  }
  static MatrixSlice RowRange(int64_t rows, int64_t cols, int64_t begin,
                              int64_t end) {
    return {rows, cols, begin, end, 0, cols};
  }
  static MatrixSlice ColRange(int64_t rows, int64_t cols, int64_t begin,
                              int64_t end) {
    return {rows, cols, 0, rows, begin, end};
  }
  int64_t num_rows() const { return row_end - row_begin; }
  int64_t num_cols() const { return col_end - col_begin; }
  int64_t num_elements() const { return num_rows() * num_cols(); }
};

// Threading: once Check() has been called, reads may run at once.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // OK when the tensor is there with this shape and a type that can be read.
  virtual absl::Status Check(const std::string& name,
                             absl::Span<const int64_t> shape) = 0;
  // out [slice.num_rows()][slice.num_cols()] = the slice of matrix `name`. Of a
  // tensor with more dimensions all but the last one count as rows.
  // REQUIRES: the slice lies inside its matrix, out.size() is its size.
  // Errors: as Check, or the reason why it cannot be read.
  virtual absl::Status ReadBf16(const std::string& name, MatrixSlice slice,
                                absl::Span<Bf16> out) = 0;
  // The vector `name` of out.size() elements, or the one row of a matrix.
  virtual absl::Status ReadFloat(const std::string& name,
                                 absl::Span<float> out) = 0;
  // Bytes read from files so far.
  virtual int64_t bytes_read() const = 0;
  // Whether it is MakeDummyWeights(), which a sink may make up by itself.
  virtual bool made_up() const { return false; }
};

// Pseudo-random weights, a function of the tensor's name and an element's place
// in it alone: bell-shaped with standard deviation 0.02, around 1 in vectors
// (norms) and around 0 in matrices. Every tensor exists in every shape.
std::unique_ptr<TensorSource> MakeDummyWeights();
// What kernels/made_up.h takes for the tensor of this name.
uint64_t MadeUpSeed(std::string_view name);

}  // namespace moebius
