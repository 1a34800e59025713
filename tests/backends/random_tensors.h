// Random activations and weights for tests of operators: a seed gives the same
// values everywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/attend.h"
#include "kernels/formats.h"
#include "kernels/reference/reference.h"
#include "kernels/rotary.h"

namespace moebius {

// Memory aligned to cache lines, as packed weights and pages need.
template <typename T>
class AlignedVector {
 public:
  explicit AlignedVector(size_t size, T value = T())
      : storage_(size + 64 / sizeof(T), value), size_(size) {}
  T* data() {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    return storage_.data() + (64 - address % 64) % 64 / sizeof(T);
  }
  const T* data() const { return const_cast<AlignedVector*>(this)->data(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data()[i]; }

 private:
  std::vector<T> storage_;
  size_t size_;
};

// A float matrix with a stride wider than its rows.
class Activations {
 public:
  Activations(int rows, int cols, int stride = 0)
      : rows_(rows),
        cols_(cols),
        stride_(stride == 0 ? cols : stride),
        values_(static_cast<size_t>(rows) * stride_, 0.0f) {}
  Rows rows() { return Rows{values_.data(), rows_, cols_, stride_}; }
  ConstRows view() const {
    return ConstRows{values_.data(), rows_, cols_, stride_};
  }
  float& at(int i, int j) { return values_[size_t(i) * stride_ + j]; }
  float at(int i, int j) const { return values_[size_t(i) * stride_ + j]; }
  reference::Matrix ToDouble() const {
    reference::Matrix out(rows_, cols_);
    for (int i = 0; i < rows_; ++i) {
      for (int j = 0; j < cols_; ++j) out.at(i, j) = at(i, j);
    }
    return out;
  }
  friend bool operator==(const Activations&, const Activations&) = default;

 private:
  int rows_, cols_, stride_;
  std::vector<float> values_;
};

class RandomTensors {
 public:
  explicit RandomTensors(uint64_t seed) : generator_(seed) {}
  float Normal(float scale = 1.0f) {
    return scale * std::normal_distribution<float>()(generator_);
  }
  int Below(int bound) {
    return std::uniform_int_distribution<int>(0, bound - 1)(generator_);
  }
  Activations Rows(int rows, int cols, float scale = 1.0f, int stride = 0) {
    Activations out(rows, cols, stride);
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < cols; ++j) out.at(i, j) = Normal(scale);
    }
    return out;
  }
  // [n][k] of variance 1/k, as in a trained network.
  std::vector<Bf16> Weights(int n, int k) {
    std::vector<Bf16> out(static_cast<size_t>(n) * k);
    for (Bf16& w : out) {
      w = ToBf16(Normal(1.0f / std::sqrt(static_cast<float>(k))));
    }
    return out;
  }
  std::vector<float> Floats(size_t n, float scale = 1.0f) {
    std::vector<float> out(n);
    for (float& value : out) value = Normal(scale);
    return out;
  }

 private:
  std::mt19937_64 generator_;
};

// Packed copies that own their memory.
struct OwnedMatrix {
  OwnedMatrix(const std::vector<Bf16>& w, int n, int k)
      : values(PackedMatrix::NumElements(n, k)), n(n), k(k) {
    PackMatrix(w.data(), n, k, k, values.data());
  }
  PackedMatrix view() const { return {values.data(), n, k}; }
  AlignedVector<Bf16> values;
  int n, k;
};
struct OwnedRowParallel {
  OwnedRowParallel(const std::vector<Bf16>& w, int n, int k)
      : values(RowParallelMatrix::NumElements(n, k)), n(n), k(k) {
    PackRowParallel(w.data(), n, k, k, values.data());
  }
  RowParallelMatrix view() const { return {values.data(), n, k}; }
  AlignedVector<Bf16> values;
  int n, k;
};

// Integers of fixed point.
class FixedSums {
 public:
  FixedSums(int rows, int cols)
      : rows_(rows), cols_(cols), values_(static_cast<size_t>(rows) * cols) {}
  FixedRows rows() { return FixedRows{values_.data(), rows_, cols_, cols_}; }
  ConstFixedRows view() const {
    return ConstFixedRows{values_.data(), rows_, cols_, cols_};
  }
  int64_t& at(int i, int j) { return values_[size_t(i) * cols_ + j]; }
  double ToDouble(int i, int j) const {
    return std::ldexp(static_cast<double>(values_[size_t(i) * cols_ + j]),
                      -kFixedPointBits);
  }
  FixedSums& operator+=(const FixedSums& other) {
    for (size_t i = 0; i < values_.size(); ++i) values_[i] += other.values_[i];
    return *this;
  }
  friend bool operator==(const FixedSums&, const FixedSums&) = default;

 private:
  int rows_, cols_;
  std::vector<int64_t> values_;
};

// As the operators take it.
inline Rotary<Cpu> ViewOf(const RotaryTable& table) {
  return {table.cos().data(), table.sin().data(), table.max_positions(),
          table.head_dim()};
}

}  // namespace moebius
