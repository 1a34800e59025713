// Bytes between the host and memory of a GPU, for tests.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace moebius {

inline void ToGpu(const std::vector<std::byte>& from, std::byte* to) {
  EXPECT_EQ(cudaMemcpy(to, from.data(), from.size(), cudaMemcpyHostToDevice),
            cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
}

inline std::vector<std::byte> FromGpu(const std::byte* from,
                                      int64_t size_bytes) {
  std::vector<std::byte> bytes(static_cast<size_t>(size_bytes));
  EXPECT_EQ(
      cudaMemcpy(bytes.data(), from, bytes.size(), cudaMemcpyDeviceToHost),
      cudaSuccess);
  return bytes;
}

// Numbers that look random, in whole words.
inline void FillBytes(uint64_t seed, std::byte* to, int64_t size_bytes) {
  for (int64_t i = 0; i + 8 <= size_bytes; i += 8) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const uint64_t word = seed ^ (seed >> 29);
    __builtin_memcpy(to + i, &word, sizeof(word));
  }
}

}  // namespace moebius
