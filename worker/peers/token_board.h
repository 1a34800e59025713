// Where a rank shows what it drew in a step, so that every rank knows every
// sequence's tokens and rank 0 can report for all. Part of the exchange region.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/ids.h"
#include "common/step/sampling_params.h"
#include "common/step/step_result.h"

namespace moebius {

// TokenBoard
//
// Post() before a barrier, Read() after it. A board may be written again once
// every rank has passed another barrier after its Read(); the barriers inside
// the next step see to that.
//
// Layout: four numbers in a line of 64 bytes, then fixed records: samples, and
// behind room for max_samples of them, prompt log-probabilities. Of a ranking
// only as much as there is is written and read.
// Threading: thread-compatible.
class TokenBoard {
 public:
  struct Capacity {
    uint32_t max_samples = 0;  // sequence slots
    uint32_t max_prompts = 0;  // tokens of a step
  };

  static int64_t SizeBytes(const Capacity& capacity) {
    return int64_t{kHeaderBytes} +
           static_cast<int64_t>(kStrideBytes) *
               (int64_t{capacity.max_samples} + capacity.max_prompts);
  }

  // `boards[r]`: the board of rank r as mapped here; `own` is ours, writable.
  TokenBoard(std::byte* own, std::vector<const std::byte*> boards,
             const Capacity& capacity)
      : own_(own), boards_(std::move(boards)), capacity_(capacity) {}

  // Shows `result`. REQUIRES: it fits the capacity.
  void Post(const StepResult& result) {
    const Counts counts{static_cast<uint32_t>(result.sampled.size()),
                        static_cast<uint32_t>(result.prompt_logprobs.size()),
                        result.nonfinite_rows, result.nonfinite_slot};
    CHECK(counts.samples <= capacity_.max_samples);
    CHECK(counts.prompts <= capacity_.max_prompts);
    std::memcpy(own_, &counts, sizeof(counts));
    Write(result.sampled, 0);
    Write(result.prompt_logprobs, capacity_.max_samples);
  }

  // Appends what `rank` shows to `result`. kDataLoss when it cannot be: a peer
  // wrote nonsense.
  absl::Status Read(Rank rank, StepResult& result) const {
    Counts counts;
    std::memcpy(&counts, boards_[rank], sizeof(counts));
    if (counts.samples > capacity_.max_samples ||
        counts.prompts > capacity_.max_prompts ||
        !Append(rank, 0, counts.samples, result.sampled) ||
        !Append(rank, capacity_.max_samples, counts.prompts,
                result.prompt_logprobs)) {
      return absl::DataLossError(
          absl::StrCat("the token board of rank ", rank, " is not one"));
    }
    if (counts.nonfinite_rows > 0) {
      result.nonfinite_rows += counts.nonfinite_rows;
      result.nonfinite_slot = counts.nonfinite_slot;
    }
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kHeaderBytes = 64;
  struct Counts {
    uint32_t samples = 0;
    uint32_t prompts = 0;
    uint32_t nonfinite_rows = 0;
    uint32_t nonfinite_slot = 0;
  };
  struct Record {
    uint32_t slot = 0;
    uint32_t position = 0;
    int32_t token = 0;
    float logprob = 0.0f;
    uint32_t num_top = 0;
    uint32_t rank = 0;  // of a prompt's token
  };
  // A record and room for its ranking.
  static constexpr size_t kStrideBytes =
      sizeof(Record) + kMaxLogprobs * sizeof(TokenLogprob);

  static uint32_t RankOf(const SampledToken&) { return 0; }
  static uint32_t RankOf(const PromptLogprob& entry) { return entry.rank; }
  static void SetRank(SampledToken&, uint32_t) {}
  static void SetRank(PromptLogprob& entry, uint32_t rank) {
    entry.rank = rank;
  }

  template <typename Entry>
  void Write(const std::vector<Entry>& entries, size_t first) {
    std::byte* out = own_ + kHeaderBytes + first * kStrideBytes;
    for (const Entry& entry : entries) {
      const size_t num_top = entry.top.size();
      CHECK(num_top <= static_cast<size_t>(kMaxLogprobs));
      const Record record{entry.slot,
                          entry.position,
                          entry.token,
                          entry.logprob,
                          static_cast<uint32_t>(num_top),
                          RankOf(entry)};
      std::memcpy(out, &record, sizeof(record));
      if (num_top > 0) {
        std::memcpy(out + sizeof(record), entry.top.data(),
                    num_top * sizeof(TokenLogprob));
      }
      out += kStrideBytes;
    }
  }

  template <typename Entry>
  bool Append(Rank rank, size_t first, uint32_t count,
              std::vector<Entry>& entries) const {
    const std::byte* in = boards_[rank] + kHeaderBytes + first * kStrideBytes;
    for (uint32_t i = 0; i < count; ++i, in += kStrideBytes) {
      Record record;
      std::memcpy(&record, in, sizeof(record));
      if (record.num_top > static_cast<uint32_t>(kMaxLogprobs)) return false;
      Entry& entry = entries.emplace_back(Entry{
          record.slot, record.position, record.token, record.logprob, {}});
      SetRank(entry, record.rank);
      entry.top.resize(record.num_top);
      if (record.num_top > 0) {
        std::memcpy(entry.top.data(), in + sizeof(record),
                    record.num_top * sizeof(TokenLogprob));
      }
    }
    return true;
  }

  std::byte* own_;
  std::vector<const std::byte*> boards_;
  Capacity capacity_;
};

}  // namespace moebius
