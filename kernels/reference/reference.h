// Slow and obvious versions of the operators, in double, over plain row-major
// matrices: what the fast ones are tested against. Not for serving.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/step/sampling_params.h"
#include "kernels/bf16.h"

namespace moebius::reference {

// A dense row-major matrix of doubles.
struct Matrix {
  Matrix() = default;
  Matrix(int rows_in, int cols_in)
      : rows(rows_in),
        cols(cols_in),
        values(static_cast<size_t>(rows_in) * cols_in, 0.0) {}
  double& at(int i, int j) { return values[static_cast<size_t>(i) * cols + j]; }
  double at(int i, int j) const {
    return values[static_cast<size_t>(i) * cols + j];
  }
  int rows = 0;
  int cols = 0;
  std::vector<double> values;
};

// x W^T, W [n][x.cols] row-major.
Matrix Product(const Matrix& x, absl::Span<const Bf16> w, int n);

Matrix RmsNorm(const Matrix& x, absl::Span<const float> weight, double eps);

// RMSNorm of each head (unless `weight` is empty), then rotary embedding.
Matrix HeadNormRotary(const Matrix& x, int head_dim,
                      absl::Span<const float> weight, double eps,
                      absl::Span<const int32_t> positions, double theta);

// What of a sequence a row sees (kernels/attend.h, KvLayer).
struct Sight {
  int window = 0;
  std::vector<float> sinks;  // [q_heads], or none
};

// Attention of one sequence: q [rows][q_heads * head_dim] at positions
// first_position .. , k and v [positions][kv_heads * head_dim].
Matrix Attention(const Matrix& q, const Matrix& k, const Matrix& v,
                 int kv_heads, int head_dim, int first_position,
                 const Sight& sight = {});

struct Route {
  std::vector<int> experts;
  std::vector<double> weights;
};
// Of one row of logits.
Route RouteTopK(absl::Span<const float> logits, int top_k, bool renormalize);

// Biases of an expert's products, and the limit of its activation
// (kernels/formats.h).
struct ExpertRules {
  std::vector<float> gate, up, down;  // or none
  double limit = 0;                   // 0: silu
  double alpha = 1;
};

// silu(x gate^T) * (x up^T) down^T of one row; gate and up [I][H], down [H][I].
std::vector<double> Expert(absl::Span<const double> x,
                           absl::Span<const Bf16> gate,
                           absl::Span<const Bf16> up,
                           absl::Span<const Bf16> down, int intermediate,
                           const ExpertRules& rules = {});

std::vector<double> LogSoftmax(absl::Span<const float> logits);

// The distribution that a draw follows after temperature, min-p, top-k and
// top-p, by full sorting. REQUIRES: finite logits, temperature > 0.
std::vector<double> Distribution(absl::Span<const float> logits,
                                 const SamplingParams& params);

}  // namespace moebius::reference
