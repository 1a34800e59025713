#include <cuda_runtime.h>

#include <algorithm>

#include "worker/model/pass_begin.h"
#include "worker/peers/meeting.cuh"

namespace moebius {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 64;
constexpr int kWordBytes = 16;  // what a thread copies at once
constexpr int kTokensOfWord = kWordBytes / int{sizeof(int32_t)};

constexpr __host__ __device__ int64_t WordsOf(int64_t size_bytes) {
  return (size_bytes + kWordBytes - 1) / kWordBytes;
}

// A peer may have put anything there; the embedding knows which ids there are.
__device__ int32_t Known(const TokenPlaces& places, int32_t token) {
  if (!IsAtPlace(token)) return token;
  const int place = PlaceOf(token);
  if (place >= places.count) return -1;
  return *static_cast<volatile const int32_t*>(places.own + place);
}

__global__ void __launch_bounds__(kThreads)
    Begin(const __grid_constant__ PassBeginning pass) {
  const int first = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int step = static_cast<int>(gridDim.x * kThreads);
  if (first == 0) StartMeetings(pass.meetings);
#pragma unroll
  for (int c = 0; c < static_cast<int>(pass.copies.size()); ++c) {
    const HostCopy& copy = pass.copies[c];
    const int64_t words = WordsOf(copy.size_bytes);
    for (int64_t w = first; w < words; w += step) {
      int4 word = static_cast<const int4*>(copy.from)[w];
      if (c == 0 && w * kTokensOfWord < pass.num_tokens) {
        int32_t* const tokens = reinterpret_cast<int32_t*>(&word);
#pragma unroll
        for (int i = 0; i < kTokensOfWord; ++i) {
          if (w * kTokensOfWord + i >= pass.num_tokens) break;
          tokens[i] = Known(pass.places, tokens[i]);
        }
      }
      static_cast<int4*>(copy.to)[w] = word;
    }
  }
}

}  // namespace

void LaunchBeginning(const PassBeginning& beginning, CUstream_st* stream,
                     CudaFailure* failure) {
  int64_t most = 1;
  for (const HostCopy& copy : beginning.copies) {
    most = std::max(most, WordsOf(copy.size_bytes));
  }
  const auto blocks = static_cast<unsigned>(
      std::min<int64_t>((most + kThreads - 1) / kThreads, kMostBlocks));
  Begin<<<blocks, kThreads, 0, stream>>>(beginning);
  failure->Note(CudaStatus(cudaGetLastError(), "the begin of a pass"));
}

}  // namespace moebius
