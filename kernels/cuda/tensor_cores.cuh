// The tensor cores' product of BF16 matrices, m16n8k16, and how its operands
// get into registers (PTX ISA, "Matrix fragments for mma.m16n8k16",
// "ldmatrix").
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace moebius {

// sum += a b, of 16 x 16, 16 x 8 and 16 x 8 elements. An element of `sum`
// depends on its row of a and its column of b alone.
__device__ inline void MultiplyTile(float (&sum)[4], const uint32_t (&a)[4],
                                    uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats rounded to BF16, the first in the lower half.
__device__ inline uint32_t PackBf16(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ inline float FirstOf(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ inline float SecondOf(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
// What PackBf16 left of the two, rounded as well.
__device__ inline uint32_t PackRest(float first, float second,
                                    uint32_t packed) {
  return PackBf16(first - FirstOf(packed), second - SecondOf(packed));
}

// Four matrices of 8 rows of 16 bytes in shared memory; lane l gives row l % 8
// of matrix l / 8.
__device__ inline void LoadMatrices(uint32_t (&to)[4],
                                    const __nv_bfloat16* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
      : "r"(at)
      : "memory");
}
// Each of them transposed.
__device__ inline void LoadTransposed(uint32_t (&to)[4],
                                      const __nv_bfloat16* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
      : "r"(at)
      : "memory");
}

// Copies 16 bytes to shared memory without waiting, or zeros unless `there`.
__device__ inline void CopyAhead(void* to, const void* from, bool there) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at),
               "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
// Ends a group of copies.
__device__ inline void EndCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kGroups of this thread's groups are still under way.
template <int kGroups>
__device__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

}  // namespace moebius
