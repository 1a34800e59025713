// The highest logit of each row, for who wants nothing else of it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/failure.h"

struct CUstream_st;

namespace moebius {

inline constexpr int kHighestPartLogits = 4096;

// Of kHighestPartLogits logits of a row, or what is left of them.
struct HighestPart {
  float value = 0.0f;  // NaN counts as -infinity
  int32_t index = 0;   // of the row; the lowest of equals
  int32_t finite = 0;  // 1: no NaN and no infinity is among them
};
constexpr int NumHighestParts(int cols) {
  return (cols + kHighestPartLogits - 1) / kHighestPartLogits;
}

// Rows that lie `stride` floats apart in memory of the GPU. `parts` is
// [rows][NumHighestParts(cols)] in memory that GPU and host share, and has them
// when the stream's work is done.
void FindHighestParts(const float* logits, ptrdiff_t stride, int rows, int cols,
                      HighestPart* parts, CUstream_st* stream,
                      CudaFailure* failure);

}  // namespace moebius
