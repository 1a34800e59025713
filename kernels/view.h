// Views of a device's memory, and memory of a device's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

#include "absl/types/span.h"
#include "kernels/device.h"

namespace moebius {

// View
//
// `rows` rows of `cols` elements in memory of device D; row i starts at
// data + i * stride. Of memory that the host cannot reach there is nothing to
// look into: only ranges can be taken.
template <class T, class D>
struct View {
  T* data = nullptr;
  int rows = 0;
  int cols = 0;
  ptrdiff_t stride = 0;  // elements

  T* row(int i) const requires(D::kHostMemory) { return data + i * stride; }
  // Rows [begin, begin + count).
  View RowRange(int begin, int count) const {
    return {data + begin * stride, count, cols, stride};
  }
  // Columns [begin, begin + count).
  View ColRange(int begin, int count) const {
    return {data + begin, rows, count, stride};
  }
  operator View<const T, D>() const requires(!std::is_const_v<T>) {
    return {data, rows, cols, stride};
  }
};

template <class D>
using PartialRows = View<typename D::Partial, D>;
template <class D>
using ConstPartialRows = View<const typename D::Partial, D>;

// Memory of a device for as long as this exists, not initialised. `name` tells
// what takes how much.
template <class T, class D>
class Buffer;

// Pages are first touched when used.
template <class T>
class Buffer<T, Cpu> {
 public:
  Buffer() = default;
  Buffer(const Cpu&, const char* /*name*/, int64_t elements)
      : data_(std::make_unique_for_overwrite<T[]>(
            static_cast<size_t>(elements))) {}
  T* data() const { return data_.get(); }

 private:
  std::unique_ptr<T[]> data_;
};

// Copies from the host, before any pass.
inline void Upload(const Cpu&, absl::Span<const float> from, float* to) {
  std::memcpy(to, from.data(), from.size() * sizeof(float));
}

}  // namespace moebius
