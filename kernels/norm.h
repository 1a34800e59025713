// Root-mean-square norm (Zhang and Sennrich 2019, arXiv 1910.07467).
#pragma once

#include "kernels/formats.h"

namespace moebius {

template <class D>
struct Norm {
  const float* weight = nullptr;  // [size]
  int size = 0;
  float eps = 0.0f;
};

// out = x / sqrt(mean(x^2) + eps) * weight, for each row. out may be x.
// REQUIRES: norm.size == x.cols; equal shapes.
void RmsNorm(const Cpu& device, ConstRows x, const Norm<Cpu>& norm, Rows out);

}  // namespace moebius
