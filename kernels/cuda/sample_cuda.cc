#include <cuda_runtime_api.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/types/span.h"
#include "common/base/check.h"
#include "kernels/cuda/sample.h"
#include "kernels/thread_pool.h"

namespace moebius {
namespace {

constexpr int kMaxThreads = 16;

int ExtraThreads() {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(cores, 1, kMaxThreads) - 1;
}

Logprobs LogprobsOf(const GpuSampledRow& from) {
  return {from.logprob, from.rank, {from.top, from.top + from.num_top}};
}

bool WantsLogprobs(const SampleRow& wanted) {
  return wanted.known >= 0 || wanted.sampling->num_logprobs >= 0;
}

void PutResult(const SampledRow& from, GpuSampledRow& to) {
  const Logprobs& logprobs = from.value.logprobs;
  to.token = from.value.token;
  to.finite = from.finite ? 1 : 0;
  to.logprob = logprobs.logprob;
  to.rank = logprobs.rank;
  to.num_top =
      static_cast<int32_t>(std::min(logprobs.top.size(), size_t{kMaxLogprobs}));
  std::copy_n(logprobs.top.begin(), to.num_top, to.top);
}

// Adds biases, each token's once: they are added in their order, so that the
// sum of several for one token is not the CPU's but for rounding.
void AddBiases(const std::vector<std::pair<int32_t, float>>& biases,
               int vocabulary, std::vector<LogitEdit>& edits) {
  const auto begin = static_cast<ptrdiff_t>(edits.size());
  bool ascending = true;
  for (const auto& [token, bias] : biases) {
    if (token < 0 || token >= vocabulary) continue;
    ascending = ascending && (edits.begin() + begin == edits.end() ||
                              edits.back().token < token);
    edits.push_back({token, bias});
  }
  if (ascending) return;
  std::stable_sort(
      edits.begin() + begin, edits.end(),
      [](const LogitEdit& a, const LogitEdit& b) { return a.token < b.token; });
  auto last = edits.begin() + begin;
  for (auto next = last + 1; next != edits.end(); ++next) {
    if (next->token == last->token) {
      last->number += next->number;
    } else {
      *++last = *next;
    }
  }
  edits.erase(last + 1, edits.end());
}

// Adds the tokens that penalties change.
void AddHistory(const SamplingParams& sampling, const TokenHistory& history,
                int vocabulary, std::vector<LogitEdit>& edits) {
  const bool prompt = sampling.repetition_penalty != 1.0f;
  for (const TokenHistory::Entry& entry : history.entries()) {
    if (entry.token < 0 || entry.token >= vocabulary) continue;
    if (entry.output_count == 0 && !prompt) continue;
    edits.push_back({entry.token, static_cast<float>(entry.output_count)});
  }
}

}  // namespace

template <Numerics N>
struct GpuSampling<N>::Host {
  ThreadPool pool{ExtraThreads()};
};

template <Numerics N>
GpuSampling<N>::GpuSampling(const Cuda<N>& device, int max_rows, int vocabulary,
                            GpuSampledRow* results, const TokenPlaces& places)
    : device_(device),
      max_rows_(max_rows),
      vocabulary_(vocabulary),
      logit_stride_((vocabulary + 3) / 4 * 4),
      places_(places),
      host_rows_(AllocatePinned<GpuSampleRow>(kPassCopies * RowRoom(),
                                              "what is wanted of a pass")),
      rows_(device, "what is wanted of a pass", RowRoom()),
      results_(results) {
  if (results_ != nullptr) return;
  results_ = own_results_ = AllocatePinned<GpuSampledRow>(
      kPassCopies * int64_t{max_rows}, "results of a pass");
}

template <Numerics N>
GpuSampling<N>::~GpuSampling() {
  cudaStreamSynchronize(device_.stream);
  cudaFreeHost(host_rows_);
  cudaFreeHost(own_results_);
  cudaFreeHost(host_edits_);
  cudaFreeHost(host_logits_);
}

// Null, and noted, when there is none.
template <Numerics N>
template <class T>
T* GpuSampling<N>::AllocatePinned(int64_t count, const char* what) const {
  void* memory = nullptr;
  const cudaError_t error =
      cudaHostAlloc(&memory, static_cast<size_t>(count) * sizeof(T),
                    cudaHostAllocPortable | cudaHostAllocMapped);
  if (error == cudaSuccess) return static_cast<T*>(memory);
  cudaGetLastError();
  device_.failure->Note(CudaStatus(error, what));
  return nullptr;
}

template <Numerics N>
void GpuSampling<N>::GrowEdits(int64_t count) {
  if (count <= edit_room_) return;
  cudaStreamSynchronize(device_.stream);
  cudaFreeHost(host_edits_);
  edit_room_ = (count + count / 2 + 1) / 2 * 2;
  host_edits_ =
      AllocatePinned<LogitEdit>(kPassCopies * edit_room_, "changes of logits");
  gpu_edits_ = {};
  gpu_edits_ = {device_, "changes of logits", edit_room_};
  before_ = {};
  before_ = {device_, "logits before they are changed", edit_room_};
}

template <Numerics N>
void GpuSampling<N>::GrowLogits(int64_t rows) {
  if (rows <= logit_room_) return;
  cudaStreamSynchronize(device_.stream);
  cudaFreeHost(host_logits_);
  logit_room_ = rows;
  host_logits_ =
      AllocatePinned<float>(rows * logit_stride_, "logits of the host");
}

template <Numerics N>
void GpuSampling<N>::ListEdits(const SampleRow& wanted, GpuSampleRow& row) {
  const SamplingParams& sampling = *wanted.sampling;
  const size_t begin = edits_.size();
  ForEachTokenOut(sampling, wanted.output.size(), wanted.output,
                  [&](int32_t token) {
                    if (token < 0 || token >= vocabulary_) return;
                    edits_.push_back({token, 0.0f});
                  });
  const size_t out = edits_.size();
  AddBiases(sampling.logit_bias, vocabulary_, edits_);
  const size_t biased = edits_.size();
  if (wanted.history != nullptr && NeedsHistory(sampling)) {
    AddHistory(sampling, *wanted.history, vocabulary_, edits_);
  }
  row.num_out = static_cast<int32_t>(out - begin);
  row.num_biased = static_cast<int32_t>(biased - out);
  row.num_seen = static_cast<int32_t>(edits_.size() - biased);
}

template <Numerics N>
GpuSampleRow GpuSampling<N>::Describe(const SampleRow& wanted) {
  const SamplingParams& sampling = *wanted.sampling;
  GpuSampleRow row;
  if (wanted.known >= 0) {
    CHECK(wanted.known < vocabulary_);
    row.kind = GpuSampleRow::kKnown;
    row.known = wanted.known;
    row.num_top = std::clamp(sampling.num_prompt_logprobs, 0, kMaxLogprobs);
    return row;
  }
  if (!sampling.allowed_ids.empty()) {
    row.kind = GpuSampleRow::kCopy;
    return row;
  }
  row.place = wanted.place;
  row.num_top = std::clamp(sampling.num_logprobs, -1, kMaxLogprobs);
  row.repetition = sampling.repetition_penalty;
  row.frequency = sampling.frequency_penalty;
  row.presence = sampling.presence_penalty;
  ListEdits(wanted, row);
  row.kind = GpuSampleRow::kGreedy;
  if (IsGreedy(sampling)) return row;
  row.kind = GpuSampleRow::kDraw;
  row.top_k =
      0 < sampling.top_k && sampling.top_k < vocabulary_ ? sampling.top_k : 0;
  row.top_p = sampling.top_p;
  row.min_p = sampling.min_p > 0.0f ? std::min(sampling.min_p, 1.0f) : 0.0f;
  row.inverse_temperature = 1.0f / sampling.temperature;
  row.uniform = UniformDraw(sampling.seed, wanted.output.size());
  return row;
}

template <Numerics N>
void GpuSampling<N>::Link() {
  GpuSampleRow* const rows = HostRows();
  int64_t logit_rows = 0, at = 0;
  const auto needs_logits = [&](int i) {
    return rows[i].kind == GpuSampleRow::kCopy || wanted(i).logits != nullptr;
  };
  for (int i = 0; i < wanted_.count; ++i) logit_rows += needs_logits(i) ? 1 : 0;
  GrowLogits(logit_rows);
  GrowEdits(static_cast<int64_t>(edits_.size()));
  if (!device_.failure->status().ok()) return;
  logit_rows = 0;
  for (int i = 0; i < wanted_.count; ++i) {
    GpuSampleRow& row = rows[i];
    if (needs_logits(i)) row.logits = LogitsOf(logit_rows++);
    if (!row.edited()) continue;
    row.edits = gpu_edits_.data() + at;
    row.before = before_.data() + at;
    at += row.num_edits();
  }
  LogitEdit* const edits = host_edits_ + copy_ * edit_room_;
  std::copy(edits_.begin(), edits_.end(), edits);
  copies_[1] = {edits, gpu_edits_.data(),
                static_cast<int64_t>(edits_.size() * sizeof(LogitEdit))};
}

template <Numerics N>
Samples<Cuda<N>> GpuSampling<N>::Fill(const Samples<Cpu>& wanted, int places,
                                      int copy) {
  CHECK(wanted.count <= places && places <= max_rows_);
  CHECK(0 <= copy && copy < kPassCopies);
  Samples<Cuda<N>> samples{this, 0, 1, places, 0};
  wanted_ = wanted;
  copy_ = copy;
  copies_ = {};
  edits_.clear();
  if (!device_.failure->status().ok()) return samples;
  for (int i = 0; i < places; ++i) {
    GpuSampleRow& row = HostRows()[i];
    row = i < wanted.count ? Describe(this->wanted(i)) : GpuSampleRow{};
    results()[i].token = -1;
    if (row.edited()) samples.stages |= samples.kEdits;
    if (row.num_top >= 0) samples.stages |= samples.kLogprobs;
    if (row.kind == GpuSampleRow::kDraw && row.truncated()) {
      samples.stages |= samples.kTruncated;
    }
  }
  copies_[0] = {HostRows(), rows_.data(),
                places * int64_t{sizeof(GpuSampleRow)}};
  Link();
  return samples;
}

template <Numerics N>
Samples<Cuda<N>> GpuSampling<N>::Begin(const Samples<Cpu>& wanted, int places) {
  const Samples<Cuda<N>> samples = Fill(wanted, places, copy_);
  for (const HostCopy& copy : copies_) {
    if (copy.size_bytes == 0 || !device_.failure->status().ok()) continue;
    device_.failure->Note(
        CudaStatus(cudaMemcpyAsync(copy.to, copy.from,
                                   static_cast<size_t>(copy.size_bytes),
                                   cudaMemcpyHostToDevice, device_.stream),
                   "what is wanted of a pass to the GPU"));
  }
  return samples;
}

template <Numerics N>
void GpuSampling<N>::DrawOnHost() {
  if (!device_.failure->status().ok()) return;
  drawn_by_host_.clear();
  for (int i = 0; i < wanted_.count; ++i) {
    // The others are another rank's.
    if (HostRows()[i].kind == GpuSampleRow::kCopy && results()[i].token >= 0) {
      drawn_by_host_.push_back(i);
    }
  }
  if (drawn_by_host_.empty()) return;
  if (host_ == nullptr) host_ = std::make_unique<Host>();
  host_->pool.ParallelFor(
      static_cast<int>(drawn_by_host_.size()), [this](int j) {
        thread_local Sampler sampler;
        const int i = drawn_by_host_[static_cast<size_t>(j)];
        SampledRow drawn;
        SampleRow row = wanted(i);
        row.result = &drawn;
        SampleOne({HostRows()[i].logits, static_cast<size_t>(vocabulary_)}, row,
                  sampler);
        PutResult(drawn, results()[i]);
      });
}

template <Numerics N>
void GpuSampling<N>::Collect() {
  if (!device_.failure->status().ok()) return;
  DrawOnHost();
  for (int i = 0; i < wanted_.count; ++i) {
    const GpuSampledRow& from = results()[i];
    if (from.token < 0) continue;  // another rank's
    const GpuSampleRow& row = HostRows()[i];
    SampledRow& result = *wanted(i).result;
    result.finite = from.finite != 0;
    result.value = {from.token,
                    WantsLogprobs(wanted(i)) ? LogprobsOf(from) : Logprobs{}};
    if (wanted(i).logits != nullptr && row.kind != GpuSampleRow::kCopy) {
      std::copy_n(row.logits, vocabulary_, wanted(i).logits);
    }
  }
}

template class GpuSampling<Numerics::kExact>;
template class GpuSampling<Numerics::kFast>;

}  // namespace moebius
