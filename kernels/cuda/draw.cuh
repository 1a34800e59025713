// The draw of a token: from all logits of a row, or from those that top-k,
// top-p and min-p keep.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/sampling.cuh"

namespace moebius {

struct DrawRoom {
  double warps[kSelectThreads / 32];
  double rest;
  int slice;
  int first, last;  // ids
};

// The slice where the sum of room.sums exceeds `uniform` of the whole, and what
// of it is left for that slice, relative to the slice's highest. By one thread.
__device__ inline void ChooseSlice(const SampleArguments& args, int row,
                                   float highest, const CombineRoom& room,
                                   DrawRoom& draw) {
  const GpuSampleRow& wanted = args.wanted(row);
  const double target = wanted.uniform * room.total;
  double sum = 0.0, before = 0.0;
  int chosen = 0;  // the last with weight so far: rounding may leave no other
  for (int i = 0; i < args.slices; ++i) {
    if (room.sums[i] > 0.0) {
      chosen = i;
      before = sum;
    }
    sum += room.sums[i];
    if (sum > target) break;
  }
  const SlicePart& part = args.parts_of(row)[chosen];
  const float of_slice = ValueOf(static_cast<uint32_t>(part.highest >> 32));
  draw.slice = chosen;
  draw.rest = (target - before) /
              ScaleOf(of_slice, highest, wanted.inverse_temperature);
  draw.first = args.vocabulary;
  draw.last = 0;
}

// Inverse transform over all logits in order of id: first by slices, whose sums
// are in room.sums, then within one.
__device__ inline int32_t DrawFromAll(const SampleArguments& args, int row,
                                      float highest, const CombineRoom& room,
                                      DrawRoom& draw) {
  static_assert(kSelectThreads * 4 == kSliceLogits);
  if (threadIdx.x == 0) ChooseSlice(args, row, highest, room, draw);
  __syncthreads();
  const float factor = args.wanted(row).inverse_temperature;
  const float of_slice = ValueOf(
      static_cast<uint32_t>(args.parts_of(row)[draw.slice].highest >> 32));
  const int begin =
      draw.slice * kSliceLogits + static_cast<int>(threadIdx.x) * 4;
  float weights[4];
  double mine = 0.0, total;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    weights[i] =
        begin + i < args.vocabulary
            ? WeightOf(args.logits_of(row)[begin + i], of_slice, factor)
            : 0.0f;
    mine += weights[i];
  }
  double sum = InclusiveSum(mine, draw.warps, &total) - mine;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum += weights[i];
    if (weights[i] == 0.0f) continue;
    if (sum > draw.rest) atomicMin(&draw.first, begin + i);
    atomicMax(&draw.last, begin + i);
  }
  __syncthreads();
  return draw.first < args.vocabulary ? draw.first : draw.last;
}

// ---- truncated --------------------------------------------------------------

// Weights as integers: 2^44 is the highest logit's, so that those of a million
// logits have room.
inline constexpr float kFixedWeight = 0x1p44f;

// What is kept: keys above `key`, and of those equal to it ids up to `last_id`.
struct Kept {
  uint32_t key = 0;
  uint32_t last_id = ~0u;
  __device__ bool Has(uint32_t other, uint32_t id) const {
    return other > key || (other == key && id <= last_id);
  }
};

template <class Elements>
class TruncatedDraw {
 public:
  __device__ TruncatedDraw(const Elements& elements,
                           const SampleArguments& args, int row,
                           SelectRoom& room)
      : elements_(elements),
        wanted_(args.wanted(row)),
        state_(args.states[row]),
        key_bits_(std::bit_width(KeyOf(state_.draw_highest) - state_.draw_cut)),
        last_id_(static_cast<uint32_t>(args.vocabulary - 1)),
        id_bits_(std::bit_width(last_id_)),
        room_(room) {}

  __device__ int32_t Draw() {
    if (wanted_.top_k > 0) KeepTopK();
    if (wanted_.top_p < 1.0f) KeepTopP();
    const unsigned long long total = Sum();
    const auto target = static_cast<unsigned long long>(
        wanted_.uniform * static_cast<double>(total));
    return static_cast<int32_t>(
        IdAt(min(target, total - 1) + 1, [this](uint32_t key, uint32_t id) {
          return kept_.Has(key, id) ? Weight(key) : 0;
        }));
  }

 private:
  __device__ unsigned long long Weight(uint32_t key) const {
    const float weight = WeightOf(ValueOf(key), state_.draw_highest,
                                  wanted_.inverse_temperature);
    return weight < wanted_.min_p ? 0 : __float2ull_rz(weight * kFixedWeight);
  }
  // Of what is kept.
  __device__ unsigned long long Sum() {
    return SumOfWeights(
        elements_,
        [this](uint32_t key, uint32_t id) {
          return Weighed{0, kept_.Has(key, id) ? Weight(key) : 0};
        },
        room_);
  }
  // The lowest id such that the weights up to it are at least `target`.
  template <class Weigh>
  __device__ uint32_t IdAt(unsigned long long target, const Weigh& weigh) {
    return last_id_ - Select(
                          elements_, id_bits_, target,
                          [&](uint32_t key, uint32_t id) {
                            return Weighed{last_id_ - id, weigh(key, id)};
                          },
                          room_)
                          .number;
  }
  // Numbers for Select of keys from the cut on.
  __device__ Weighed ByKey(uint32_t key, unsigned long long weight) const {
    return key < state_.draw_cut ? Weighed{}
                                 : Weighed{key - state_.draw_cut, weight};
  }

  __device__ void KeepTopK() {
    const Selected least = Select(
        elements_, key_bits_, static_cast<unsigned long long>(wanted_.top_k),
        [this](uint32_t key, uint32_t) { return ByKey(key, 1); }, room_);
    kept_.key = state_.draw_cut + least.number;
  }

  __device__ void KeepTopP() {
    // The cut of top-p alone leaves out what is not needed for the prefix, but
    // belongs to the whole.
    const bool alone = wanted_.top_k == 0 && wanted_.min_p == 0.0f;
    const double total = alone ? state_.draw_sum * double{kFixedWeight}
                               : static_cast<double>(Sum());
    const double mass = ceil(double{fmaxf(wanted_.top_p, 0.0f)} * total);
    const unsigned long long target =
        max(static_cast<unsigned long long>(mass), 1ull);
    const Kept before = kept_;
    const Selected last = Select(
        elements_, key_bits_, target,
        [&](uint32_t key, uint32_t id) {
          return ByKey(key, before.Has(key, id) ? Weight(key) : 0);
        },
        room_);
    kept_.key = state_.draw_cut + last.number;
    // As many of the equal ones as it takes, from the lowest id on.
    const unsigned long long each = max(Weight(kept_.key), 1ull);
    const unsigned long long missing =
        target > last.above ? target - last.above : 1;
    const uint32_t edge = kept_.key;
    kept_.last_id =
        IdAt((missing + each - 1) / each,
             [&](uint32_t key, uint32_t) { return key == edge ? 1ull : 0ull; });
  }

  const Elements elements_;
  const GpuSampleRow& wanted_;
  const RowState& state_;
  const int key_bits_;
  const uint32_t last_id_;
  const int id_bits_;
  SelectRoom& room_;
  Kept kept_;
};

}  // namespace moebius
