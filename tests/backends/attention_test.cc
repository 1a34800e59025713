#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference.h"
#include "tests/backends/random_tensors.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using ::testing::HasSubstr;

struct Shape {
  int q_heads, kv_heads, head_dim;
};

// A pool whose bytes are NaN until written.
class Cache {
 public:
  Cache(const Shape& shape, int num_layers, uint32_t num_pages, KvType type)
      : format_{num_layers, shape.head_dim, type},
        bytes_(format_.page_bytes() * num_pages, std::byte{0xff}),
        num_pages_(num_pages) {}
  KvPool pool() { return KvPool{bytes_.data(), num_pages_, format_}; }
  std::byte* page(uint32_t p) {
    return bytes_.data() + p * format_.page_bytes();
  }

 private:
  KvPageFormat format_;
  AlignedVector<std::byte> bytes_;
  uint32_t num_pages_;
};

// [block][head] pages, a random permutation of the pool.
std::vector<uint32_t> Pages(int blocks, int kv_heads, uint32_t num_pages,
                            uint64_t seed) {
  std::vector<uint32_t> pages(num_pages);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937_64(seed));
  pages.resize(size_t(blocks) * kv_heads);
  return pages;
}

struct Sequence {
  Activations q, k, v;
};

Sequence RandomSequence(const Shape& shape, int length, uint64_t seed) {
  RandomTensors random(seed);
  return {random.Rows(length, shape.q_heads * shape.head_dim, 1.5f),
          random.Rows(length, shape.kv_heads * shape.head_dim, 1.5f),
          random.Rows(length, shape.kv_heads * shape.head_dim)};
}

ConstRows RowsOf(const Activations& x, int begin, int count) {
  const ConstRows all = x.view();
  return {all.row(begin), count, all.cols, all.stride};
}

// The whole sequence in chunks of the given sizes (the last one repeats), each
// chunk written and attended to as a step of its own.
Activations RunInChunks(const Shape& shape, const Sequence& sequence,
                        std::vector<int> sizes, KvType type, uint64_t seed,
                        ThreadPool* threads = nullptr,
                        const reference::Sight& sight = {}) {
  const int length = sequence.q.view().rows;
  const int blocks = (length + kPageTokens - 1) / kPageTokens;
  const uint32_t num_pages = blocks * shape.kv_heads + 3;
  Cache cache(shape, 2, num_pages, type);
  const auto pages = Pages(blocks, shape.kv_heads, num_pages, seed);
  Activations out(length, shape.q_heads * shape.head_dim);
  size_t next = 0;
  for (int at = 0; at < length;) {
    const int size =
        std::min(sizes[std::min(next++, sizes.size() - 1)], length - at);
    const QueryChunk chunk{0, size, at, pages};
    const auto chunks = absl::MakeConstSpan(&chunk, 1);
    WriteKv(RowsOf(sequence.k, at, size), RowsOf(sequence.v, at, size), chunks,
            shape.kv_heads, 1, cache.pool(), threads);
    const float* const sinks =
        sight.sinks.empty() ? nullptr : sight.sinks.data();
    PagedAttention(RowsOf(sequence.q, at, size), chunks, shape.kv_heads,
                   {cache.pool(), 1, sight.window, sinks},
                   out.rows().RowRange(at, size), threads);
    at += size;
    // Pages that no later row sees.
    const int unseen = sight.window == 0 ? 0 : at - sight.window + 1;
    for (int block = 0; (block + 1) * kPageTokens <= unseen; ++block) {
      for (int h = 0; h < shape.kv_heads; ++h) {
        std::memset(cache.page(pages[size_t(block) * shape.kv_heads + h]), 0xff,
                    cache.pool().format.page_bytes());
      }
    }
  }
  return out;
}

TEST(WriteKv, PlacesTokensAndTouchesNothingElse) {
  const Shape shape{2, 2, 32};
  for (const KvType type : {KvType::kFloat32, KvType::kBf16}) {
    Cache cache(shape, 3, 6, type);
    const KvPool pool = cache.pool();
    const Sequence sequence = RandomSequence(shape, 3, 5);
    // Positions 15, 16, 17: the last place of a block, two of the next.
    const std::vector<uint32_t> pages = {5, 1, 2, 0};
    const QueryChunk chunk{0, 3, 15, pages};
    WriteKv(sequence.k.view(), sequence.v.view(),
            absl::MakeConstSpan(&chunk, 1), 2, 1, pool, nullptr);
    size_t written = 0;
    const auto value = [&](uint32_t page, size_t offset) {
      const std::byte* at = cache.page(page) + offset;
      if (type == KvType::kFloat32) {
        float out;
        std::memcpy(&out, at, sizeof(out));
        return out;
      }
      Bf16 out;
      std::memcpy(&out, at, sizeof(out));
      return ToFloat(out);
    };
    const size_t bytes = pool.format.element_bytes();
    for (uint32_t page = 0; page < 6; ++page) {
      for (size_t i = 0; i < pool.format.page_bytes(); i += bytes) {
        written += !std::isnan(value(page, i));
      }
    }
    EXPECT_EQ(written, 3 * 2 * 2 * 32u);
    for (int i = 0; i < 3; ++i) {
      const int position = 15 + i, offset = position % 16;
      for (int h = 0; h < 2; ++h) {
        const uint32_t page = pages[size_t(position / 16) * 2 + h];
        for (int d = 0; d < 32; ++d) {
          const float k = sequence.k.at(i, h * 32 + d);
          const float v = sequence.v.at(i, h * 32 + d);
          const bool exact = type == KvType::kFloat32;
          EXPECT_EQ(
              value(page, pool.format.k_offset(1) + (d * 16 + offset) * bytes),
              exact ? k : ToFloat(ToBf16(k)));
          EXPECT_EQ(
              value(page, pool.format.v_offset(1) + (offset * 32 + d) * bytes),
              exact ? v : ToFloat(ToBf16(v)));
        }
      }
    }
  }
}

TEST(PagedAttention, EqualsTheReference) {
  for (const Shape shape :
       {Shape{8, 4, 32}, Shape{8, 1, 128}, Shape{3, 3, 16}, Shape{6, 2, 48}}) {
    for (const int length : {1, 2, 15, 16, 17, 63, 64, 65, 150}) {
      const Sequence sequence = RandomSequence(shape, length, length);
      const auto want = reference::Attention(
          sequence.q.ToDouble(), sequence.k.ToDouble(), sequence.v.ToDouble(),
          shape.kv_heads, shape.head_dim, 0);
      for (const KvType type : {KvType::kFloat32, KvType::kBf16}) {
        const Activations got = RunInChunks(shape, sequence, {length}, type, 1);
        const double tolerance = type == KvType::kFloat32 ? 2e-5 : 0.1;
        for (int i = 0; i < length; ++i) {
          for (int j = 0; j < want.cols; ++j) {
            ASSERT_NEAR(got.at(i, j), want.at(i, j), tolerance)
                << length << " tokens, at " << i << ", " << j;
          }
        }
      }
    }
  }
}

// Every chunk leaves NaN in what it has not written yet, so this also says that
// nothing beyond a row's position is looked at.
TEST(PagedAttention, ChunksDecodeThreadsAndPageOrderGiveTheSameBits) {
  ThreadPool threads(2);
  for (const Shape shape :
       {Shape{8, 4, 32}, Shape{16, 2, 128}, Shape{5, 1, 16}}) {
    const int length = 201;
    const Sequence sequence = RandomSequence(shape, length, 77);
    for (const KvType type : {KvType::kFloat32, KvType::kBf16}) {
      const Activations whole = RunInChunks(shape, sequence, {length}, type, 1);
      for (const auto& sizes : std::vector<std::vector<int>>{
               {1}, {2}, {3}, {64}, {100, 1}, {17, 5, 64, 1, 1, 31}}) {
        ASSERT_EQ(RunInChunks(shape, sequence, sizes, type, 2), whole)
            << "chunks of " << sizes[0];
      }
      ASSERT_EQ(RunInChunks(shape, sequence, {length}, type, 3, &threads),
                whole);
      ASSERT_EQ(RunInChunks(shape, sequence, {50}, type, 4, &threads), whole);
    }
  }
}

// What no row sees any more is NaN by then.
TEST(PagedAttention, WindowsAndSinksAreTheSameBitsInEveryChunking) {
  ThreadPool threads(2);
  const Shape shape{8, 4, 32};
  const int length = 301;
  const Sequence sequence = RandomSequence(shape, length, 78);
  reference::Sight sight;
  for (int h = 0; h < 8; ++h) sight.sinks.push_back(1.5f * h - 4.0f);
  for (const int window : {1, 15, 64, 100, 250}) {
    sight.window = window;
    const auto want = reference::Attention(
        sequence.q.ToDouble(), sequence.k.ToDouble(), sequence.v.ToDouble(),
        shape.kv_heads, shape.head_dim, 0, sight);
    const Activations whole = RunInChunks(shape, sequence, {length},
                                          KvType::kFloat32, 1, nullptr, sight);
    for (int i = 0; i < length; ++i) {
      for (int j = 0; j < want.cols; ++j) {
        ASSERT_NEAR(whole.at(i, j), want.at(i, j), 2e-5)
            << "window " << window << ", at " << i << ", " << j;
      }
    }
    for (const auto& sizes :
         std::vector<std::vector<int>>{{1}, {3}, {64}, {17, 5, 64, 1, 31}}) {
      ASSERT_EQ(RunInChunks(shape, sequence, sizes, KvType::kFloat32, 2,
                            &threads, sight),
                whole)
          << "window " << window << ", chunks of " << sizes[0];
    }
  }
}

// Several sequences in one step, against each alone; and a head alone.
TEST(PagedAttention, OtherSequencesAndHeadsDoNotMatter) {
  const Shape shape{8, 4, 32};
  const std::vector<int> lengths = {1, 40, 130, 64};
  const uint32_t num_pages = 100;
  Cache cache(shape, 1, num_pages, KvType::kFloat32);
  const KvLayer<Cpu> kv{cache.pool(), 0};
  const auto pages = Pages(18, shape.kv_heads, num_pages, 9);
  std::vector<Sequence> sequences;
  std::vector<absl::Span<const uint32_t>> tables;
  size_t used = 0;
  for (size_t s = 0; s < lengths.size(); ++s) {
    sequences.push_back(RandomSequence(shape, lengths[s], 100 + s));
    const size_t count = size_t((lengths[s] + 15) / 16) * shape.kv_heads;
    tables.push_back(absl::MakeConstSpan(pages).subspan(used, count));
    used += count;
    const QueryChunk chunk{0, lengths[s], 0, tables[s]};
    WriteKv(sequences[s].k.view(), sequences[s].v.view(),
            absl::MakeConstSpan(&chunk, 1), shape.kv_heads, 0, kv.pool,
            nullptr);
  }
  // The last rows of each: three of the third, one of the others; row 3 idle.
  const int width = shape.q_heads * shape.head_dim;
  Activations q(7, width), out(7, width);
  std::vector<QueryChunk> chunks;
  const std::vector<int> first_rows = {0, 1, 4, 2}, counts = {1, 1, 3, 1};
  for (size_t s = 0; s < lengths.size(); ++s) {
    const int first = lengths[s] - counts[s];
    chunks.push_back({first_rows[s], counts[s], first, tables[s]});
    for (int i = 0; i < counts[s]; ++i) {
      for (int j = 0; j < width; ++j) {
        q.at(first_rows[s] + i, j) = sequences[s].q.at(first + i, j);
      }
    }
  }
  for (int j = 0; j < width; ++j) out.at(3, j) = 5.0f;
  PagedAttention(q.view(), chunks, shape.kv_heads, kv, out.rows(), nullptr);
  for (int j = 0; j < width; ++j) ASSERT_EQ(out.at(3, j), 5.0f);
  for (size_t s = 0; s < lengths.size(); ++s) {
    const Activations alone =
        RunInChunks(shape, sequences[s], {lengths[s]}, KvType::kFloat32, 31);
    for (int i = 0; i < counts[s]; ++i) {
      for (int j = 0; j < width; ++j) {
        ASSERT_EQ(out.at(first_rows[s] + i, j),
                  alone.at(lengths[s] - counts[s] + i, j));
      }
    }
    // A TP rank with one KV head and its two query heads; and one of those.
    for (const int q_heads : {2, 1}) {
      std::vector<uint32_t> head_pages;
      for (size_t p = 3; p < tables[s].size(); p += 4) {
        head_pages.push_back(tables[s][p]);
      }
      const QueryChunk chunk{first_rows[s], counts[s], lengths[s] - counts[s],
                             head_pages};
      Activations part(7, q_heads * 32), got(7, q_heads * 32);
      for (int i = 0; i < 7; ++i) {
        for (int j = 0; j < q_heads * 32; ++j) {
          part.at(i, j) = q.at(i, 6 * 32 + j);
        }
      }
      PagedAttention(part.view(), absl::MakeConstSpan(&chunk, 1), 1, kv,
                     got.rows(), nullptr);
      for (int i = 0; i < counts[s]; ++i) {
        for (int j = 0; j < q_heads * 32; ++j) {
          ASSERT_EQ(got.at(first_rows[s] + i, j),
                    out.at(first_rows[s] + i, 6 * 32 + j));
        }
      }
    }
  }
  // In place.
  PagedAttention(q.view(), chunks, shape.kv_heads, kv, q.rows(), nullptr);
  for (int i = 0; i < 7; ++i) {
    for (int j = 0; i != 3 && j < width; ++j) {
      ASSERT_EQ(q.at(i, j), out.at(i, j));
    }
  }
}

TEST(PagedAttention, LargeScoresDoNotOverflow) {
  const Shape shape{1, 1, 16};
  Sequence sequence = RandomSequence(shape, 70, 3);
  for (int i = 0; i < 70; ++i) {
    for (int j = 0; j < 16; ++j) {
      sequence.q.at(i, j) *= 100.0f;
      sequence.k.at(i, j) *= 100.0f;
    }
  }
  const Activations got =
      RunInChunks(shape, sequence, {70}, KvType::kFloat32, 1);
  for (int i = 0; i < 70; ++i) {
    for (int j = 0; j < 16; ++j) ASSERT_TRUE(std::isfinite(got.at(i, j)));
  }
}

}  // namespace
}  // namespace moebius
