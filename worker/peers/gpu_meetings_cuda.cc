#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <utility>

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
    Register(static_cast<Rank>(r));
  }
  ranks_.lines = reinterpret_cast<MeetingLine*>(options.exchange[options.rank]);
  failure->Note(CudaStatus(
      cudaMalloc(reinterpret_cast<void**>(&ranks_.state), sizeof(MeetingState)),
      "memory of a GPU for its meetings"));
  report_ = Pinned<MeetingReport>(failure, "memory for reports of meetings");
  ranks_.report = report_;
}

GpuMeetings::~GpuMeetings() {
  cudaStreamSynchronize(stream_);
  cudaFree(ranks_.state);
  cudaFreeHost(report_);
  for (Rank r = 0; r < ranks_.num_ranks; ++r) Unregister(r);
  cudaGetLastError();  // nobody is left to be told
}

// The GPU reads a rank's aborted_through where the host writes it.
void GpuMeetings::Register(Rank rank) {
  std::byte* const signals = options_.signals[rank];
  memory_[rank] = SignalsAt(signals)->identity.memory;
  const cudaError_t error =
      cudaHostRegister(signals, sizeof(SignalsBlock),
                       cudaHostRegisterPortable | cudaHostRegisterMapped);
  // Another rank of this process may have done it.
  if (error == cudaErrorHostMemoryAlreadyRegistered) {
    cudaGetLastError();
  } else {
    failure_->Note(CudaStatus(error, "signals that a GPU is to read"));
    ours_[rank] = error == cudaSuccess;
  }
  void* at = nullptr;
  failure_->Note(
      CudaStatus(cudaHostGetDevicePointer(
                     &at, &SignalsAt(signals)->arrival.aborted_through, 0),
                 "where a GPU sees signals"));
  ranks_.aborted_through[rank] = static_cast<const uint64_t*>(at);
}

void GpuMeetings::Unregister(Rank rank) {
  if (!ours_[rank]) return;
  cudaHostUnregister(options_.signals[rank]);
  ours_[rank] = false;
  cudaGetLastError();  // what it was registered for is gone
}

// A registration is of memory, not of an address: a successor may have brought
// other memory there.
bool GpuMeetings::FollowMemories() {
  const MeetingRanks before = ranks_;
  for (Rank r = 0; r < ranks_.num_ranks; ++r) {
    if (SignalsAt(options_.signals[r])->identity.memory == memory_[r]) continue;
    Unregister(r);
    Register(r);
  }
  return !std::equal(std::begin(before.aborted_through),
                     std::end(before.aborted_through), ranks_.aborted_through);
}

bool GpuMeetings::Restart() {
  *report_ = MeetingReport{};
  restarted_ = true;
  return FollowMemories();
}

MeetingStart GpuMeetings::Start(int most) {
  const int32_t gave_up = std::exchange(restarted_, false) ? 0 : -1;
  const uint64_t first =
      options_.fence == nullptr ? 0 : options_.fence->Take(most);
  return {ranks_.state, first, gave_up};
}

MeetingStart GpuMeetings::StartAlone() {
  restarted_ = true;
  return {ranks_.state, 0, 1};
}

// Passes behind it may be under way, and give up as we look.
absl::Status GpuMeetings::Outcome(uint64_t first, int most) const {
  const uint64_t number =
      std::atomic_ref(report_->number).load(std::memory_order_acquire);
  if (number == 0 || number >= first + static_cast<uint64_t>(most)) {
    return absl::OkStatus();
  }
  const MeetingReport report = *report_;
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
