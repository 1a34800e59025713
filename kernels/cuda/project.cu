// Products with the dense weights, and the sums that ranks share.
#include <limits>

#include "common/base/check.h"
#include "common/base/ids.h"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/products.cuh"
#include "kernels/cuda/wide_rows.h"

namespace moebius {
namespace {

using namespace products;

constexpr int kMaxParts = wide::kMaxParts;
constexpr int kOnePiece = std::numeric_limits<int>::max();

// Parts side by side. Part i ends before panel panel_ends[i] and before column
// col_ends[i] of the output.
struct Parts {
  const uint4* data[kMaxParts] = {};
  const float* biases[kMaxParts] = {};  // null: none
  int panel_ends[kMaxParts] = {};
  int col_ends[kMaxParts] = {};
  int count = 0;
};

struct ProjectArgs {
  Parts parts;
  Cut cut;
  RowSource x;
  int row_blocks = 0;
  float* out = nullptr;
  ptrdiff_t out_stride = 0;
};

// A panel, and the columns that it gives.
struct PanelOfPart {
  const uint4* tiles;
  int first_col;
  int end_col;        // of its part
  const float* bias;  // of its first column; null: none
};

// Beyond the last panel: the last one, and no columns.
__device__ PanelOfPart FindPanel(const Parts& parts, const Cut& cut,
                                 int panel) {
  const int last = parts.panel_ends[parts.count - 1] - 1;
  const bool beyond = panel > last;
  if (beyond) panel = last;
  int i = 0;
  while (panel >= parts.panel_ends[i]) ++i;
  const int in_part = panel - (i == 0 ? 0 : parts.panel_ends[i - 1]);
  const int begin = i == 0 ? 0 : parts.col_ends[i - 1];
  return {parts.data[i] + ptrdiff_t{in_part} * cut.num_tiles * kTileWords,
          begin + in_part * kPanelRows, beyond ? 0 : parts.col_ends[i],
          parts.biases[i] == nullptr ? nullptr
                                     : parts.biases[i] + in_part * kPanelRows};
}

// The block's rows out of all of them.
template <class T>
__device__ RowSource BlockRows(const RowSource& x, int block) {
  RowSource rows = x;
  rows.first = block * T::kBlockRows;
  rows.count = min(x.count - rows.first, T::kBlockRows);
  return rows;
}

template <Numerics N, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<N, false, T>)
    ProjectKernel(const __grid_constant__ ProjectArgs args) {
  // Blocks that share weights follow one another.
  const int panel_block = blockIdx.x / args.row_blocks;
  Work<T> work;
  work.steps = {kTileWords, kOnePiece, 0};
  work.cut = args.cut;
  work.rows = BlockRows<T>(args.x, blockIdx.x % args.row_blocks);
  const int first_panel = panel_block * T::kBlockPanels;
#pragma unroll
  for (int p = 0; p < T::kReadPanels; ++p) {
    work.panels[p] =
        FindPanel(args.parts, args.cut, first_panel + T::ReadPanel() + p).tiles;
  }
  float* const out = args.out + work.rows.first * args.out_stride;
  MultiplyRows<N, false, T>(work, [&](int panel, int row, int output,
                                      const float(&values)[T::kPanels]) {
#pragma unroll
    for (int p = 0; p < T::kPanels; ++p) {
      const PanelOfPart at =
          FindPanel(args.parts, args.cut, first_panel + panel + p);
      const int col = at.first_col + output;
      if (col >= at.end_col) continue;
      out[row * args.out_stride + col] =
          at.bias == nullptr ? values[p] : values[p] + at.bias[output];
    }
  });
}

template <Numerics N>
struct PartialArgs {
  const uint4* weights = nullptr;  // from the first unit on
  int num_panels = 0;
  Cut cut;
  RowSource x;
  int row_blocks = 0;
  typename Cuda<N>::Partial* sums = nullptr;
  ptrdiff_t sums_stride = 0;
};

template <Numerics N, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<N, true, T>)
    PartialKernel(const __grid_constant__ PartialArgs<N> args) {
  using Partial = typename Cuda<N>::Partial;
  const int panel_block = blockIdx.x / args.row_blocks;
  const int first_panel = panel_block * T::kBlockPanels;
  Work<T> work;
  work.steps = {ptrdiff_t{args.num_panels} * kTileWords, kOnePiece, 0};
  work.cut = args.cut;
  work.rows = BlockRows<T>(args.x, blockIdx.x % args.row_blocks);
#pragma unroll
  for (int p = 0; p < T::kReadPanels; ++p) {
    const int panel =
        min(first_panel + T::ReadPanel() + p, args.num_panels - 1);
    work.panels[p] = args.weights + ptrdiff_t{panel} * kTileWords;
  }
  Partial* const sums = args.sums + work.rows.first * args.sums_stride;
  MultiplyRows<N, true, T>(work, [&](int panel, int row, int output,
                                     const Partial(&values)[T::kPanels]) {
#pragma unroll
    for (int p = 0; p < T::kPanels; ++p) {
      const int at = first_panel + panel + p;
      if (at >= args.num_panels) continue;
      sums[row * args.sums_stride + at * kPanelRows + output] = values[p];
    }
  });
}

void ProjectWide(const CudaFast& device, const View<const float, CudaFast>& x,
                 absl::Span<const ColumnParallel<CudaFast>> parts,
                 const View<float, CudaFast>& out) {
  wide::DenseProduct product;
  int panels = 0;
  for (const ColumnParallel<CudaFast>& part : parts) {
    panels += part.n / kPanelRows;
    product.parts[product.num_parts] = part.data;
    product.biases[product.num_parts] = part.bias;
    product.panel_ends[product.num_parts++] = panels;
  }
  const int num_tiles = x.cols / kTileRows;
  product.places = {ptrdiff_t{num_tiles} * kTileWords, kTileWords, 0, kOnePiece,
                    num_tiles};
  product.x = x;
  product.out = out;
  wide::Multiply(device, "a projection", product);
}

// Slices mean nothing to sums of floats.
void ProjectPartialWide(const CudaFast& device,
                        const View<const float, CudaFast>& x,
                        const RowSlices<CudaFast>& w,
                        const PartialRows<CudaFast>& sums) {
  wide::DenseProduct product;
  product.parts[0] = w.weights.data + ptrdiff_t{w.k_begin} * w.weights.n;
  product.panel_ends[0] = w.weights.n / kPanelRows;
  product.num_parts = 1;
  product.places = {kTileWords,
                    ptrdiff_t{w.weights.n / kPanelRows} * kTileWords, 0,
                    kOnePiece, x.cols / kTileRows};
  product.x = x;
  product.out = sums;
  wide::Multiply(device, "a partial projection", product);
}

// AddPartials: a block a row, a thread four columns at a time.
constexpr int kAddThreads = 512;
constexpr int kAddCols = 4;

template <Numerics N>
struct AddArgs {
  const typename Cuda<N>::Partial* sources[kMaxSumSources] = {};
  ptrdiff_t strides[kMaxSumSources] = {};
  int count = 0;
  View<float, Cuda<N>> residual;
  Norm<Cuda<N>> norm;
  View<float, Cuda<N>> normed;
  const float* bias = nullptr;
};

struct FourFixed {
  int64_t v[kAddCols] = {};
  __device__ void Add(const int64_t* from) {
    const auto* pairs = reinterpret_cast<const longlong2*>(from);
    const longlong2 front = pairs[0], back = pairs[1];
    v[0] += front.x;
    v[1] += front.y;
    v[2] += back.x;
    v[3] += back.y;
  }
  // Rounded once: the scale is a power of two.
  __device__ float ToFloat(int i) const {
    return __ll2float_rn(v[i]) *
           (1.0f / static_cast<float>(int64_t{1} << kFixedPointBits));
  }
};
struct FourFloats {
  float v[kAddCols] = {};
  __device__ void Add(const float* from) {
    const float4 values = *reinterpret_cast<const float4*>(from);
    v[0] += values.x;
    v[1] += values.y;
    v[2] += values.z;
    v[3] += values.w;
  }
  __device__ float ToFloat(int i) const { return v[i]; }
};

// The block's sum of one value a thread, in one order, for all threads.
__device__ float SumOfBlock(float value) {
  __shared__ float of_warps[kAddThreads / kWarpThreads];
  for (int distance = 1; distance < kWarpThreads; distance *= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  if (threadIdx.x % kWarpThreads == 0) {
    of_warps[threadIdx.x / kWarpThreads] = value;
  }
  __syncthreads();
  float sum = 0.0f;
  for (const float of_warp : of_warps) sum += of_warp;
  return sum;
}

template <Numerics N>
__global__ void __launch_bounds__(kAddThreads)
    AddPartialsKernel(const __grid_constant__ AddArgs<N> args) {
  using Four = std::conditional_t<N == Numerics::kExact, FourFixed, FourFloats>;
  WaitForEarlier();
  const int row = blockIdx.x;
  float* const residual = args.residual.data + row * args.residual.stride;
  float* const normed = args.normed.data + row * args.normed.stride;
  float squares = 0.0f;
  for (int j = threadIdx.x * kAddCols; j < args.residual.cols;
       j += kAddThreads * kAddCols) {
    float4 x = *reinterpret_cast<const float4*>(residual + j);
    Four sums;
#pragma unroll 4
    for (int s = 0; s < args.count; ++s) {
      sums.Add(args.sources[s] + row * args.strides[s] + j);
    }
    x.x += sums.ToFloat(0);
    x.y += sums.ToFloat(1);
    x.z += sums.ToFloat(2);
    x.w += sums.ToFloat(3);
    if (args.bias != nullptr) {
      const float* const bias = args.bias + j;
      x.x += bias[0];
      x.y += bias[1];
      x.z += bias[2];
      x.w += bias[3];
    }
    *reinterpret_cast<float4*>(residual + j) = x;
    squares = fmaf(x.x, x.x, squares);
    squares = fmaf(x.y, x.y, squares);
    squares = fmaf(x.z, x.z, squares);
    squares = fmaf(x.w, x.w, squares);
  }
  const float mean =
      SumOfBlock(squares) / static_cast<float>(args.residual.cols);
  const float scale = 1.0f / sqrtf(mean + args.norm.eps);
  // Each thread reads what it has written itself.
  for (int j = threadIdx.x * kAddCols; j < args.residual.cols;
       j += kAddThreads * kAddCols) {
    const float4 x = *reinterpret_cast<const float4*>(residual + j);
    const float* const weight = args.norm.weight + j;
    *reinterpret_cast<float4*>(normed + j) = {
        x.x * scale * weight[0], x.y * scale * weight[1],
        x.z * scale * weight[2], x.w * scale * weight[3]};
  }
}

}  // namespace

template <Numerics N>
void Project(const Cuda<N>& device, ConstGpuRows<N> x,
             Given<absl::Span<const ColumnParallel<Cuda<N>>>> parts,
             GpuRows<N> out) {
  CHECK(parts.size() <= kMaxParts);
  CHECK(out.rows == x.rows && x.cols % kTileRows == 0);
  ProjectArgs args;
  int panels = 0, cols = 0;
  for (const ColumnParallel<Cuda<N>>& part : parts) {
    CHECK(part.k == x.cols);
    panels += DivideUp(part.n, kPanelRows);
    cols += part.n;
    args.parts.data[args.parts.count] =
        reinterpret_cast<const uint4*>(part.data);
    args.parts.biases[args.parts.count] = part.bias;
    args.parts.panel_ends[args.parts.count] = panels;
    args.parts.col_ends[args.parts.count++] = cols;
  }
  CHECK(out.cols == cols);
  if (x.rows == 0 || panels == 0) return;
  if constexpr (N == Numerics::kFast) {
    // Whose panels are whole ones.
    if (x.cols > 0 && panels * kPanelRows == cols &&
        wide::ShouldMultiply(device, x.rows, panels)) {
      return ProjectWide(device, x, parts, out);
    }
  }
  args.cut = Cut::Of(x.cols, x.cols);
  args.x = {x.data, x.stride, nullptr, 0, x.rows};
  args.out = out.data;
  args.out_stride = out.stride;
  WithKind(device, x.rows, panels, [&]<class T>(T) {
    args.row_blocks = DivideUp(x.rows, T::kBlockRows);
    const int blocks = DivideUp(panels, T::kBlockPanels) * args.row_blocks;
    Launch<T>(device, "a projection", ProjectKernel<N, T>, blocks, args);
  });
}

template <Numerics N>
void ProjectPartial(const Cuda<N>& device, ConstGpuRows<N> x,
                    Given<const RowSlices<Cuda<N>>&> w,
                    Given<PartialRows<Cuda<N>>> sums) {
  CHECK(w.slice_rows > 0 && w.slice_rows % kUnitRows == 0);
  CHECK(x.cols % w.slice_rows == 0 && w.k_begin % w.slice_rows == 0);
  CHECK(w.k_begin + x.cols <= w.weights.k);
  CHECK(sums.rows == x.rows && sums.cols == w.weights.n);
  if (x.rows == 0) return;
  if constexpr (N == Numerics::kFast) {
    if (x.cols > 0 &&
        wide::ShouldMultiply(device, x.rows, w.weights.n / kPanelRows)) {
      return ProjectPartialWide(device, x, w, sums);
    }
  }
  PartialArgs<N> args;
  args.weights = reinterpret_cast<const uint4*>(
      w.weights.data + ptrdiff_t{w.k_begin} * w.weights.n);
  args.num_panels = w.weights.n / kPanelRows;
  args.cut = Cut::Of(x.cols, w.slice_rows);
  args.x = {x.data, x.stride, nullptr, 0, x.rows};
  args.sums = sums.data;
  args.sums_stride = sums.stride;
  WithKind(device, x.rows, args.num_panels, [&]<class T>(T) {
    args.row_blocks = DivideUp(x.rows, T::kBlockRows);
    const int blocks =
        DivideUp(args.num_panels, T::kBlockPanels) * args.row_blocks;
    Launch<T>(device, "a partial projection", PartialKernel<N, T>, blocks,
              args);
  });
}

template <Numerics N>
void AddPartials(const Cuda<N>& device,
                 Given<absl::Span<const ConstPartialRows<Cuda<N>>>> sources,
                 Given<const ResidualNorm<Cuda<N>>&> to) {
  CHECK(!sources.empty() && sources.size() <= kMaxSumSources);
  CHECK(to.residual.cols % kAddCols == 0 && to.norm.size == to.residual.cols);
  CHECK(to.normed.rows == to.residual.rows &&
        to.normed.cols == to.residual.cols);
  AddArgs<N> args;
  for (const ConstPartialRows<Cuda<N>>& source : sources) {
    CHECK(source.rows == to.residual.rows && source.cols == to.residual.cols);
    args.sources[args.count] = source.data;
    args.strides[args.count++] = source.stride;
  }
  if (to.residual.rows == 0) return;
  args.residual = to.residual;
  args.norm = to.norm;
  args.normed = to.normed;
  args.bias = to.bias;
  LaunchEarly(device.stream, device.failure, "sums of ranks",
              {dim3(static_cast<unsigned>(to.residual.rows)), kAddThreads},
              AddPartialsKernel<N>, args);
}

#define MOEBIUS_PROJECT_OF(N)                                             \
  template void Project(const Cuda<N>&, ConstGpuRows<N>,                  \
                        Given<absl::Span<const ColumnParallel<Cuda<N>>>>, \
                        GpuRows<N>);                                      \
  template void ProjectPartial(const Cuda<N>&, ConstGpuRows<N>,           \
                               Given<const RowSlices<Cuda<N>>&>,          \
                               Given<PartialRows<Cuda<N>>>);              \
  template void AddPartials(                                              \
      const Cuda<N>&, Given<absl::Span<const ConstPartialRows<Cuda<N>>>>, \
      Given<const ResidualNorm<Cuda<N>>&>)
MOEBIUS_PROJECT_OF(Numerics::kExact);
MOEBIUS_PROJECT_OF(Numerics::kFast);
#undef MOEBIUS_PROJECT_OF

}  // namespace moebius
