#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/cpu/targets.h"
#include "kernels/cpu/vocabulary_scan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/vocabulary_scan_cpu.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::CappedTag<float, 16>;
using Vec = hn::Vec<Floats>;
inline constexpr size_t kLanes = hn::MaxLanes(Floats());
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// values[i .. i + kLanes), -infinity for NaN and beyond n.
HWY_INLINE Vec LoadValues(const float* values, size_t i, size_t n) {
  const Floats d;
  const auto minus_infinity = hn::Set(d, kMinusInfinity);
  Vec v;
  if (i + kLanes <= n) {
    v = hn::LoadU(d, values + i);
  } else {
    HWY_ALIGN float tail[kLanes];
    for (size_t j = 0; j < kLanes; ++j) {
      tail[j] = i + j < n ? values[i + j] : kMinusInfinity;
    }
    v = hn::Load(d, tail);
  }
  return hn::IfThenElse(hn::Eq(v, v), v, minus_infinity);
}

// Adds float lanes to double lanes.
struct DoubleSum {
#if HWY_TARGET == HWY_SCALAR
  double sum = 0.0;
  HWY_INLINE void Add(Vec v) { sum += hn::GetLane(v); }
  HWY_INLINE double Total() const { return sum; }
#else
  using Doubles = hn::Repartition<double, Floats>;
  hn::Vec<Doubles> low, high;
  // Written out: an implicit constructor would not have the target's
  // attributes.
  HWY_INLINE DoubleSum() : low(hn::Zero(Doubles())), high(low) {}
  HWY_INLINE void Add(Vec v) {
    const hn::Half<Floats> dh;
    const Doubles dd;
    low = hn::Add(low, hn::PromoteTo(dd, hn::LowerHalf(dh, v)));
    high = hn::Add(high, hn::PromoteTo(dd, hn::UpperHalf(dh, v)));
  }
  HWY_INLINE double Total() const {
    return hn::GetLane(hn::SumOfLanes(Doubles(), hn::Add(low, high)));
  }
#endif
};

float HighestValue(const float* values, size_t n) {
  const Floats d;
  auto a = hn::Set(d, kMinusInfinity), b = a, c = a, e = a;
  size_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a = hn::Max(a, LoadValues(values, i, n));
    b = hn::Max(b, LoadValues(values, i + kLanes, n));
    c = hn::Max(c, LoadValues(values, i + 2 * kLanes, n));
    e = hn::Max(e, LoadValues(values, i + 3 * kLanes, n));
  }
  for (; i < n; i += kLanes) a = hn::Max(a, LoadValues(values, i, n));
  return hn::GetLane(hn::MaxOfLanes(d, hn::Max(hn::Max(a, b), hn::Max(c, e))));
}

// A value times 0 is 0 where it is finite, and NaN elsewhere.
bool IsFiniteAll(const float* values, size_t n) {
  const Floats d;
  const auto zero = hn::Zero(d);
  auto a = zero, b = zero;
  size_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    a = hn::Add(a, hn::Mul(hn::LoadU(d, values + i), zero));
    b = hn::Add(b, hn::Mul(hn::LoadU(d, values + i + kLanes), zero));
  }
  for (; i < n; ++i) {
    if (!std::isfinite(values[i])) return false;
  }
  return hn::AllTrue(d, hn::Eq(hn::Add(a, b), zero));
}

// First index that holds `value`; n when none.
size_t FirstEqual(const float* values, size_t n, float value) {
  const Floats d;
  const auto wanted = hn::Set(d, value);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const intptr_t lane =
        hn::FindFirstTrue(d, hn::Eq(hn::LoadU(d, values + i), wanted));
    if (lane >= 0) return i + static_cast<size_t>(lane);
  }
  while (i < n && values[i] != value) ++i;
  return i;
}

double ExpChunk(const float* logits, size_t n, float shift, float factor,
                float least, float* weights) {
  const Floats d;
  const auto shift_v = hn::Set(d, shift), factor_v = hn::Set(d, factor);
  const auto least_v = hn::Set(d, least);
  DoubleSum sum;
  for (size_t i = 0; i < n; i += kLanes) {
    auto w = FastExp(
        d, hn::Mul(hn::Sub(LoadValues(logits, i, n), shift_v), factor_v));
    w = hn::IfThenElseZero(hn::Ge(w, least_v), w);
    sum.Add(w);
    if (i + kLanes <= n) {
      hn::StoreU(w, d, weights + i);
    } else {
      HWY_ALIGN float tail[kLanes];
      hn::Store(w, d, tail);
      std::copy_n(tail, n - i, weights + i);
    }
  }
  return sum.Total();
}

double SumExpAll(const float* logits, size_t n, float shift) {
  const Floats d;
  const auto shift_v = hn::Set(d, shift);
  DoubleSum sum;
  for (size_t i = 0; i < n; i += kLanes) {
    sum.Add(FastExp(d, hn::Sub(LoadValues(logits, i, n), shift_v)));
  }
  return sum.Total();
}

double SumAtLeastAll(const float* weights, size_t n, float least) {
  const Floats d;
  const auto least_v = hn::Set(d, least);
  DoubleSum sum;
  for (size_t i = 0; i < n; i += kLanes) {
    const auto w = LoadValues(weights, i, n);
    sum.Add(hn::IfThenElseZero(hn::Ge(w, least_v), w));
  }
  return sum.Total();
}

size_t CountAboveAll(const float* values, size_t n, float value) {
  const Floats d;
  const auto bound = hn::Set(d, value);
  size_t count = 0;
  for (size_t i = 0; i < n; i += kLanes) {
    count += hn::CountTrue(d, hn::Gt(LoadValues(values, i, n), bound));
  }
  return count;
}

size_t CollectAll(const float* values, size_t n, float least,
                  int32_t* indices) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const auto bound = hn::Set(d, least);
  size_t count = 0;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto mask = hn::Ge(hn::LoadU(d, values + i), bound);
    if (hn::AllFalse(d, mask)) continue;
    count += hn::CompressStore(hn::Iota(di, static_cast<int32_t>(i)),
                               hn::RebindMask(di, mask), di, indices + count);
  }
  for (; i < n; ++i) {
    if (values[i] >= least) indices[count++] = static_cast<int32_t>(i);
  }
  return count;
}

// Keeps candidates above a bound that rises whenever `capacity` of them are
// together: then all but the k highest are dropped.
float KthHighestOf(const float* values, size_t n, size_t k, size_t capacity,
                   float* candidates) {
  const Floats d;
  float bound = kMinusInfinity;
  size_t count = 0;
  for (size_t i = 0; i < n; i += kLanes) {
    const auto v = LoadValues(values, i, n);
    const auto mask = hn::Gt(v, hn::Set(d, bound));
    if (hn::AllFalse(d, mask)) continue;
    count += hn::CompressStore(v, mask, d, candidates + count);
    if (count >= capacity) {
      std::nth_element(candidates, candidates + (k - 1), candidates + count,
                       std::greater<float>());
      bound = candidates[k - 1];
      count = k;
    }
  }
  if (count < k) return kMinusInfinity;
  std::nth_element(candidates, candidates + (k - 1), candidates + count,
                   std::greater<float>());
  return candidates[k - 1];
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius {
namespace {

HWY_EXPORT(HighestValue);
HWY_EXPORT(FirstEqual);
HWY_EXPORT(IsFiniteAll);
HWY_EXPORT(ExpChunk);
HWY_EXPORT(SumExpAll);
HWY_EXPORT(SumAtLeastAll);
HWY_EXPORT(CountAboveAll);
HWY_EXPORT(CollectAll);
HWY_EXPORT(KthHighestOf);

}  // namespace

HighestLogit FindHighest(absl::Span<const float> logits) {
  const float value =
      HWY_DYNAMIC_DISPATCH(HighestValue)(logits.data(), logits.size());
  const size_t index =
      HWY_DYNAMIC_DISPATCH(FirstEqual)(logits.data(), logits.size(), value);
  // Only NaN: none equals -infinity.
  return {index < logits.size() ? static_cast<int32_t>(index) : 0, value};
}

bool AllFinite(absl::Span<const float> values) {
  return HWY_DYNAMIC_DISPATCH(IsFiniteAll)(values.data(), values.size());
}

double ExpWeights(absl::Span<const float> logits, float shift, float factor,
                  float least, float* weights, double* chunk_sums) {
  double total = 0.0;
  for (size_t i = 0; i < logits.size(); i += kWeightChunk) {
    const size_t n = std::min(kWeightChunk, logits.size() - i);
    const double sum = HWY_DYNAMIC_DISPATCH(ExpChunk)(
        logits.data() + i, n, shift, factor, least, weights + i);
    *chunk_sums++ = sum;
    total += sum;
  }
  return total;
}

double SumExp(absl::Span<const float> logits, float shift) {
  return HWY_DYNAMIC_DISPATCH(SumExpAll)(logits.data(), logits.size(), shift);
}

double SumAtLeast(absl::Span<const float> weights, float least) {
  return HWY_DYNAMIC_DISPATCH(SumAtLeastAll)(weights.data(), weights.size(),
                                             least);
}

int32_t CountAbove(absl::Span<const float> values, float value) {
  return static_cast<int32_t>(
      HWY_DYNAMIC_DISPATCH(CountAboveAll)(values.data(), values.size(), value));
}

size_t CollectAtLeast(absl::Span<const float> values, float least,
                      int32_t* indices) {
  return HWY_DYNAMIC_DISPATCH(CollectAll)(values.data(), values.size(), least,
                                          indices);
}

float KthHighest(absl::Span<const float> values, size_t k, float* scratch) {
  return HWY_DYNAMIC_DISPATCH(KthHighestOf)(
      values.data(), values.size(), k, std::max<size_t>(2 * k, 1024), scratch);
}

}  // namespace moebius
#endif  // HWY_ONCE
