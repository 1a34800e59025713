// The device's side of the sequences: all that a step reads of them, by slot.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/layout/kv_plan.h"
#include "common/step/sampling_params.h"
#include "common/step/stand.h"
#include "kernels/sampling.h"
#include "worker/steps/batch.h"

namespace moebius {

struct DeviceSlot {
  uint32_t num_prompt_tokens = 0;
  SamplingParams sampling;
  std::vector<int32_t> tokens;  // prompt, then generated; empty: nothing here
  TokenHistory history;         // of `tokens`, when sampling needs it
  int num_kv = 0;               // KV heads held here; 0: no page yet
  std::vector<PageId> pages;    // [block][num_kv]
  uint64_t holder = 0;          // another one for each sequence

  // Tokens that are being drawn (DeviceSlots::Expect), the last ones.
  int num_expected() const;
  int num_blocks() const {
    return num_kv == 0 ? 0 : static_cast<int>(pages.size()) / num_kv;
  }
};

// What is changed from outside of steps: by a recovery, and by a switch. It is
// given what the host's side has checked (sequence_table.h).
// REQUIRES: of every call: no step is under way.
class SlotTables {
 public:
  virtual ~SlotTables() = default;
  // Empties all slots.
  virtual void Reset() = 0;
  // Puts a sequence into its slot.
  virtual void Put(const RestoredSequence& sequence) = 0;
  // Replaces this rank's page tables by those of `tables`; a slot with none
  // holds nothing here.
  virtual void ReplaceTables(absl::Span<const KvTable> tables) = 0;
};

// DeviceSlots
//
// The processor's. Steps change them, in their order, each by its batch and
// then by the tokens that it draws: what the host has planned beyond them is
// not here yet.
//
// Batches were checked by the host's side; the tokens that peers show are
// checked here.
// Threading: thread-compatible.
class DeviceSlots final : public SlotTables {
 public:
  DeviceSlots(Rank rank, uint32_t max_slots, int32_t vocab_size)
      : rank_(rank), vocab_size_(vocab_size), slots_(max_slots) {}

  // What enters, leaves and grows with a batch, whose admissions are taken out
  // of it.
  void Apply(Batch& batch);

  const DeviceSlot& At(uint32_t slot) const { return slots_[slot]; }

  // The token drawn for `position`. kInvalidArgument, changing nothing, for one
  // that cannot follow.
  absl::Status Append(uint32_t slot, uint32_t position, int32_t token);

  // The token for `position`, behind those that are here, is being drawn, and
  // will be in the slot's place on the device: until Fill() it is
  // TokenAtPlace(slot). kInvalidArgument, changing nothing, when it cannot
  // follow.
  absl::Status Expect(uint32_t slot, uint32_t position);
  // It was drawn. Nothing happens where the slot has another holder by now.
  // kInvalidArgument, changing nothing, for one that is none, or is not
  // expected.
  struct Drawn {
    uint32_t slot = 0;
    uint64_t holder = 0;  // when it was expected
    uint32_t position = 0;
    int32_t token = 0;
  };
  absl::Status Fill(const Drawn& drawn);

  void Reset() override;
  void Put(const RestoredSequence& sequence) override;
  void ReplaceTables(absl::Span<const KvTable> tables) override;

 private:
  void Admit(Admission admission);
  void AddRow(const PageRow& row);
  void SetPages(const KvTable& table);

  Rank rank_;
  int32_t vocab_size_;
  std::vector<DeviceSlot> slots_;
};

}  // namespace moebius
