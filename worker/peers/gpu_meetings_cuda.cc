#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/check.h"
#include "worker/peers/gpu_meetings.h"

namespace moebius {
namespace {

template <class T>
T* Pinned(CudaFailure* failure, const char* what) {
  void* memory = nullptr;
  failure->Note(CudaStatus(
      cudaHostAlloc(&memory, sizeof(T), cudaHostAllocPortable), what));
  return memory == nullptr ? nullptr : new (memory) T;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GpuMeetings>> GpuMeetings::Create(
    const Options& options, CUstream_st* stream, CudaFailure* failure) {
  std::unique_ptr<GpuMeetings> meetings(
      new GpuMeetings(options, stream, failure));
  if (const absl::Status status = failure->status(); !status.ok()) {
    return status;
  }
  return meetings;
}

GpuMeetings::GpuMeetings(const Options& options, CUstream_st* stream,
                         CudaFailure* failure)
    : options_(options), stream_(stream), failure_(failure) {
  const size_t num_ranks = options.signals.size();
  CHECK(1 <= num_ranks && num_ranks <= size_t{kMaxRanks});
  CHECK(options.exchange.size() == num_ranks);
  CHECK(0 <= options.rank && options.rank < static_cast<int>(num_ranks));
  ranks_.rank = options.rank;
  ranks_.num_ranks = static_cast<int>(num_ranks);
  ranks_.timeout_ns =
      static_cast<uint64_t>(absl::ToInt64Nanoseconds(options.timeout));
  for (size_t r = 0; r < num_ranks; ++r) {
    ranks_.line_at[r] =
        reinterpret_cast<MeetingLine*>(options.exchange[r]) + options.rank;
    ranks_.aborted_through[r] = Register(options.signals[r]);
  }
  ranks_.lines = reinterpret_cast<MeetingLine*>(options.exchange[options.rank]);
  failure->Note(CudaStatus(
      cudaMalloc(reinterpret_cast<void**>(&ranks_.state), sizeof(MeetingState)),
      "memory of a GPU for its meetings"));
  next_state_ = Pinned<MeetingState>(failure, "memory for a pass's meetings");
  report_ = Pinned<MeetingReport>(failure, "memory for reports of meetings");
  ranks_.report = report_;
}

GpuMeetings::~GpuMeetings() {
  cudaStreamSynchronize(stream_);
  cudaFree(ranks_.state);
  cudaFreeHost(next_state_);
  cudaFreeHost(report_);
  for (void* signals : registered_) cudaHostUnregister(signals);
  cudaGetLastError();  // nobody is left to be told
}

// The GPU reads a rank's aborted_through where the host writes it.
const uint64_t* GpuMeetings::Register(std::byte* signals) {
  const cudaError_t error =
      cudaHostRegister(signals, sizeof(SignalsBlock),
                       cudaHostRegisterPortable | cudaHostRegisterMapped);
  if (error == cudaSuccess) registered_.push_back(signals);
  // Another rank of this process may have done it.
  if (error == cudaErrorHostMemoryAlreadyRegistered) {
    cudaGetLastError();
  } else {
    failure_->Note(CudaStatus(error, "signals that a GPU is to read"));
  }
  void* at = nullptr;
  failure_->Note(
      CudaStatus(cudaHostGetDevicePointer(
                     &at, &SignalsAt(signals)->arrival.aborted_through, 0),
                 "where a GPU sees signals"));
  return static_cast<const uint64_t*>(at);
}

void GpuMeetings::Start(const MeetingState& state) {
  *report_ = MeetingReport{};
  *next_state_ = state;
  failure_->Note(CudaStatus(
      cudaMemcpyAsync(ranks_.state, next_state_, sizeof(MeetingState),
                      cudaMemcpyHostToDevice, stream_),
      "the number of a pass's first meeting"));
}

void GpuMeetings::Begin(int most) {
  Start({options_.fence == nullptr ? 0 : options_.fence->Take(most), 0});
}

void GpuMeetings::BeginAlone() { Start({0, 1}); }

absl::Status GpuMeetings::Outcome() const {
  const MeetingReport& report = *report_;
  if (report.number == 0) return absl::OkStatus();
  if (report.aborted_by >= 0) {
    return absl::AbortedError(absl::StrCat("rank ", report.aborted_by,
                                           " aborted barrier ", report.number));
  }
  std::vector<int> missing;
  for (int r = 0; r < ranks_.num_ranks; ++r) {
    if ((report.missing >> r & 1) != 0) missing.push_back(r);
  }
  return absl::DeadlineExceededError(absl::StrCat(
      "rank ", absl::StrJoin(missing, ", "), " not at barrier ", report.number,
      " within ", absl::FormatDuration(options_.timeout)));
}

}  // namespace moebius
