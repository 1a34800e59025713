// Which bytes are a journal, a torn one, a damaged one.
#include "coordinator/journal/journal_frame.h"

#include <random>
#include <string>
#include <vector>

#include "coordinator/journal/crc32c.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSalt = 0x1d872b41c09ef355;
constexpr auto kCorrupt = absl::StatusCode::kDataLoss;

std::string FrameOf(uint64_t sequence, std::string payload) {
  std::string frame(kFrameHeaderBytes, '\0');
  frame += payload;
  SealFrame(sequence, kSalt, frame);
  return frame;
}

// A segment of which the first frame, of 24 bytes, is the snapshot, and the
// offsets of its frames.
struct Sample {
  std::string bytes;
  std::vector<uint64_t> offsets;
};
Sample SampleSegment() {
  SegmentHeader header{7, 100, kSegmentHeaderBytes + 24, 0xfeed, kSalt};
  Sample sample{EncodeHeader(header), {}};
  const std::vector<std::string> payloads = {
      std::string(8, 's'), std::string(16, 'a'), std::string(8, '\0'),
      std::string(40, 'c')};
  uint64_t sequence = 100;
  for (const std::string& payload : payloads) {
    sample.offsets.push_back(sample.bytes.size());
    sample.bytes += FrameOf(sequence++, payload);
  }
  return sample;
}

TEST(JournalFrame, ChecksumIsCastagnolis) {
  const std::string digits = "123456789";
  EXPECT_EQ(Crc32c(digits, {}), 0xe3069283);
  EXPECT_EQ(Crc32c(digits.substr(0, 4), digits.substr(4)), 0xe3069283);
  EXPECT_EQ(Crc32c({}, {}), 0);
}

TEST(JournalFrame, AForeignFileIsRefused) {
  EXPECT_THAT(ReadSegment(std::string(100, 'x')),
              StatusIs(kCorrupt, HasSubstr("not a journal")));
  EXPECT_THAT(ReadSegment({}), StatusIs(kCorrupt));
}

TEST(JournalFrame, AnotherVersionIsNamed) {
  std::string bytes = SampleSegment().bytes;
  bytes[8] = 9;
  EXPECT_THAT(ReadSegment(bytes),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("version 9; this program reads 1")));
}

TEST(JournalFrame, AGapInTheSequenceIsCorruption) {
  const std::string header =
      EncodeHeader({1, 5, kSegmentHeaderBytes, 0, kSalt});
  const std::string payload(8, 'p');
  EXPECT_THAT(ReadSegment(header + FrameOf(5, payload) + FrameOf(7, payload)),
              StatusIs(kCorrupt, HasSubstr("at offset 80: frame 7 in place of "
                                           "6")));
  EXPECT_THAT(ReadSegment(header + FrameOf(5, payload) + FrameOf(5, payload)),
              StatusIs(kCorrupt, HasSubstr("frame 5 in place of 6")));
  EXPECT_THAT(ReadSegment(header + FrameOf(4, payload)),
              StatusIs(kCorrupt, HasSubstr("at offset 56")));
}

TEST(JournalFrame, ASnapshotMustEndWithAFrame) {
  const std::string frame = FrameOf(5, std::string(16, 'p'));
  EXPECT_THAT(
      ReadSegment(EncodeHeader({1, 5, kSegmentHeaderBytes + 24, 0, kSalt}) +
                  frame),
      StatusIs(kCorrupt, HasSubstr("across the end of the snapshot")));
}

TEST(JournalFrame, EveryTruncationIsTornOrReported) {
  const Sample sample = SampleSegment();
  const uint64_t snapshot_end = kSegmentHeaderBytes + 24;
  for (uint64_t size = 0; size < sample.bytes.size(); ++size) {
    SCOPED_TRACE(size);
    const auto read =
        ReadSegment(absl::MakeConstSpan(sample.bytes).first(size));
    if (size < snapshot_end) {
      EXPECT_THAT(read, StatusIs(kCorrupt));
      continue;
    }
    ASSERT_THAT(read, IsOk());
    // As many frames as are whole.
    uint64_t end = snapshot_end, whole = 1;
    while (whole < sample.offsets.size() - 1 &&
           sample.offsets[whole + 1] <= size) {
      end = sample.offsets[++whole];
    }
    EXPECT_EQ(read->frames.size(), whole);
    if (size == end) {
      EXPECT_FALSE(read->torn.has_value());
    } else {
      EXPECT_EQ(read->torn, (TornTail{end, size - end}));
    }
  }
}

TEST(JournalFrame, EveryFlippedBitIsReportedOrCutOff) {
  const Sample sample = SampleSegment();
  const uint64_t last = sample.offsets.back();
  for (uint64_t at = 0; at < sample.bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      SCOPED_TRACE(testing::Message() << "bit " << bit << " of byte " << at);
      std::string bytes = sample.bytes;
      bytes[at] ^= 1 << bit;
      const auto read = ReadSegment(bytes);
      if (at < last) {
        EXPECT_FALSE(read.ok());
        continue;
      }
      ASSERT_THAT(read, IsOk());
      EXPECT_EQ(read->frames.size(), sample.offsets.size() - 1);
      EXPECT_EQ(read->torn, (TornTail{last, bytes.size() - last}));
    }
  }
}

TEST(JournalFrame, DamageIsReportedWhereItIs) {
  const Sample sample = SampleSegment();
  std::string bytes = sample.bytes;
  bytes[sample.offsets[1] + 20] ^= 1;
  EXPECT_THAT(
      ReadSegment(bytes),
      StatusIs(kCorrupt, HasSubstr(absl::StrCat(
                             "at offset ", sample.offsets[1],
                             ": a bad frame before a good one at offset ",
                             sample.offsets[2]))));
}

TEST(JournalFrame, SeveralBadFramesAtTheEndAreATornTail) {
  const Sample sample = SampleSegment();
  std::string bytes = sample.bytes;
  bytes[sample.offsets[2] + 17] ^= 1;
  bytes[sample.offsets[3] + 17] ^= 1;
  const auto read = ReadSegment(bytes);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->frames.size(), 2);
  EXPECT_EQ(read->torn->offset, sample.offsets[2]);
}

TEST(JournalFrame, ZerosAtTheEndAreATornTail) {
  const Sample sample = SampleSegment();
  const auto read = ReadSegment(sample.bytes + std::string(4096, '\0'));
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->torn, (TornTail{sample.bytes.size(), 4096}));
}

// A torn record may hold what a client sent: it cannot know the salt.
TEST(JournalFrame, TextThatLooksLikeAFrameIsNone) {
  const Sample sample = SampleSegment();
  std::string forged(kFrameHeaderBytes + 8, 'f');
  SealFrame(105, /*salt=*/0, forged);
  const std::string frame = FrameOf(104, forged + std::string(64, 'x'));
  const auto read =
      ReadSegment(sample.bytes + frame.substr(0, frame.size() - 8));
  ASSERT_THAT(read, IsOk());
  EXPECT_TRUE(read->torn.has_value());
  // With the salt it would be one.
  SealFrame(105, kSalt, forged);
  const std::string known = FrameOf(104, forged + std::string(64, 'x'));
  EXPECT_THAT(ReadSegment(sample.bytes + known.substr(0, known.size() - 8)),
              StatusIs(kCorrupt));
}

TEST(JournalFrame, WholeSegmentsAreRead) {
  const Sample sample = SampleSegment();
  const auto read = ReadSegment(sample.bytes);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->header,
            (SegmentHeader{7, 100, kSegmentHeaderBytes + 24, 0xfeed, kSalt}));
  EXPECT_FALSE(read->torn.has_value());
  ASSERT_EQ(read->frames.size(), 4);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(read->frames[i].offset, sample.offsets[i]);
    EXPECT_EQ(read->frames[i].sequence, 100 + i);
  }
  EXPECT_EQ(std::string(read->frames[1].payload.begin(),
                        read->frames[1].payload.end()),
            std::string(16, 'a'));
}

TEST(JournalFrame, AnEmptySegmentIsOne) {
  const auto read =
      ReadSegment(EncodeHeader({1, 1, kSegmentHeaderBytes, 0, kSalt}));
  ASSERT_THAT(read, IsOk());
  EXPECT_TRUE(read->frames.empty());
}

TEST(JournalFrame, RandomBytesNeverCrash) {
  std::mt19937 random(11);
  const Sample sample = SampleSegment();
  for (int i = 0; i < 5000; ++i) {
    std::string bytes = sample.bytes.substr(0, random() % sample.bytes.size());
    bytes.resize(bytes.size() + random() % 200);
    for (int flips = random() % 20; flips > 0 && !bytes.empty(); --flips) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    ReadSegment(bytes).status().IgnoreError();
  }
}

}  // namespace
}  // namespace moebius
