// The K and V of one layer in a rank's pages, as kernels see them.
//
// In a page of a GPU K lies as V does, [16 tokens][head_dim]: what a token
// stores is contiguous, and both matrices are loaded alike. Pages are moved as
// whole bytes, so nothing else knows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attend.h"

namespace moebius {

struct LayerPages {
  std::byte* base = nullptr;
  size_t page_bytes = 0;
  size_t k_offset = 0;
  size_t matrix_bytes = 0;

  // The first element of a token's K, or V.
  template <class T>
  __device__ T* Token(uint32_t page, int token, int head_dim,
                      bool values) const {
    return reinterpret_cast<T*>(base + page * page_bytes + k_offset +
                                (values ? matrix_bytes : 0)) +
           token * head_dim;
  }
};

template <class D>
LayerPages PagesOf(const KvLayer<D>& kv) {
  const KvPageFormat& format = kv.pool.format;
  return {kv.pool.base, format.page_bytes(), format.k_offset(kv.layer),
          format.matrix_bytes()};
}

}  // namespace moebius
