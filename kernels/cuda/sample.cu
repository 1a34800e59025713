#include <cuda_runtime_api.h>

#include <algorithm>

#include "kernels/cuda/draw.cuh"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/sampling.cuh"

namespace moebius {
namespace {

// ---- slices ----------------------------------------------------------------

struct ScanRoom {
  unsigned long long highest[kScanThreads / 32];
  double sums[kScanThreads / 32];
};

// The key of the highest of a thread's, then ~id: the lowest of equals. 0: it
// has none.
__device__ unsigned long long HighestOfThread(const SliceLogits& mine,
                                              int slice) {
  if (mine.valid == 0) return 0;
  float highest = -INFINITY;
  int at = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (mine.values[i] > highest) {  // never NaN, nor one that is not there
      highest = mine.values[i];
      at = i;
    }
  }
  const auto id = static_cast<uint32_t>(SliceLogits::IdOf(slice, at));
  return uint64_t{KeyOf(highest)} << 32 | ~id;
}

// The highest of a slice's threads, to all of them.
__device__ unsigned long long HighestOfSlice(unsigned long long highest,
                                             ScanRoom& room) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    highest = max(highest, __shfl_xor_sync(~0u, highest, step));
  }
  if (threadIdx.x % 32 == 0) room.highest[threadIdx.x / 32] = highest;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kScanThreads / 32; ++w) {
    highest = max(highest, room.highest[w]);
  }
  return highest;
}

// The sum of exponentials of a slice, to thread 0.
__device__ double SumOfSlice(const SliceLogits& mine, float highest,
                             float factor, ScanRoom& room) {
  double sum = 0.0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    sum += WeightOf(mine.values[i], highest, factor);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    sum += __shfl_xor_sync(~0u, sum, step);
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) room.sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = room.sums[0];
#pragma unroll
  for (int w = 1; w < kScanThreads / 32; ++w) sum += room.sums[w];
  return sum;
}

__device__ void CopyToHost(const SliceLogits& mine, int slice, float* to) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if ((mine.valid >> i & 1) != 0) {
      to[SliceLogits::IdOf(slice, i)] = mine.values[i];
    }
  }
}
__device__ bool AreFinite(const SliceLogits& mine) {
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    finite = finite && ((mine.valid >> i & 1) == 0 || isfinite(mine.values[i]));
  }
  return finite;
}

// [slices][rows] blocks. `edited`: once more, over rows whose logits have been
// changed.
__global__ void __launch_bounds__(kScanThreads)
    ScanSlices(const __grid_constant__ SampleArguments args, bool edited) {
  __shared__ ScanRoom room;
  const int slice = static_cast<int>(blockIdx.x);
  const int row = static_cast<int>(blockIdx.y);
  const GpuSampleRow& wanted = args.wanted(row);
  if (wanted.kind == GpuSampleRow::kNone || (edited && !wanted.edited())) {
    return;
  }
  SliceLogits mine;
  mine.Load(args.logits_of(row), args.vocabulary, slice);
  SlicePart& part = args.parts_of(row)[slice];
  if (!edited) {
    if (wanted.logits != nullptr) CopyToHost(mine, slice, wanted.logits);
    const int finite = __syncthreads_and(AreFinite(mine) ? 1 : 0);
    if (threadIdx.x == 0) part.finite = finite;
  }
  const bool plain = !edited && wanted.num_top >= 0;
  const bool draws = (wanted.kind == GpuSampleRow::kGreedy ||
                      wanted.kind == GpuSampleRow::kDraw) &&
                     edited == wanted.edited();
  if (!plain && !draws) return;
  const unsigned long long of_thread = HighestOfThread(mine, slice);
  const unsigned long long highest = HighestOfSlice(of_thread, room);
  if (threadIdx.x == 0) part.highest = highest;
  const float value = ValueOf(static_cast<uint32_t>(highest >> 32));
  if ((plain && wanted.num_top > 0) || (draws && wanted.top_k > 0)) {
    args.groups_of(row)[slice * kScanThreads + static_cast<int>(threadIdx.x)] =
        static_cast<uint32_t>(of_thread >> 32);
  }
  if (plain) {
    const double sum = SumOfSlice(mine, value, 1.0f, room);
    if (threadIdx.x == 0) part.plain_sum = sum;
  }
  if (draws && wanted.kind == GpuSampleRow::kDraw) {
    const double sum =
        SumOfSlice(mine, value, wanted.inverse_temperature, room);
    if (threadIdx.x == 0) part.draw_sum = sum;
  }
}

// ---- edits -----------------------------------------------------------------

// The logits as they are: what log-probabilities are relative to, and from
// where on the highest are looked for.
__device__ void SumPlain(const SampleArguments& args, int row,
                         unsigned long long highest, CombineRoom& combine,
                         SelectRoom& select) {
  const GpuSampleRow& wanted = args.wanted(row);
  const float value = ValueOf(static_cast<uint32_t>(highest >> 32));
  const double sum =
      SumOfSlices(args, row, &SlicePart::plain_sum, value, 1.0f, combine);
  uint32_t cut = kNoCut;
  if (wanted.num_top > 0) {
    cut = CutOf(args, row, min(wanted.num_top, args.vocabulary), select);
  }
  if (threadIdx.x != 0) return;
  RowState& state = args.states[row];
  state.plain_highest = value;
  state.log_sum = sum > 0.0 ? log(sum) : 0.0;
  state.plain_cut = cut;
}

__device__ float Penalize(float logit, float count,
                          const GpuSampleRow& wanted) {
  if (wanted.repetition > 0.0f && wanted.repetition != 1.0f) {
    logit =
        logit > 0.0f ? logit / wanted.repetition : logit * wanted.repetition;
  }
  if (count == 0.0f) return logit;
  logit -= wanted.frequency * count;
  return logit - wanted.presence;
}

// Edits [begin, end), each by a thread.
template <class F>
__device__ void EditSome(float* logits, const GpuSampleRow& wanted, int begin,
                         int end, const F& edited) {
  // Tokens may be out several times over: all are kept before one is changed.
  if (wanted.before != nullptr) {
    for (int i = begin + static_cast<int>(threadIdx.x); i < end;
         i += kSelectThreads) {
      wanted.before[i] = logits[wanted.edits[i].token];
    }
  }
  __syncthreads();
  for (int i = begin + static_cast<int>(threadIdx.x); i < end;
       i += kSelectThreads) {
    const LogitEdit edit = wanted.edits[i];
    logits[edit.token] = edited(logits[edit.token], edit.number);
  }
  __syncthreads();
}

// A block a row.
__global__ void __launch_bounds__(kSelectThreads, 1)
    EditLogits(const __grid_constant__ SampleArguments args) {
  __shared__ CombineRoom combine;
  __shared__ SelectRoom select;
  const int row = static_cast<int>(blockIdx.x);
  const GpuSampleRow& wanted = args.wanted(row);
  if (!wanted.edited()) return;
  if (wanted.num_top >= 0) {
    bool finite;
    const unsigned long long highest = HighestOf(args, row, combine, &finite);
    SumPlain(args, row, highest, combine, select);
  }
  float* const logits = args.logits_of(row);
  const int biased = wanted.num_out, seen = biased + wanted.num_biased;
  EditSome(logits, wanted, 0, biased, [](float, float) { return -INFINITY; });
  EditSome(logits, wanted, biased, seen,
           [](float logit, float bias) { return logit + bias; });
  EditSome(
      logits, wanted, seen, seen + wanted.num_seen,
      [&](float logit, float count) { return Penalize(logit, count, wanted); });
}

// Takes the edits back where log-probabilities are wanted.
__global__ void __launch_bounds__(kSelectThreads, 1)
    RestoreLogits(const __grid_constant__ SampleArguments args) {
  const int row = static_cast<int>(blockIdx.x);
  const GpuSampleRow& wanted = args.wanted(row);
  if (!wanted.edited() || wanted.num_top < 0) return;
  float* const logits = args.logits_of(row);
  const auto restore = [&](int begin, int count) {
    for (int i = static_cast<int>(threadIdx.x); i < count;
         i += kSelectThreads) {
      logits[wanted.edits[begin + i].token] = wanted.before[begin + i];
    }
    __syncthreads();
  };
  restore(wanted.num_out + wanted.num_biased, wanted.num_seen);
  restore(wanted.num_out, wanted.num_biased);
  restore(0, wanted.num_out);
}

// ---- tokens ----------------------------------------------------------------

// A key from which on all logits are that the draw needs.
__device__ uint32_t CutOfDraw(const SampleArguments& args, int row,
                              float highest, double sum, SelectRoom& room) {
  const GpuSampleRow& wanted = args.wanted(row);
  const double temperature = 1.0 / double{wanted.inverse_temperature};
  uint32_t cut = 0;
  if (wanted.top_k > 0) cut = CutOf(args, row, wanted.top_k, room);
  if (wanted.min_p > 0.0f) {
    const double below = log(double{wanted.min_p}) * (1.0 + 1e-5) - 1e-5;
    cut = max(cut, KeyOf(static_cast<float>(highest + below * temperature)));
  }
  if (wanted.top_k == 0 && wanted.min_p == 0.0f) {
    // All that are lighter than the mean of what top-p leaves out are less than
    // that together.
    constexpr double kMargin = 0.99;
    const double out = 1.0 - double{fmaxf(wanted.top_p, 0.0f)};
    const double below = log(kMargin * out * sum / args.vocabulary);
    cut = KeyOf(static_cast<float>(highest + below * temperature));
  }
  return cut;
}

// A block a row: the token, where no candidates have to be looked at.
__global__ void __launch_bounds__(kSelectThreads, 1)
    ChooseTokens(const __grid_constant__ SampleArguments args) {
  __shared__ CombineRoom combine;
  __shared__ SelectRoom select;
  __shared__ DrawRoom draw;
  const int row = static_cast<int>(blockIdx.x);
  const GpuSampleRow& wanted = args.wanted(row);
  GpuSampledRow& result = args.results[args.place(row)];
  if (wanted.kind == GpuSampleRow::kNone) return;
  if (wanted.kind == GpuSampleRow::kCopy) {
    if (threadIdx.x == 0) result.token = 0;
    return;
  }
  bool finite;
  const unsigned long long highest = HighestOf(args, row, combine, &finite);
  const float value = ValueOf(static_cast<uint32_t>(highest >> 32));
  if (wanted.num_top >= 0 && !wanted.edited()) {
    SumPlain(args, row, highest, combine, select);
  }
  auto token = static_cast<int32_t>(~static_cast<uint32_t>(highest));
  uint32_t cut = kNoCut;
  double sum = 0.0;
  if (wanted.kind == GpuSampleRow::kKnown) token = wanted.known;
  if (wanted.kind == GpuSampleRow::kDraw && value != -INFINITY) {
    sum = SumOfSlices(args, row, &SlicePart::draw_sum, value,
                      wanted.inverse_temperature, combine);
    if (wanted.truncated() && isfinite(value)) {
      cut = CutOfDraw(args, row, value, sum, select);
    } else {
      token = DrawFromAll(args, row, value, combine, draw);
    }
  }
  if (threadIdx.x != 0) return;
  RowState& state = args.states[row];
  state.token = token;
  state.draw_highest = value;
  state.draw_sum = sum;
  state.draw_cut = cut;
  state.num_candidates = state.num_above = 0;
  result.finite = finite ? 1 : 0;
  if (cut == kNoCut) StoreToken(args, row, token);
}

// [shares][rows] blocks: the candidates for a truncated draw.
__global__ void __launch_bounds__(kScanThreads)
    GatherForDraw(const __grid_constant__ SampleArguments args) {
  const int row = static_cast<int>(blockIdx.y);
  RowState& state = args.states[row];
  const GpuSampleRow& wanted = args.wanted(row);
  if (wanted.kind != GpuSampleRow::kDraw || state.draw_cut == kNoCut) return;
  for (int slice = static_cast<int>(blockIdx.x); slice < args.slices;
       slice += static_cast<int>(gridDim.x)) {
    SliceLogits mine;
    mine.Load(args.logits_of(row), args.vocabulary, slice);
    AddCandidates(mine, slice, state.draw_cut, &state, args.candidates_of(row));
  }
}

// Candidates to shared memory. REQUIRES: no more than kMaxCandidates.
__device__ ListElements LoadCandidates(const SampleArguments& args, int row,
                                       Candidate* list) {
  const int count = static_cast<int>(args.states[row].num_candidates);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSelectThreads) {
    list[i] = args.candidates_of(row)[i];
  }
  __syncthreads();
  return {list, count};
}

// A block a row.
__global__ void __launch_bounds__(kSelectThreads, 1)
    DrawFromCandidates(const __grid_constant__ SampleArguments args) {
  __shared__ Candidate list[kMaxCandidates];
  __shared__ SelectRoom select;
  const int row = static_cast<int>(blockIdx.x);
  RowState& state = args.states[row];
  const GpuSampleRow& wanted = args.wanted(row);
  if (wanted.kind != GpuSampleRow::kDraw || state.draw_cut == kNoCut) return;
  int32_t token;
  if (state.num_candidates <= kMaxCandidates) {
    const ListElements elements = LoadCandidates(args, row, list);
    token = TruncatedDraw(elements, args, row, select).Draw();
  } else {
    const RowElements elements{args.logits_of(row), args.vocabulary};
    token = TruncatedDraw(elements, args, row, select).Draw();
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  state.token = token;
  StoreToken(args, row, token);
  state.num_candidates = 0;
}

// ---- log-probabilities -----------------------------------------------------

// [shares][rows] blocks: logits above the token's, and candidates for the
// highest.
__global__ void __launch_bounds__(kScanThreads)
    GatherForLogprobs(const __grid_constant__ SampleArguments args) {
  const int row = static_cast<int>(blockIdx.y);
  const GpuSampleRow& wanted = args.wanted(row);
  if (wanted.kind == GpuSampleRow::kNone || wanted.num_top < 0) return;
  RowState& state = args.states[row];
  const float* const logits = args.logits_of(row);
  const float of_token = NanToMinusInfinity(logits[state.token]);
  uint32_t above = 0;
  for (int slice = static_cast<int>(blockIdx.x); slice < args.slices;
       slice += static_cast<int>(gridDim.x)) {
    SliceLogits mine;
    mine.Load(logits, args.vocabulary, slice);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (mine.values[i] > of_token) ++above;
    }
    AddCandidates(mine, slice, state.plain_cut, &state,
                  args.candidates_of(row));
  }
  above = __reduce_add_sync(~0u, above);
  if (threadIdx.x % 32 == 0 && above != 0) atomicAdd(&state.num_above, above);
}

__device__ float LogprobOf(const RowState& state, float logit) {
  if (!(logit > -INFINITY)) return -INFINITY;
  if (isfinite(state.plain_highest)) {
    return static_cast<float>(double{logit} - double{state.plain_highest} -
                              state.log_sum);
  }
  return logit == state.plain_highest ? static_cast<float>(-state.log_sum)
                                      : -INFINITY;
}

__device__ unsigned long long RankOf(uint32_t key, uint32_t id) {
  return uint64_t{key} << 32 | ~id;
}
__device__ void StoreTop(const RowState& state, unsigned long long ranked,
                         TokenLogprobValue& out) {
  out.token = static_cast<int32_t>(~static_cast<uint32_t>(ranked));
  out.logprob = LogprobOf(state, ValueOf(static_cast<uint32_t>(ranked >> 32)));
}

// The `count` highest of few candidates: each counts those before it.
__device__ void TopOfList(const ListElements& list, const RowState& state,
                          int count, TokenLogprobValue* out) {
  list.ForEach([&](uint32_t key, uint32_t id) {
    const unsigned long long mine = RankOf(key, id);
    int before = 0;
    for (int i = 0; i < list.count && before < count; ++i) {
      if (RankOf(list.list[i].key, list.list[i].id) > mine) ++before;
    }
    if (before < count) StoreTop(state, mine, out[before]);
  });
}

// Of a row most of whose logits are equal: one after the other.
__device__ void TopOfRow(const RowElements& elements, const RowState& state,
                         int count, SelectRoom& room, TokenLogprobValue* out) {
  unsigned long long last = ~0ull;
  for (int j = 0; j < count; ++j) {
    unsigned long long best = 0;
    elements.ForEach([&](uint32_t key, uint32_t id) {
      const unsigned long long ranked = RankOf(key, id);
      if (ranked < last) best = max(best, ranked);
    });
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      best = max(best, __shfl_xor_sync(~0u, best, step));
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) room.warps[threadIdx.x / 32] = best;
    __syncthreads();
    for (int w = 0; w < kSelectThreads / 32; ++w) {
      best = max(best, room.warps[w]);
    }
    if (threadIdx.x == 0) StoreTop(state, best, out[j]);
    last = best;
  }
}

// A block a row.
__global__ void __launch_bounds__(kSelectThreads, 1)
    FinishLogprobs(const __grid_constant__ SampleArguments args) {
  __shared__ Candidate list[kMaxCandidates];
  __shared__ SelectRoom select;
  const int row = static_cast<int>(blockIdx.x);
  const GpuSampleRow& wanted = args.wanted(row);
  if (wanted.kind == GpuSampleRow::kNone || wanted.num_top < 0) return;
  const RowState& state = args.states[row];
  GpuSampledRow& result = args.results[args.place(row)];
  const float* const logits = args.logits_of(row);
  const int count = min(wanted.num_top, args.vocabulary);
  if (threadIdx.x == 0) {
    result.logprob = LogprobOf(state, logits[state.token]);
    result.rank = 1 + static_cast<int>(state.num_above);
    result.num_top = count;
  }
  if (count == 0) return;
  if (state.num_candidates <= kMaxCandidates) {
    TopOfList(LoadCandidates(args, row, list), state, count, result.top);
  } else {
    TopOfRow({logits, args.vocabulary}, state, count, select, result.top);
  }
}

// ---- launches --------------------------------------------------------------

// Places in the scratch. False, and noted, when there is no room.
template <Numerics N>
bool PlaceScratch(const Cuda<N>& device, int rows, SampleScratch<N>& scratch,
                  SampleArguments& args) {
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t at = used;
    used += (bytes + 255) / 256 * 256;
    return at;
  };
  const int64_t slices = int64_t{rows} * args.slices;
  const int64_t parts = take(slices * int64_t{sizeof(SlicePart)});
  const int64_t groups =
      take(slices * kScanThreads * int64_t{sizeof(uint32_t)});
  const int64_t candidates =
      take(int64_t{rows} * kMaxCandidates * int64_t{sizeof(Candidate)});
  const int64_t states = take(int64_t{rows} * int64_t{sizeof(RowState)});
  if (scratch.room_bytes < used) {
    scratch.memory = {};
    scratch.memory = {device, "sampling", used};
    scratch.room_bytes = scratch.memory.data() == nullptr ? 0 : used;
  }
  std::byte* const base = scratch.memory.data();
  if (base == nullptr) return false;
  args.parts = reinterpret_cast<SlicePart*>(base + parts);
  args.groups = reinterpret_cast<uint32_t*>(base + groups);
  args.candidates = reinterpret_cast<Candidate*>(base + candidates);
  args.states = reinterpret_cast<RowState*>(base + states);
  return true;
}

template <Numerics N>
void Launch(const Cuda<N>& device, const SampleArguments& args, int num_rows,
            uint32_t stages) {
  using S = Samples<Cuda<N>>;
  const auto rows = static_cast<unsigned>(num_rows);
  const auto slices = static_cast<unsigned>(args.slices);
  const dim3 scan(slices, rows);
  // Each looks at several slices, so that rows without candidates cost little.
  const auto most = static_cast<unsigned>(4 * device.num_multiprocessors);
  const dim3 gather(std::clamp(most / rows, 1u, slices), rows);
  CUstream_st* const stream = device.stream;
  ScanSlices<<<scan, kScanThreads, 0, stream>>>(args, false);
  if ((stages & S::kEdits) != 0) {
    EditLogits<<<rows, kSelectThreads, 0, stream>>>(args);
    ScanSlices<<<scan, kScanThreads, 0, stream>>>(args, true);
  }
  ChooseTokens<<<rows, kSelectThreads, 0, stream>>>(args);
  if ((stages & S::kTruncated) != 0) {
    GatherForDraw<<<gather, kScanThreads, 0, stream>>>(args);
    DrawFromCandidates<<<rows, kSelectThreads, 0, stream>>>(args);
  }
  if ((stages & S::kLogprobs) != 0) {
    if ((stages & S::kEdits) != 0) {
      RestoreLogits<<<rows, kSelectThreads, 0, stream>>>(args);
    }
    GatherForLogprobs<<<gather, kScanThreads, 0, stream>>>(args);
    FinishLogprobs<<<rows, kSelectThreads, 0, stream>>>(args);
  }
  device.failure->Note(CudaStatus(cudaGetLastError(), "sampling"));
}

}  // namespace

template <Numerics N>
void Sample(const Cuda<N>& device, GpuRows<N> logits,
            Given<const Samples<Cuda<N>>&> samples) {
  constexpr int kMostRows = 65535;  // of a grid
  if (logits.rows == 0 || samples.sampling == nullptr) return;
  SampleArguments args;
  args.logits = logits.data;
  args.stride = logits.stride;
  args.vocabulary = logits.cols;
  args.slices = (logits.cols + kSliceLogits - 1) / kSliceLogits;
  if (logits.rows != samples.count || logits.rows > kMostRows ||
      args.slices > kMaxSlices || logits.stride % 4 != 0) {
    return device.failure->Note(absl::UnimplementedError(
        "sampling of rows that do not begin at multiples of 16 bytes, or of "
        "too many or too long ones"));
  }
  GpuSampling<N>& sampling = *samples.sampling;
  args.rows = sampling.rows();
  args.results = sampling.results();
  args.tokens = sampling.places();
  args.first = samples.first;
  args.step = samples.step;
  if (!PlaceScratch(device, logits.rows, sampling.scratch(), args)) return;
  Launch(device, args, logits.rows, samples.stages);
}

template void Sample<Numerics::kExact>(const CudaExact&, View<float, CudaExact>,
                                       const Samples<CudaExact>&);
template void Sample<Numerics::kFast>(const CudaFast&, View<float, CudaFast>,
                                      const Samples<CudaFast>&);

}  // namespace moebius
