#include "worker/model/pass_buckets.h"

#include <algorithm>

#include "common/base/check.h"

namespace moebius {
namespace {

// 1, 2, 4, 8, 16, and from there on 3 * 2^k and 2^(k+2) in turn: at most a
// third of a bucket is padding, but for the smallest, where a step reads the
// weights of more experts than rows.
int NextRows(int rows) {
  if (rows < 16) return 2 * rows;
  const bool power_of_2 = (rows & (rows - 1)) == 0;
  return power_of_2 ? rows / 2 * 3 : rows / 3 * 4;
}

constexpr int kFewestPositions = 1024;
constexpr int kPositionFactor = 4;

// Most rows of a rank that can be padded.
int MostRows(Layout attention, int num_ranks, const PadLimits& limits) {
  const int of_group = limits.of_step / attention.num_groups(num_ranks);
  return std::min(of_group, limits.of_rank);
}

}  // namespace

int PaddedRows(const PassSizes& sizes, const PadLimits& limits) {
  if (!sizes.layout.experts.steady() || sizes.rows.empty() ||
      sizes.rows != sizes.wanted) {
    return 0;
  }
  const int largest = *std::max_element(sizes.rows.begin(), sizes.rows.end());
  const int most = MostRows(sizes.layout.attention, sizes.num_ranks, limits);
  if (largest < 1 || largest > most) return 0;
  int rows = 1;
  while (rows < largest) rows = NextRows(rows);
  return std::min(rows, most);
}

std::vector<int> RowBuckets(Layout attention, int num_ranks,
                            const PadLimits& limits) {
  const int most = MostRows(attention, num_ranks, limits);
  std::vector<int> buckets;
  if (most < 1) return buckets;
  for (int rows = 1; rows < most; rows = NextRows(rows)) {
    buckets.push_back(rows);
  }
  buckets.push_back(most);
  return buckets;
}

int PositionBucket(int positions, int context, int alike) {
  CHECK(positions <= context);
  int bucket = std::min(kFewestPositions, context);
  while (bucket < positions) {
    bucket =
        bucket > context / kPositionFactor ? context : bucket * kPositionFactor;
  }
  return bucket < alike ? bucket : context;
}

std::vector<int> PositionBuckets(int context, int alike) {
  std::vector<int> buckets = {PositionBucket(0, context, alike)};
  while (buckets.back() < context) {
    buckets.push_back(PositionBucket(buckets.back() + 1, context, alike));
  }
  return buckets;
}

PassKey KeyOf(const StepLayout& layout, int rows, int positions) {
  CHECK(layout.experts.steady());
  return {layout.attention, layout.experts.from, layout.experts.side, rows,
          positions};
}

}  // namespace moebius
