// The kernels of collectives_cuda.h, each behind a meeting of the ranks.
// Numbers that a peer shows never say where memory is read or written.
#pragma once

#include <cstdint>

#include "common/base/ids.h"
#include "kernels/cuda/failure.h"
#include "kernels/device.h"
#include "kernels/route.h"
#include "worker/peers/gpu_meetings.h"

namespace moebius {

inline constexpr int kNoMeeting = -1;

// Where a kernel is launched. Its blocks wait for meeting `index` of the pass,
// and do nothing if that is given up.
struct BehindMeeting {
  const MeetingRanks& ranks;
  int index = kNoMeeting;
  CUstream_st* stream = nullptr;
  CudaFailure* failure = nullptr;
};

// Meets, and no more: one block.
void LaunchMeeting(const BehindMeeting& at);

// Whose sums a row wants.
struct RowSources {
  // Of each source, at the first row; [row][hidden].
  const void* sums[kMaxRanks] = {};
  int num_sources = 0;
  // Sums that are added as well, whatever the row's experts.
  const void* shared[kMaxRanks] = {};
  int num_shared = 0;
  // Null: all. Else of the ranks that hold something of a row's experts:
  // [row][top_k], expert e at ranks [e / group * tp_size, + tp_size).
  const int32_t* experts = nullptr;
  int top_k = 0;
  int group_experts = 1;  // that tp_size ranks hold together
  int tp_size = 1;
};

// What becomes of them.
struct SummedRows {
  int rows = 0;
  float* residual = nullptr;
  int64_t residual_stride = 0;
  float* normed = nullptr;
  int64_t normed_stride = 0;
  const float* weight = nullptr;
  float eps = 0;
  const float* bias = nullptr;  // added with the sums; null: none
  int hidden = 0;               // a multiple of 4, at most kMaxSumHidden
};
inline constexpr int kMaxSumHidden = 16384;

// residual += sum of the row's sources; normed = the root mean square's norm of
// that (kernels/norm.h). A block a row. REQUIRES: there are rows.
template <Numerics N>
void LaunchSum(const BehindMeeting& at, const RowSources& from,
               const SummedRows& to);

// Sums of squares of heads out of those of every rank that has the rows.
struct SquareParts {
  int num_parts = 0;
  const float* squares[kMaxRanks] = {};  // [row][stride]
  // Heads that each part has: of queries and of keys.
  int q_begin[kMaxRanks] = {}, q_end[kMaxRanks] = {};
  int k_begin[kMaxRanks] = {}, k_end[kMaxRanks] = {};
  int stride = 0;
  int begin = 0, end = 0;  // heads that are wanted
  int rows = 0;
  float* out = nullptr;  // [row][stride]
};
// A block a row. REQUIRES: there are rows.
void LaunchSquares(const BehindMeeting& at, const SquareParts& parts);

// What each group of attention shows of a MoE layer's rows.
struct ShownRows {
  const float* rows[kMaxRanks] = {};  // [row][hidden] of each group
  const int32_t* experts[kMaxRanks] = {};
  const float* weights[kMaxRanks] = {};
  int first_row[kMaxRanks] = {};  // of each group's among all
  int num_groups = 0;
};

// All of them, one group after the other.
struct EnteredRows {
  int count = 0;
  float* rows = nullptr;
  int32_t* experts = nullptr;
  float* weights = nullptr;
  int hidden = 0;
  int top_k = 0;
  ExpertRange range;  // whose rows are wanted
};

// Everybody's assignments, and the rows that some expert of the range wants. A
// block a row. REQUIRES: there are rows.
void LaunchGather(const BehindMeeting& at, const ShownRows& from,
                  const EnteredRows& to);

// Whole rows of logits out of the columns of every rank that has the rows.
struct LogitParts {
  int num_parts = 0;
  const float* columns[kMaxRanks] = {};  // [row][stride]
  int stride = 0;                        // a multiple of 4
  int begin[kMaxRanks] = {};             // a multiple of 4
  int size[kMaxRanks] = {};
  // Rows first_row, first_row + every ... of the chunk.
  int first_row = 0, every = 1, rows = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
};

// Blocks of LaunchLogits.
int64_t LogitBlocks(const LogitParts& parts);
// REQUIRES: there are rows.
void LaunchLogits(const BehindMeeting& at, const LogitParts& parts);

}  // namespace moebius
