// Products of packed weights with rows of activations, on tensor cores: what
// Project, ProjectPartial and the experts have in common.
//
// Weights are the first operand of mma.m16n8k16 (16 outputs), activations the
// second one (8 rows). Tiles of weights go from memory into registers, by one
// read of 16 bytes a thread; activations are split into BF16 numbers on the
// way.
//
// Exact numerics: the reduced dimension is cut into slices, and each slice into
// chains of at most kChainTiles tiles, by sizes of the model alone (Cut). A
// chain is one accumulator that begins at zero and takes tiles in order, the
// high halves of the activations before the low ones. A slice's sum is that of
// its chains, in order. Both kinds of kernel below compute just that, so a row
// has the same bits whichever runs, and in whatever company.
//   FewRows    a block's warps share the chains: as many reads in flight as a
//              decode step needs. Activations come straight from memory.
//   ManyRows   a block's warps share outputs and rows, which go through a ring
//              in shared memory: each is read once a block.
// Fast numerics: in ManyRows a single chain does; and from hundreds of rows on
// Hopper has kernels of its own (wide_rows.h).
#pragma once

#include "kernels/cuda/few_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/many_rows.cuh"
#include "kernels/formats.h"

namespace moebius::products {

template <Numerics N, bool kSliced, class T, class Store>
__device__ void MultiplyRows(const Work<T>& work, const Store& store) {
  WaitForEarlier();
  if constexpr (T::kMany) {
    MultiplyManyRows<N, kSliced, T>(work, store);
  } else {
    MultiplyFewRows<N, kSliced, T>(work, store);
  }
}

// Blocks that a multiprocessor has registers for: what hides the time that
// memory takes to answer.
template <Numerics N, bool kSliced, class T>
inline constexpr int kBlocks =
    T::kMany&& N == Numerics::kExact&& kSliced&& T::kPanels* T::kGroups > 4 ? 1
                                                                            : 2;

// activation(gate, up) of an expert (formats.h).
__device__ inline float Activate(const GatedActivation& activation, float gate,
                                 float up) {
  if (activation.limit <= 0.0f) return gate / (1.0f + expf(-gate)) * up;
  const float g = fminf(gate, activation.limit);
  const float u = fminf(fmaxf(up, -activation.limit), activation.limit);
  return g / (1.0f + expf(-activation.alpha * g)) * (u + 1.0f);
}

inline int DivideUp(int a, int b) { return (a + b - 1) / b; }

// With the shared memory that the kind T wants.
template <class T, Numerics N, class Args>
void Launch(const Cuda<N>& device, const char* what, void (*kernel)(Args),
            dim3 grid, const Args& args) {
  if constexpr (T::kSharedBytes > 0) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         T::kSharedBytes);
  }
  LaunchEarly(device.stream, device.failure, what,
              {grid, kThreads, T::kSharedBytes}, kernel, args);
}

// 128 outputs; 64 rows, or 128 where a row takes half the room.
template <Numerics N>
using LargeBlocks =
    std::conditional_t<N == Numerics::kExact, ManyRows<4, 2>, ManyRows<4, 4>>;

// Calls run(T()) with the kind of kernel for that many rows and panels, where
// every row meets every panel.
template <Numerics N, class Run>
void WithKind(const Cuda<N>& device, int rows, int panels, const Run& run) {
  const auto fills = [&]<class T>(T) {
    return DivideUp(panels, T::kBlockPanels) * DivideUp(rows, T::kBlockRows) >=
           device.num_multiprocessors;
  };
  const bool few_panels = panels < 2 * device.num_multiprocessors;
  if (rows <= 8) {
    return few_panels ? run(FewRows<1, 1>()) : run(FewRows<2, 1>());
  }
  if (rows <= 32 && fills(ManyRows<4, 1>())) return run(ManyRows<4, 1>());
  if (rows <= 16) {
    return few_panels ? run(FewRows<2, 1>()) : run(FewRows<2, 2>());
  }
  if (fills(LargeBlocks<N>())) return run(LargeBlocks<N>());
  if (rows <= 32) {
    return few_panels ? run(FewRows<2, 2>()) : run(FewRows<2, 4>());
  }
  if (rows <= 64) return run(FewRows<2, 2>());
  if (rows <= 128) return run(FewRows<2, 4>());
  if (fills(ManyRows<4, 1>())) return run(ManyRows<4, 1>());
  run(ManyRows<2, 1>());
}

}  // namespace moebius::products
