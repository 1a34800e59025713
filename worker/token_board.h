// Where a rank shows the tokens it drew, so that after each step every rank
// knows every sequence's tokens. Part of the exchange region.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/check.h"
#include "common/ids.h"
#include "common/wire.h"

namespace moebius {

struct BoardEntry {
  uint32_t slot = 0;
  uint32_t position = 0;
  int32_t token = 0;
};

// TokenBoard
//
// Post() before a barrier, Read() after it. A board may be written again once
// every rank has passed another barrier after its Read(); the barriers inside
// the next step see to that.
// Threading: thread-compatible.
class TokenBoard {
 public:
  static int64_t SizeBytes(uint32_t max_slots) {
    return 64 + static_cast<int64_t>(sizeof(BoardEntry)) * max_slots;
  }

  // `boards[r]`: the board of rank r as mapped here; `own` is ours, writable.
  TokenBoard(std::byte* own, std::vector<const std::byte*> boards,
             uint32_t max_slots)
      : own_(own), boards_(std::move(boards)), max_slots_(max_slots) {}

  // REQUIRES: at most max_slots entries.
  void Post(absl::Span<const SampledToken> tokens) {
    CHECK(tokens.size() <= max_slots_);
    const uint32_t count = static_cast<uint32_t>(tokens.size());
    std::memcpy(own_, &count, sizeof(count));
    std::byte* out = own_ + kHeaderBytes;
    for (const SampledToken& token : tokens) {
      const BoardEntry entry{token.slot, token.position, token.token};
      std::memcpy(out, &entry, sizeof(entry));
      out += sizeof(entry);
    }
  }

  // Appends the entries of rank to `entries`. kDataLoss when the count cannot
  // be: a peer wrote nonsense.
  absl::Status Read(Rank rank, std::vector<BoardEntry>& entries) const {
    uint32_t count;
    std::memcpy(&count, boards_[rank], sizeof(count));
    if (count > max_slots_) {
      return absl::DataLossError(
          absl::StrCat("rank ", rank, " shows ", count, " tokens"));
    }
    const size_t old = entries.size();
    entries.resize(old + count);
    if (count > 0) {
      std::memcpy(entries.data() + old, boards_[rank] + kHeaderBytes,
                  count * sizeof(BoardEntry));
    }
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kHeaderBytes = 64;
  std::byte* own_;
  std::vector<const std::byte*> boards_;
  uint32_t max_slots_;
};

}  // namespace moebius
