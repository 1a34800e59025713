// Sampling on a GPU: what the host says of the rows of a pass, and what it gets
// back.
//
// A pass has a place for each of its rows whose logits are wanted. The host
// fills the places (GpuSampling::Fill), the operator Sample works on them, and
// the results are in memory of the host when the stream has done it. Several
// passes may be under way: what the host writes for one, and what it gets of
// it, has kPassCopies copies, which passes use in turn.
//
// A row's result depends on its logits and on what is wanted of it alone: on
// nothing that is beside it. It is the CPU's (kernels/sampling.h) but for
// rounding. Sums are in double or in integers, in an order that the size of the
// vocabulary fixes. A row that lists the ids which are allowed goes to the host
// with its logits, and the CPU's sampler draws.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/results.h"
#include "kernels/cuda/rows.h"
#include "kernels/sample.h"

namespace moebius {

// A change of a row's logit.
struct LogitEdit {
  int32_t token = 0;
  // Of a bias: what is added. Of a token of the history: how often it is in the
  // output.
  float number = 0.0f;
};

// What is wanted of a row, in memory of the GPU.
struct GpuSampleRow {
  enum Kind : int32_t {
    kNone,    // a place without a row
    kCopy,    // the logits alone
    kKnown,   // log-probabilities of a known token
    kGreedy,  // the highest logit
    kDraw,
  };
  Kind kind = kNone;
  int32_t known = 0;
  int32_t num_top = -1;  // log-probabilities; -1: none, not the token's either
  int32_t top_k = 0;     // 0: off; below the size of the vocabulary
  float top_p = 1.0f;    // 1: off
  float min_p = 0.0f;    // 0: off
  float inverse_temperature = 1.0f;
  float repetition = 1.0f, frequency = 0.0f, presence = 0.0f;
  double uniform = 0.0;     // in [0, 1)
  int32_t place = -1;       // of the token (TokenPlaces); -1: nowhere
  float* logits = nullptr;  // pinned, of the host: gets them; null: nobody
  // Edits in their order: first the tokens that are out, then those with a
  // bias, each once, then the history, each once.
  const LogitEdit* edits = nullptr;
  float* before = nullptr;  // room for the logits as they were, by edit
  int32_t num_out = 0, num_biased = 0, num_seen = 0;

  constexpr int num_edits() const { return num_out + num_biased + num_seen; }
  constexpr bool edited() const { return num_edits() > 0; }
  constexpr bool truncated() const {
    return top_k > 0 || top_p < 1.0f || min_p > 0.0f;
  }
};

// From pinned memory of the host to the GPU; both have room up to the next
// multiple of 16 bytes.
struct HostCopy {
  const void* from = nullptr;
  void* to = nullptr;
  int64_t size_bytes = 0;
};

// Memory of the GPU that Sample works in, for as many rows as one call has.
template <Numerics N>
struct SampleScratch {
  Buffer<std::byte, Cuda<N>> memory;
  int64_t room_bytes = 0;
};

// GpuSampling
//
// Cost: Fill describes a row in a hundred bytes, and eight for each edit; the
// results are written to the host by the kernels.
// Memory: fixed but for edits, rows that the host samples, and the scratch,
// which grow; before they do, the stream is waited for.
// Threading: thread-compatible.
template <Numerics N>
class GpuSampling {
 public:
  // For passes of at most `max_rows` rows. Errors are noted. `results`:
  // [kPassCopies][max_rows] in memory of the host that the GPU reaches at the
  // same address; null: in ours. What is drawn is also put into `places`.
  GpuSampling(const Cuda<N>& device, int max_rows, int vocabulary,
              GpuSampledRow* results = nullptr, const TokenPlaces& places = {});
  ~GpuSampling();

  // Fills the places of a pass for `wanted`, which nobody looks at any more
  // but DrawOnHost and Collect. Places behind them, up to `places`, are empty.
  // The samples are of all places; copies() have to be made before Sample.
  // REQUIRES: wanted.count <= places <= max_rows, known tokens are of the
  // vocabulary, and the pass that was the last to use this copy has ended.
  Samples<Cuda<N>> Fill(const Samples<Cpu>& wanted, int places, int copy);
  absl::Span<const HostCopy> copies() const {
    return {copies_.data(), copies_.size()};
  }
  // The same for passes one at a time, with the copies.
  Samples<Cuda<N>> Begin(const Samples<Cpu>& wanted, int places);

  // Of the pass that was filled last, when the stream has done it: draws what
  // the host has to draw, into its results.
  void DrawOnHost();
  // That, and gives each row that was sampled its result.
  void Collect();

  // For Sample.
  const GpuSampleRow* rows() const { return rows_.data(); }
  GpuSampledRow* results() const { return ResultsOf(copy_); }
  GpuSampledRow* ResultsOf(int copy) const {
    return results_ + int64_t{copy} * max_rows_;
  }
  const TokenPlaces& places() const { return places_; }
  SampleScratch<N>& scratch() { return scratch_; }

 private:
  struct Host;

  const SampleRow& wanted(int i) const {
    return wanted_.first[i * wanted_.step];
  }
  float* LogitsOf(int64_t row) const {
    return host_logits_ + row * logit_stride_;
  }
  GpuSampleRow* HostRows() const { return host_rows_ + RowsAt(copy_); }
  // Copies begin at multiples of 16 bytes.
  int64_t RowsAt(int copy) const { return copy * RowRoom(); }
  int64_t RowRoom() const { return int64_t{max_rows_ + 2} / 2 * 2; }
  // What is wanted, but for places of edits and logits.
  GpuSampleRow Describe(const SampleRow& wanted);
  void ListEdits(const SampleRow& wanted, GpuSampleRow& row);
  // Places of edits and logits.
  void Link();
  void GrowEdits(int64_t count);
  void GrowLogits(int64_t rows);
  template <class T>
  T* AllocatePinned(int64_t count, const char* what) const;

  const Cuda<N> device_;
  const int max_rows_;
  const int vocabulary_;
  const int logit_stride_;
  const TokenPlaces places_;
  int copy_ = 0;                    // of the pass
  Samples<Cpu> wanted_;             // of the pass
  std::vector<LogitEdit> edits_;    // of the pass
  std::vector<int> drawn_by_host_;  // rows of the pass
  std::unique_ptr<Host> host_;      // who draws them; made when needed

  std::array<HostCopy, 2> copies_;

  // Memory of the host is pinned: [kPassCopies] times as many.
  GpuSampleRow* host_rows_ = nullptr;
  Buffer<GpuSampleRow, Cuda<N>> rows_;
  GpuSampledRow* own_results_ = nullptr;
  GpuSampledRow* results_ = nullptr;
  LogitEdit* host_edits_ = nullptr;
  Buffer<LogitEdit, Cuda<N>> gpu_edits_;
  Buffer<float, Cuda<N>> before_;
  int64_t edit_room_ = 0;
  float* host_logits_ = nullptr;
  int64_t logit_room_ = 0;  // rows
  SampleScratch<N> scratch_;
};

}  // namespace moebius
