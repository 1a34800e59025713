#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/failure.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/tiles.h"
#include "kernels/made_up.h"

namespace moebius {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 4096;  // a loop takes what is beyond

int BlocksFor(int64_t threads) {
  return static_cast<int>(
      std::min<int64_t>((threads + kThreads - 1) / kThreads, kMaxBlocks));
}

// A thread writes the 16 bytes of a tile that a thread of a product reads.
__global__ void PackKernel(TilePacking p) {
  constexpr int kParts = kTileElements / 8;
  const int64_t count = int64_t{p.n_tiles} * p.k_tiles * kParts;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t tile = i / kParts;
    const int thread = static_cast<int>(i % kParts);
    const int panel =
        static_cast<int>(p.by_units ? tile % p.n_tiles : tile / p.k_tiles);
    const int unit =
        static_cast<int>(p.by_units ? tile / p.n_tiles : tile % p.k_tiles);
    Bf16 part[8];
    for (int pair = 0; pair < 4; ++pair) {
      const int row = panel * kTileRows + thread / 4 + pair % 2 * 8;
      const int col = unit * kTileRows + thread % 4 * 2 + pair / 2 * 8;
      for (int j = 0; j < 2; ++j) {
        part[2 * pair + j] =
            row < p.n && col + j < p.k ? p.w[row * p.stride + col + j] : Bf16{};
      }
    }
    static_assert(sizeof(part) == sizeof(uint4));
    uint4 bits;
    memcpy(&bits, part, sizeof(bits));
    *reinterpret_cast<uint4*>(p.out + tile * kTileElements + thread * 8) = bits;
  }
}

__global__ void MakeUpMatrixKernel(MadeUpMatrix m, Bf16* out) {
  const int64_t count = m.rows * m.cols;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = m.row_begin + i / m.cols;
    const int64_t col = m.col_begin + i % m.cols;
    out[i] = MadeUpElement(m.seed, static_cast<uint64_t>(row * m.stride + col));
  }
}

__global__ void MakeUpVectorKernel(uint64_t seed, int size, float* out) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < size) out[i] = MadeUpNorm(seed, static_cast<uint64_t>(i));
}

}  // namespace

void PackOnGpu(const TilePacking& packing, CUstream_st* stream,
               CudaFailure* failure) {
  const int64_t threads =
      int64_t{packing.n_tiles} * packing.k_tiles * (kTileElements / 8);
  if (threads == 0) return;
  PackKernel<<<BlocksFor(threads), kThreads, 0, stream>>>(packing);
  failure->Note(CudaStatus(cudaGetLastError(), "packing of weights"));
}

void MakeUpOnGpu(const MadeUpMatrix& matrix, Bf16* out, CUstream_st* stream,
                 CudaFailure* failure) {
  const int64_t threads = matrix.rows * matrix.cols;
  if (threads == 0) return;
  MakeUpMatrixKernel<<<BlocksFor(threads), kThreads, 0, stream>>>(matrix, out);
  failure->Note(CudaStatus(cudaGetLastError(), "making weights up"));
}

void MakeUpOnGpu(uint64_t seed, int size, float* out, CUstream_st* stream,
                 CudaFailure* failure) {
  if (size == 0) return;
  MakeUpVectorKernel<<<(size + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
      seed, size, out);
  failure->Note(CudaStatus(cudaGetLastError(), "making norms up"));
}

}  // namespace moebius
