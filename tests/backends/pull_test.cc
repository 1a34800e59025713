#include "kernels/cpu/pull.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/checksum.h"
#include "tests/backends/random_tensors.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

std::vector<std::byte> RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<std::byte> out(size);
  for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
    const uint64_t word = generator();
    std::memcpy(&out[i], &word, std::min(sizeof(word), size - i));
  }
  return out;
}

TEST(PullSegments, RefusesSegmentsOutsideTheRegionsAndCopiesNothing) {
  const auto source = RandomBytes(256, 1);
  std::vector<std::byte> dst(256);
  const auto untouched = dst;
  const std::vector<const std::byte*> sources = {source.data(), nullptr};
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  for (const CopySegment bad :
       {CopySegment{2, 0, 0, 64}, CopySegment{-1, 0, 0, 64},
        CopySegment{1, 0, 0, 64}, CopySegment{0, -1, 0, 64},
        CopySegment{0, 0, -1, 64}, CopySegment{0, 0, 0, -1},
        CopySegment{0, 193, 0, 64}, CopySegment{0, 0, 193, 64},
        CopySegment{0, kMax, 0, 64}, CopySegment{0, 0, kMax, 64},
        CopySegment{0, 0, 0, kMax}}) {
    const CopySegment segments[] = {{0, 0, 0, 64}, bad};
    EXPECT_THAT(PullSegments(sources, 256, segments, dst.data(), 256, nullptr),
                StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_EQ(dst, untouched);
  }
}

TEST(PullSegments, CopiesEverySegmentAndNothingElse) {
  ThreadPool pool(2);
  // Below and above the size from which stores stream; odd offsets and sizes.
  for (const int64_t unit :
       {int64_t{64}, int64_t{1000}, kStreamTotalBytes / 4 + 7}) {
    for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
      const int64_t size = 8 * unit + 100;
      std::vector<std::vector<std::byte>> owned;
      std::vector<const std::byte*> sources;
      for (int r = 0; r < 3; ++r) {
        owned.push_back(RandomBytes(size, 10 + r));
        sources.push_back(owned[r].data());
      }
      const std::vector<CopySegment> segments = {
          {2, 3 * unit + 5, 0, unit},      {0, 0, 4 * unit + 3, unit},
          {1, 7 * unit, 2 * unit + 1, 17}, {1, 1, 2 * unit + 40, 0},
          {2, 0, 5 * unit + 3, 2 * unit},
      };
      std::vector<std::byte> dst(size, std::byte{0xee}), want = dst;
      for (const CopySegment& s : segments) {
        std::memcpy(want.data() + s.dst_offset,
                    sources[s.src_rank] + s.src_offset, s.size_bytes);
      }
      ASSERT_THAT(
          PullSegments(sources, size, segments, dst.data(), size, threads),
          IsOk());
      ASSERT_EQ(dst, want) << unit;
    }
  }
}

TEST(PullSegments, NothingToCopy) {
  EXPECT_THAT(PullSegments({}, 0, {}, nullptr, 0, nullptr), IsOk());
}

TEST(CopyBlock, EverySizeAndAlignment) {
  constexpr size_t kStream = kStreamTotalBytes;
  const auto source = RandomBytes(kStream + 128, 3);
  std::vector<std::byte> dst(kStream + 128), want(kStream + 128);
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{4095},
        size_t{(1 << 20) + 33}, kStream, kStream + 33}) {
    for (const size_t from : {0, 13}) {
      for (const size_t to : {0, 1, 64}) {
        std::fill(dst.begin(), dst.end(), std::byte{0});
        std::fill(want.begin(), want.end(), std::byte{0});
        CopyBlock(dst.data() + to, source.data() + from, size);
        std::memcpy(want.data() + to, source.data() + from, size);
        ASSERT_EQ(dst, want) << size;
      }
    }
  }
}

// The formula of the header, word by word.
uint64_t SlowChecksum(absl::Span<const std::byte> bytes) {
  const auto step = [](uint64_t h, uint64_t word) {
    const uint64_t g = (h ^ word) * 0x9E3779B97F4A7C15u;
    return g ^ (g >> 32);
  };
  uint64_t sum = bytes.size();
  for (size_t at = 0; at < bytes.size(); at += kChecksumBlockBytes) {
    const auto block = bytes.subspan(at, kChecksumBlockBytes);
    std::vector<std::byte> padded(block.begin(), block.end());
    padded.resize((padded.size() + 255) / 256 * 256);
    uint64_t value = 0;
    for (size_t lane = 0; lane < 32; ++lane) {
      uint64_t h = lane;
      for (size_t i = 8 * lane; i < padded.size(); i += 256) {
        uint64_t word;
        std::memcpy(&word, padded.data() + i, sizeof(word));
        h = step(h, word);
      }
      value = step(value, h);
    }
    sum = step(sum, value);
  }
  return sum;
}

TEST(Checksum, IsTheFormulaOfItsHeaderWhateverTheThreads) {
  ThreadPool pool(2);
  const auto bytes = RandomBytes(20 * kChecksumBlockBytes + 77, 4);
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{255}, size_t{256}, size_t{70000},
        kChecksumBlockBytes, 2 * kChecksumBlockBytes, bytes.size()}) {
    const auto part = absl::MakeConstSpan(bytes).first(size);
    const uint64_t want = SlowChecksum(part);
    EXPECT_EQ(Checksum(Cpu{}, part), want) << size;
    EXPECT_EQ(Checksum(Cpu{&pool}, part), want) << size;
  }
}

TEST(Checksum, SeesFlippedSwappedAndMissingBytes) {
  auto bytes = RandomBytes(3 * kChecksumBlockBytes + 1000, 5);
  std::set<uint64_t> seen = {Checksum(Cpu{}, bytes)};
  size_t changes = 1;
  for (const size_t at : {size_t{0}, size_t{7}, size_t{300}, size_t{65535},
                          size_t{65536}, bytes.size() - 1}) {
    for (const int bit : {0, 7}) {
      bytes[at] ^= std::byte(1 << bit);
      seen.insert(Checksum(Cpu{}, bytes));
      ++changes;
      // The same bit in the next word of the lane too.
      if (at + 256 < bytes.size()) {
        bytes[at + 256] ^= std::byte(1 << bit);
        seen.insert(Checksum(Cpu{}, bytes));
        ++changes;
        bytes[at + 256] ^= std::byte(1 << bit);
      }
      bytes[at] ^= std::byte(1 << bit);
    }
  }
  // Blocks in another order.
  std::swap_ranges(bytes.begin(), bytes.begin() + kChecksumBlockBytes,
                   bytes.begin() + kChecksumBlockBytes);
  seen.insert(Checksum(Cpu{}, bytes));
  ++changes;
  // Zeros at the end count.
  std::vector<std::byte> zeros(512);
  for (const size_t size : {0, 1, 100, 256, 512}) {
    seen.insert(Checksum(Cpu{}, absl::MakeConstSpan(zeros).first(size)));
    ++changes;
  }
  EXPECT_EQ(seen.size(), changes);
}

}  // namespace
}  // namespace moebius
