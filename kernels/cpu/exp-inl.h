// exp of float vectors, for one instruction set.

#if defined(MOEBIUS_KERNELS_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOEBIUS_KERNELS_EXP_INL_H_
#undef MOEBIUS_KERNELS_EXP_INL_H_
#else
#define MOEBIUS_KERNELS_EXP_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moebius {
namespace HWY_NAMESPACE {

// e^x within 2 units in the last place; exactly 1 for 0. Below the smallest
// normal result (x < -87.33), and for NaN: 0. Above x = 88: e^88 (1.7e38), so
// never infinite.
//
// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r) with q the
// interpolation of degree 4 at the Chebyshev nodes (relative error 1.1e-8).
// Half the work of Highway's Exp, which also serves denormal results.
template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
HWY_INLINE V FastExp(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToSigned<D> di;
  const V clamped = hn::Min(x, hn::Set(d, 88.0f));
  // Adding 1.5 * 2^23 leaves n in the low bits.
  const V magic = hn::Set(d, 12582912.0f);
  const V shifted = hn::MulAdd(clamped, hn::Set(d, 1.44269502f), magic);
  const V n = hn::Sub(shifted, magic);
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693145752f), clamped);
  r = hn::NegMulAdd(n, hn::Set(d, 1.42860677e-06f), r);
  V q = hn::MulAdd(hn::Set(d, 0.0013926184f), r, hn::Set(d, 0.00836317893f));
  q = hn::MulAdd(q, r, hn::Set(d, 0.0416665561f));
  q = hn::MulAdd(q, r, hn::Set(d, 0.166665763f));
  q = hn::MulAdd(q, r, hn::Set(d, 0.5f));
  const V p = hn::MulAdd(q, hn::Mul(r, r), hn::Add(hn::Set(d, 1.0f), r));
  // Times 2^n: n added to the exponent.
  const V scaled = hn::BitCast(
      d,
      hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
  return hn::IfThenElseZero(hn::Ge(x, hn::Set(d, -87.33f)), scaled);
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius
HWY_AFTER_NAMESPACE();

#endif
