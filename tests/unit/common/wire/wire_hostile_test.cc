// Short messages that claim to hold much: what the reader takes of memory stays
// in proportion to what came.
#include <malloc.h>

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "common/wire/wire.h"
#include "gtest/gtest.h"
#include "tests/unit/common/wire/wire_samples.h"

namespace {

size_t live_bytes = 0;
size_t peak_bytes = 0;

}  // namespace

void* operator new(size_t size) {
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  live_bytes += malloc_usable_size(memory);
  if (live_bytes > peak_bytes) peak_bytes = live_bytes;
  return memory;
}

void operator delete(void* memory) noexcept {
  live_bytes -= malloc_usable_size(memory);
  std::free(memory);
}

void operator delete(void* memory, size_t) noexcept { operator delete(memory); }

namespace moebius {
namespace {

// Values are larger than their encodings, columns grow by doubling.
constexpr size_t kMaxFactor = 64;
constexpr size_t kMaxBesides = 16 << 10;

// Pointers of Cap'n Proto (its encoding specification) that point at much.
const std::vector<uint64_t>& HostilePointers() {
  static const std::vector<uint64_t> pointers = [] {
    std::vector<uint64_t> out;
    for (uint64_t where : {uint64_t{0}, uint64_t{4}, uint64_t{0xfffffffc}}) {
      for (uint64_t size = 0; size < 8; ++size) {
        // Lists of 2^29 - 1 elements, and of a few, of every size.
        for (uint64_t count : {uint64_t{0x1fffffff}, uint64_t{64}}) {
          out.push_back((count << 3 | size) << 32 | where | 1);
        }
      }
      // Structures of much data and of many pointers.
      out.push_back(uint64_t{0xffff} << 32 | where);
      out.push_back(uint64_t{0xffff} << 48 | where);
      out.push_back(~uint64_t{0} << 32 | where);
    }
    out.push_back(uint64_t{0x7fffffff} << 32 | 2);  // another segment
    out.push_back(6);                               // a double far pointer
    out.push_back(3);                               // a capability
    out.push_back(~uint64_t{0});
    // The tag of a list of structures: 2^30 - 1 of no size.
    out.push_back(uint64_t{0xfffffffc});
    out.push_back(uint64_t{1} << 32 | 0x1000);
    return out;
  }();
  return pointers;
}

// Decodes `bytes` with one word, and with two words, put in the place of
// others.
template <typename Decode>
void Attack(const std::string& bytes, Decode decode) {
  const size_t words = bytes.size() / 8;
  const auto attack = [&](const std::string& bomb, size_t word) {
    peak_bytes = live_bytes;
    const size_t before = live_bytes;
    decode(bomb);
    EXPECT_LE(peak_bytes - before, kMaxFactor * bomb.size() + kMaxBesides)
        << "word " << word << " of " << words;
    EXPECT_EQ(live_bytes, before);
  };
  // What the library makes once and keeps, for its first error.
  for (size_t at = 1; at < words; ++at) {
    std::string first = bytes;
    first.replace(at * 8, 8, 8, '\xff');
    decode(first);
  }
  for (size_t at = 1; at < words; ++at) {
    for (uint64_t pointer : HostilePointers()) {
      std::string bomb = bytes;
      bomb.replace(at * 8, 8, reinterpret_cast<const char*>(&pointer), 8);
      attack(bomb, at);
      // A list of structures has a tag behind its pointer.
      if (at + 1 == words) continue;
      for (uint64_t tag : {uint64_t{0xfffffffc}, uint64_t{400} << 2,
                           uint64_t{1} << 32 | uint64_t{400} << 2}) {
        std::string tagged = bomb;
        tagged.replace((at + 1) * 8, 8, reinterpret_cast<const char*>(&tag), 8);
        attack(tagged, at);
      }
    }
  }
}

TEST(WireHostile, CommandsTakeMemoryInProportion) {
  for (const wire::CommandMessage& message : SampleCommands()) {
    Attack(Encode(message), [](const std::string& bytes) {
      wire::DecodeCommand(bytes).IgnoreError();
    });
  }
}

TEST(WireHostile, ReportsTakeMemoryInProportion) {
  for (const wire::ReportMessage& message : SampleReports()) {
    Attack(Encode(message), [](const std::string& bytes) {
      wire::DecodeReport(bytes).IgnoreError();
    });
  }
}

// A large message that points at its own data again and again.
TEST(WireHostile, WhatIsPointedAtTwiceIsPaidTwice) {
  StepPlan plan = SampleStepPlan();
  plan.admissions.clear();
  for (int i = 0; i < 400; ++i) {
    plan.admissions.push_back(
        {static_cast<uint32_t>(i), RequestId{1}, 1, {5}, {}});
  }
  plan.admissions[0].tokens.assign(20'000, 5);
  const std::string bytes = Encode(wire::CommandMessage{{}, plan});
  // The pointer to the long list of tokens, the only one of so many elements.
  size_t at = 0;
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    uint64_t word = 0;
    bytes.copy(reinterpret_cast<char*>(&word), 8, i);
    if (word >> 35 == 20'000 && (word & 3) == 1) at = i;
  }
  ASSERT_NE(at, 0u);
  uint64_t pointer = 0;
  bytes.copy(reinterpret_cast<char*>(&pointer), 8, at);
  const auto target = static_cast<int64_t>(at / 8) + 1 +
                      (static_cast<int32_t>(pointer & 0xffffffff) >> 2);
  // Every list of one token becomes the long one.
  std::string bomb = bytes;
  for (size_t i = 8; i + 8 <= bytes.size(); i += 8) {
    uint64_t word = 0;
    bytes.copy(reinterpret_cast<char*>(&word), 8, i);
    if ((word & 3) != 1 || word >> 35 != 1 || (word >> 32 & 7) != 4) continue;
    const auto offset =
        static_cast<int32_t>(target - static_cast<int64_t>(i / 8) - 1);
    word = (pointer & ~uint64_t{0xffffffff}) |
           (static_cast<uint32_t>(offset) << 2 | 1);
    bomb.replace(i, 8, reinterpret_cast<const char*>(&word), 8);
  }
  ASSERT_NE(bomb, bytes);
  peak_bytes = live_bytes;
  const size_t before = live_bytes;
  EXPECT_FALSE(wire::DecodeCommand(bomb).ok());
  EXPECT_LE(peak_bytes - before, kMaxFactor * bomb.size() + kMaxBesides);
}

}  // namespace
}  // namespace moebius
