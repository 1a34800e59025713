// The router: logits, the experts of a row, and the rows of an expert.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/tensor_cores.cuh"
#include "kernels/cuda/tiles.h"
#include "kernels/route.h"

namespace moebius {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;

// ---- logits ----------------------------------------------------------------

constexpr int kLogitWarps = 8;  // each has an eighth of the reduced dimension

struct LogitArguments {
  const float* x = nullptr;
  ptrdiff_t stride = 0;
  int num_rows = 0;
  const Bf16* router = nullptr;
  const float* bias = nullptr;  // [n]; null: none
  int n = 0;
  int k = 0;
  float* logits = nullptr;  // [num_rows][n]
};

// Two floats as the sums of three pairs of BF16, without a loss: in fast
// numerics as well, since no error is larger than a wrong expert. Infinity is
// itself and two zeros.
__device__ void SplitInThree(float2 x, uint32_t (&parts)[3]) {
#pragma unroll
  for (uint32_t& part : parts) {
    part = PackBf16(x.x, x.y);
    x.x = isinf(x.x) ? 0.0f : x.x - FirstOf(part);
    x.y = isinf(x.y) ? 0.0f : x.y - SecondOf(part);
  }
}

// Some tiles of a warp's share of the reduced dimension, as two operands: of
// kPanels panels of 16 experts, and kTiles times 8 rows. All of them are read
// before the first is used.
template <int kTiles, int kPanels>
struct LogitBatch {
  static constexpr int kBatch = std::max(1, 16 / (kTiles * kPanels));
  uint4 weights[kBatch][kPanels];
  float2 low[kBatch][kTiles], high[kBatch][kTiles];

  // Of panels behind the last one: that again.
  __device__ void LoadWeights(const LogitArguments& args, int begin, int end) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int last = (args.n + kTileRows - 1) / kTileRows - 1;
#pragma unroll
    for (int t = 0; t < kBatch; ++t) {
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        const int panel = min(static_cast<int>(blockIdx.x) * kPanels + p, last);
        weights[t][p] = {};
        if (begin + t >= end) continue;
        weights[t][p] = *reinterpret_cast<const uint4*>(
            args.router + size_t{kTileRows} * panel * args.k + 8 * lane +
            size_t{kTileElements} * (begin + t));
      }
    }
  }
  __device__ void LoadRows(const LogitArguments& args, int first_row, int begin,
                           int end) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int row = first_row + 8 * i + lane / 4;
      const float* const x = args.x + row * args.stride + lane % 4 * 2;
#pragma unroll
      for (int t = 0; t < kBatch; ++t) {
        low[t][i] = high[t][i] = {};
        if (row >= args.num_rows || begin + t >= end) continue;
        const float* const at = x + (begin + t) * kTileRows;
        low[t][i] = *reinterpret_cast<const float2*>(at);
        high[t][i] = *reinterpret_cast<const float2*>(at + 8);
      }
    }
  }
  __device__ void Multiply(int count, float (&sums)[kPanels][kTiles][4]) const {
#pragma unroll
    for (int t = 0; t < kBatch; ++t) {
      if (t >= count) continue;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        uint32_t b0[3], b1[3];
        SplitInThree(low[t][i], b0);
        SplitInThree(high[t][i], b1);
#pragma unroll
        for (int part = 0; part < 3; ++part) {
#pragma unroll
          for (int p = 0; p < kPanels; ++p) {
            const uint4& tile = weights[t][p];
            const uint32_t w[4] = {tile.x, tile.y, tile.z, tile.w};
            MultiplyTile(sums[p][i], w, b0[part], b1[part]);
          }
        }
      }
    }
  }
};

// A warp adds the shares of a panel and 8 rows.
template <int kTiles>
__device__ void StoreLogits(const LogitArguments& args,
                            const float4 (&shares)[kLogitWarps][kTiles][32],
                            int panel, int first_row) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float4 sum = shares[0][warp][lane];
#pragma unroll
  for (int w = 1; w < kLogitWarps; ++w) {
    const float4 share = shares[w][warp][lane];
    sum.x += share.x;
    sum.y += share.y;
    sum.z += share.z;
    sum.w += share.w;
  }
  // Experts lane / 4 and 8 on, rows 2 (lane % 4) and the next.
  const auto store = [&](int expert, int row, float logit) {
    expert += panel * kTileRows;
    row += first_row;
    if (expert < args.n && row < args.num_rows) {
      args.logits[int64_t{row} * args.n + expert] =
          args.bias == nullptr ? logit : logit + args.bias[expert];
    }
  };
  const int expert = lane / 4, row = lane % 4 * 2;
  store(expert, row, sum.x);
  store(expert, row + 1, sum.y);
  store(expert + 8, row, sum.z);
  store(expert + 8, row + 1, sum.w);
}

// A block's part of the logits, of [panels of 16 experts / kPanels]
// [rows / (8 kTiles)] blocks. Where a warp's share of the reduced dimension
// begins follows from its length, and shares are added in their order: nothing
// depends on the rows.
template <int kTiles, int kPanels>
__device__ void LogitsOfBlock(const LogitArguments& args) {
  __shared__ float4 shares[kLogitWarps][kTiles][32];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = static_cast<int>(blockIdx.y) * 8 * kTiles;
  const int tiles = args.k / kTileRows;
  const int begin = tiles * warp / kLogitWarps;
  const int end = tiles * (warp + 1) / kLogitWarps;
  using Batch = LogitBatch<kTiles, kPanels>;
  Batch batch;
  batch.LoadWeights(args, begin, end);
  WaitForEarlier();
  float sums[kPanels][kTiles][4] = {};
  for (int at = begin; at < end; at += Batch::kBatch) {
    if (at > begin) batch.LoadWeights(args, at, end);
    batch.LoadRows(args, first_row, at, end);
    batch.Multiply(end - at, sums);
  }
#pragma unroll
  for (int p = 0; p < kPanels; ++p) {
    for (int i = 0; i < kTiles; ++i) {
      shares[warp][i][lane] = {sums[p][i][0], sums[p][i][1], sums[p][i][2],
                               sums[p][i][3]};
    }
    __syncthreads();
    if (warp < kTiles) {
      StoreLogits<kTiles>(args, shares,
                          static_cast<int>(blockIdx.x) * kPanels + p,
                          first_row + 8 * warp);
    }
    __syncthreads();
  }
}

template <int kTiles, int kPanels>
__global__ void __launch_bounds__(32 * kLogitWarps)
    RouterLogits(const __grid_constant__ LogitArguments args) {
  LogitsOfBlock<kTiles, kPanels>(args);
}

// ---- experts of a row ------------------------------------------------------

constexpr int kChoiceWarps = 4;

struct ChoiceArguments {
  const int32_t* positions = nullptr;  // Routing::positions
  const float* logits = nullptr;
  int num_rows = 0;
  int num_experts = 0;
  int top_k = 0;
  bool renormalize = false;
  int32_t* experts = nullptr;
  float* weights = nullptr;
};

// Keys are in the order of the floats, and above 0. NaN counts as -infinity,
// and -0 as 0.
__device__ uint32_t KeyOf(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float ValueOf(uint32_t key) {
  return __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}

// A warp a row; lane l has experts l, l + 32, ..., kEach of them at most.
template <int kEach>
class Choice {
 public:
  __device__ Choice(const float* logits, int num_experts)
      : lane_(static_cast<int>(threadIdx.x) % 32), num_experts_(num_experts) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int expert = lane_ + 32 * j;
      // Other blocks of this kernel may have written it.
      const float value = expert < num_experts ? __ldcg(logits + expert) : 0.0f;
      values_[j] = isnan(value) ? -INFINITY : value;
      left_[j] = expert < num_experts ? KeyOf(values_[j]) : 0;
    }
  }

  // The highest that is left, the lowest of equals; it is left no more.
  __device__ int Take(uint32_t* key) {
    uint32_t highest = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) highest = max(highest, left_[j]);
    highest = __reduce_max_sync(kAllLanes, highest);
    uint32_t expert = ~0u;
#pragma unroll
    for (int j = kEach - 1; j >= 0; --j) {
      if (left_[j] == highest) expert = static_cast<uint32_t>(lane_ + 32 * j);
    }
    expert = __reduce_min_sync(kAllLanes, expert);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (expert == static_cast<uint32_t>(lane_ + 32 * j)) left_[j] = 0;
    }
    *key = highest;
    return static_cast<int>(expert);
  }

  // Of all experts, relative to the highest logit.
  __device__ float SumOfExponentials(float highest) const {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (lane_ + 32 * j < num_experts_) {
        sum += Exponential(values_[j], highest);
      }
    }
    return SumOfWarp(sum);
  }

  // Infinite logits share the mass; when all are -infinity all do.
  static __device__ float Exponential(float value, float highest) {
    if (isinf(highest)) return value == highest ? 1.0f : 0.0f;
    return expf(value - highest);
  }

 private:
  const int lane_;
  const int num_experts_;
  float values_[kEach];
  uint32_t left_[kEach];  // keys; 0: taken, or no expert
};

// What a row chose: lane l has choices l and l + 32.
struct Chosen {
  static constexpr int kMine = kMaxExpertsPerToken / 32;
  int32_t experts[kMine];  // -1: none
  float weights[kMine];
};

// By a warp, which stores them too. A row that is padding chooses none.
template <int kEach>
__device__ Chosen ChooseForRow(const ChoiceArguments& args, int row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool padding = args.positions != nullptr && args.positions[row] < 0;
  Choice<kEach> choice(args.logits + int64_t{row} * args.num_experts,
                       args.num_experts);
  Chosen chosen;
#pragma unroll
  for (int i = 0; i < Chosen::kMine; ++i) {
    chosen.experts[i] = -1;
    chosen.weights[i] = 0.0f;
  }
  float highest = 0.0f, chosen_sum = 0.0f;
  for (int j = 0; j < args.top_k && !padding; ++j) {
    uint32_t key;
    const int expert = choice.Take(&key);
    const float value = ValueOf(key);
    if (j == 0) highest = value;
    const float weight = Choice<kEach>::Exponential(value, highest);
    chosen_sum += weight;
#pragma unroll
    for (int i = 0; i < Chosen::kMine; ++i) {
      if (j == lane + 32 * i) {
        chosen.experts[i] = expert;
        chosen.weights[i] = weight;
      }
    }
  }
  const float total =
      args.renormalize ? chosen_sum : choice.SumOfExponentials(highest);
#pragma unroll
  for (int i = 0; i < Chosen::kMine; ++i) {
    const int j = lane + 32 * i;
    if (j >= args.top_k) continue;
    if (!padding) chosen.weights[i] /= total;
    args.experts[int64_t{row} * args.top_k + j] = chosen.experts[i];
    args.weights[int64_t{row} * args.top_k + j] = chosen.weights[i];
  }
  return chosen;
}

template <int kEach>
__global__ void __launch_bounds__(32 * kChoiceWarps)
    ChooseExperts(const __grid_constant__ ChoiceArguments args) {
  const int row =
      static_cast<int>(blockIdx.x * kChoiceWarps + threadIdx.x / 32);
  WaitForEarlier();
  if (row < args.num_rows) ChooseForRow<kEach>(args, row);
}

// ---- few rows --------------------------------------------------------------

constexpr int kMostExperts = 512;
constexpr int kFewRows = kLogitWarps;  // a warp each

// Where the groups of all experts go (Routing), and how the blocks of a kernel
// know which of them is the last.
struct GroupArguments {
  int32_t* begins = nullptr;
  int32_t* rows = nullptr;
  float* weights = nullptr;
  uint32_t* arrivals = nullptr;
};

// True in the last of the grid's blocks to come here, which sees what the
// others wrote before.
__device__ bool IsLastBlock(uint32_t* arrivals) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrivals, 1u) == gridDim.x - 1;
    if (last) *arrivals = 0;  // for the next kernel
    __threadfence();
  }
  __syncthreads();
  return last;
}

// Logits, choices and groups of at most kFewRows rows, where one launch more
// takes longer than what it does. A block of threads a panel of experts; the
// last one to be done goes on alone.
template <int kEach>
__global__ void __launch_bounds__(32 * kLogitWarps)
    RouteFewRows(const __grid_constant__ LogitArguments logits,
                 const __grid_constant__ ChoiceArguments choice,
                 const __grid_constant__ GroupArguments groups) {
  constexpr int kThreads = 32 * kLogitWarps, kMine = kMostExperts / kThreads;
  __shared__ uint32_t rows_of[kMostExperts];  // a bit for each
  __shared__ int begins[kMostExperts];
  const int row = static_cast<int>(threadIdx.x) / 32;
  const int first = static_cast<int>(threadIdx.x) * kMine;
  LogitsOfBlock<1, 1>(logits);
#pragma unroll
  for (int i = 0; i < kMine; ++i) rows_of[first + i] = 0;
  if (!IsLastBlock(groups.arrivals)) return;
  Chosen chosen;
  if (row < choice.num_rows) {
    chosen = ChooseForRow<kEach>(choice, row);
#pragma unroll
    for (int i = 0; i < Chosen::kMine; ++i) {
      if (chosen.experts[i] < 0) continue;
      atomicOr(&rows_of[chosen.experts[i]], 1u << row);
    }
  }
  __syncthreads();
  int count = 0;
#pragma unroll
  for (int i = 0; i < kMine; ++i) count += __popc(rows_of[first + i]);
  int at = SumBefore<kThreads>(count);
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    begins[first + i] = at;
    if (first + i <= logits.n) groups.begins[first + i] = at;
    at += __popc(rows_of[first + i]);
    // Behind the last one of as many as there can be.
    if (first + i + 1 == kMostExperts && logits.n == kMostExperts) {
      groups.begins[kMostExperts] = at;
    }
  }
  __syncthreads();
  if (row >= choice.num_rows) return;
#pragma unroll
  for (int i = 0; i < Chosen::kMine; ++i) {
    const int expert = chosen.experts[i];
    if (expert < 0) continue;
    const uint32_t earlier = rows_of[expert] & ((1u << row) - 1);
    groups.rows[begins[expert] + __popc(earlier)] = row;
    groups.weights[begins[expert] + __popc(earlier)] = chosen.weights[i];
  }
}

unsigned Blocks(int rows, int block_rows) {
  return static_cast<unsigned>((rows + block_rows - 1) / block_rows);
}

// Many rows read a weight together; few are spread out.
template <Numerics N>
void LaunchLogits(const Cuda<N>& device, const LogitArguments& args) {
  const auto launch = [&]<int kTiles, int kPanels>(
                          std::integral_constant<int, kTiles>,
                          std::integral_constant<int, kPanels>) {
    const LaunchShape shape{dim3(Blocks(args.n, kTileRows * kPanels),
                                 Blocks(args.num_rows, 8 * kTiles)),
                            32 * kLogitWarps};
    LaunchEarly(device.stream, device.failure, "logits of the router", shape,
                RouterLogits<kTiles, kPanels>, args);
  };
  using One = std::integral_constant<int, 1>;
  if (args.num_rows <= 128) return launch(One(), One());
  if (args.num_rows <= 1024) {
    return launch(std::integral_constant<int, 2>(), One());
  }
  // Enough rows for all multiprocessors, so that each is split once.
  launch(std::integral_constant<int, 4>(), std::integral_constant<int, 8>());
}

// False, and noted, without memory.
template <Numerics N>
bool RouteFew(const Cuda<N>& device, const LogitArguments& logits,
              const ChoiceArguments& choice, Routing<Cuda<N>>& routing) {
  if (routing.arrivals.data() == nullptr) {
    routing.arrivals = {device, "arrivals of blocks", 1};
    if (routing.arrivals.data() == nullptr) return false;
    const uint32_t none = 0;
    UploadToGpu(&none, sizeof(none), routing.arrivals.data(), device.stream,
                device.failure);
  }
  if (!MakeRoom(device, logits.n, choice.num_rows * choice.top_k, routing)) {
    return false;
  }
  const GroupArguments groups{routing.begins.data(), routing.rows.data(),
                              routing.weights.data(), routing.arrivals.data()};
  LaunchEarly(device.stream, device.failure, "the router",
              {dim3(Blocks(logits.n, kTileRows)), 32 * kLogitWarps},
              logits.n <= 128 ? RouteFewRows<4> : RouteFewRows<16>, logits,
              choice, groups);
  return true;
}

}  // namespace

template <Numerics N>
void Route(const Cuda<N>& device, const RouterShape& shape, ConstGpuRows<N> x,
           Given<const ColumnParallel<Cuda<N>>&> router,
           Given<Routing<Cuda<N>>&> routing,
           Given<const Assignments<Cuda<N>>&> out) {
  routing.grouped = {};
  if (x.rows == 0) return;
  if (router.n > kMostExperts) {
    return device.failure->Note(
        absl::UnimplementedError("a router of more than 512 experts"));
  }
  const int64_t room = int64_t{x.rows} * router.n;
  if (routing.logit_room < room) {
    routing.logits =
        Buffer<float, Cuda<N>>(device, "logits of the router", room);
    routing.logit_room = routing.logits.data() == nullptr ? 0 : room;
  }
  if (routing.logits.data() == nullptr) return;  // noted
  const LogitArguments logits{
      x.data,      x.stride, x.rows,   router.data,
      router.bias, router.n, router.k, routing.logits.data()};
  const ChoiceArguments choice{
      routing.positions, routing.logits.data(), x.rows,      router.n,
      shape.top_k,       shape.renormalize,     out.experts, out.weights};
  if (x.rows <= kFewRows) {
    if (!RouteFew(device, logits, choice, routing)) return;
    routing.grouped = out;
    routing.router_experts = router.n;
    return;
  }
  LaunchLogits(device, logits);
  LaunchEarly(device.stream, device.failure, "the choice of experts",
              {dim3(Blocks(x.rows, kChoiceWarps)), 32 * kChoiceWarps},
              router.n <= 128 ? ChooseExperts<4> : ChooseExperts<16>, choice);
}

#define MOEBIUS_INSTANTIATE(N)                                              \
  template void Route<N>(const Cuda<N>&, const RouterShape&,                \
                         View<const float, Cuda<N>>,                        \
                         const ColumnParallel<Cuda<N>>&, Routing<Cuda<N>>&, \
                         const Assignments<Cuda<N>>&);
MOEBIUS_INSTANTIATE(Numerics::kExact)
MOEBIUS_INSTANTIATE(Numerics::kFast)
#undef MOEBIUS_INSTANTIATE

}  // namespace moebius
