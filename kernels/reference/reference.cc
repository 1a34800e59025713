#include "kernels/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moebius::reference {

Matrix Product(const Matrix& x, absl::Span<const Bf16> w, int n) {
  Matrix out(x.rows, n);
  for (int i = 0; i < x.rows; ++i) {
    for (int j = 0; j < n; ++j) {
      for (int k = 0; k < x.cols; ++k) {
        out.at(i, j) +=
            x.at(i, k) * ToFloat(w[static_cast<size_t>(j) * x.cols + k]);
      }
    }
  }
  return out;
}

Matrix RmsNorm(const Matrix& x, absl::Span<const float> weight, double eps) {
  Matrix out(x.rows, x.cols);
  for (int i = 0; i < x.rows; ++i) {
    double squares = 0.0;
    for (int j = 0; j < x.cols; ++j) squares += x.at(i, j) * x.at(i, j);
    const double root = std::sqrt(squares / x.cols + eps);
    for (int j = 0; j < x.cols; ++j) {
      out.at(i, j) = x.at(i, j) / root * weight[j];
    }
  }
  return out;
}

Matrix HeadNormRotary(const Matrix& x, int head_dim,
                      absl::Span<const float> weight, double eps,
                      absl::Span<const int32_t> positions, double theta) {
  Matrix out(x.rows, x.cols);
  for (int i = 0; i < x.rows; ++i) {
    for (int first = 0; first < x.cols; first += head_dim) {
      Matrix head(1, head_dim);
      for (int j = 0; j < head_dim; ++j) head.at(0, j) = x.at(i, first + j);
      if (!weight.empty()) head = RmsNorm(head, weight, eps);
      const int half = head_dim / 2;
      for (int j = 0; j < half; ++j) {
        const double angle =
            positions[i] * std::pow(theta, -2.0 * j / head_dim);
        const double a = head.at(0, j), b = head.at(0, j + half);
        out.at(i, first + j) = a * std::cos(angle) - b * std::sin(angle);
        out.at(i, first + half + j) = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
  return out;
}

Matrix Attention(const Matrix& q, const Matrix& k, const Matrix& v,
                 int kv_heads, int head_dim, int first_position,
                 const Sight& sight) {
  Matrix out(q.rows, q.cols);
  const int q_heads = q.cols / head_dim;
  for (int i = 0; i < q.rows; ++i) {
    const int length = first_position + i + 1;
    const int first =
        sight.window == 0 ? 0 : std::max(0, length - sight.window);
    for (int h = 0; h < q_heads; ++h) {
      const int kv = h / (q_heads / kv_heads) * head_dim;
      std::vector<double> scores(length, 0.0);
      for (int t = first; t < length; ++t) {
        for (int d = 0; d < head_dim; ++d) {
          scores[t] += q.at(i, h * head_dim + d) * k.at(t, kv + d);
        }
        scores[t] /= std::sqrt(static_cast<double>(head_dim));
      }
      double highest = *std::max_element(scores.begin() + first, scores.end());
      double sum = 0.0;
      if (!sight.sinks.empty()) {
        highest = std::max<double>(highest, sight.sinks[h]);
        sum = std::exp(sight.sinks[h] - highest);
      }
      for (int t = first; t < length; ++t) {
        sum += scores[t] = std::exp(scores[t] - highest);
      }
      for (int t = first; t < length; ++t) {
        for (int d = 0; d < head_dim; ++d) {
          out.at(i, h * head_dim + d) += scores[t] / sum * v.at(t, kv + d);
        }
      }
    }
  }
  return out;
}

Route RouteTopK(absl::Span<const float> logits, int top_k, bool renormalize) {
  std::vector<double> probabilities = LogSoftmax(logits);
  for (double& p : probabilities) p = std::exp(p);
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return logits[a] > logits[b]; });
  Route route;
  double sum = 0.0;
  for (int j = 0; j < top_k; ++j) {
    route.experts.push_back(order[j]);
    route.weights.push_back(probabilities[order[j]]);
    sum += probabilities[order[j]];
  }
  if (renormalize) {
    for (double& weight : route.weights) weight /= sum;
  }
  return route;
}

std::vector<double> Expert(absl::Span<const double> x,
                           absl::Span<const Bf16> gate,
                           absl::Span<const Bf16> up,
                           absl::Span<const Bf16> down, int intermediate,
                           const ExpertRules& rules) {
  const size_t hidden = x.size();
  std::vector<double> out(hidden, 0.0);
  for (size_t k = 0; k < rules.down.size(); ++k) out[k] = rules.down[k];
  for (int i = 0; i < intermediate; ++i) {
    double g = rules.gate.empty() ? 0.0 : rules.gate[i];
    double u = rules.up.empty() ? 0.0 : rules.up[i];
    for (size_t k = 0; k < hidden; ++k) {
      g += x[k] * ToFloat(gate[i * hidden + k]);
      u += x[k] * ToFloat(up[i * hidden + k]);
    }
    if (rules.limit > 0.0) {
      g = std::min(g, rules.limit);
      u = std::clamp(u, -rules.limit, rules.limit) + 1.0;
    }
    const double h = g / (1.0 + std::exp(-rules.alpha * g)) * u;
    for (size_t k = 0; k < hidden; ++k) {
      out[k] += h * ToFloat(down[k * intermediate + i]);
    }
  }
  return out;
}

std::vector<double> LogSoftmax(absl::Span<const float> logits) {
  const double highest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(logit - highest);
  std::vector<double> out;
  for (const float logit : logits) {
    out.push_back(logit - highest - std::log(sum));
  }
  return out;
}

std::vector<double> Distribution(absl::Span<const float> logits,
                                 const SamplingParams& params) {
  std::vector<float> scaled;
  for (const float logit : logits) scaled.push_back(logit / params.temperature);
  std::vector<double> p = LogSoftmax(scaled);
  for (double& value : p) value = std::exp(value);
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return logits[a] > logits[b]; });
  const double least = params.min_p * p[order[0]];
  for (double& value : p) {
    if (value < least) value = 0.0;
  }
  if (params.top_k > 0 && params.top_k < static_cast<int>(p.size())) {
    const float edge = logits[order[params.top_k - 1]];
    for (size_t i = 0; i < p.size(); ++i) {
      if (logits[i] < edge) p[i] = 0.0;
    }
  }
  double total = std::accumulate(p.begin(), p.end(), 0.0);
  if (params.top_p < 1.0f) {
    double mass = 0.0;
    bool full = false;
    for (const int i : order) {
      const double weight = p[i];
      if (full) p[i] = 0.0;
      mass += weight;
      if (mass >= params.top_p * total) full = true;
    }
    total = std::accumulate(p.begin(), p.end(), 0.0);
  }
  for (double& value : p) value /= total;
  return p;
}

}  // namespace moebius::reference
