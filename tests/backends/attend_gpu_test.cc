// Attention on a GPU: long contexts, every size of head, and that a row's bits
// depend on nothing but the row.
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference.h"
#include "tests/backends/gpu_under_test.h"

namespace moebius {
namespace {

// Rows [first, first + count) of a sequence.
struct Piece {
  int sequence = 0;
  int first = 0;
  int count = 0;
};

// Sequences of random queries, keys and values, with pages of their own. There
// is neither norm nor rotation, so that what pages hold is known.
template <Numerics N>
class Sequences {
 public:
  using D = Cuda<N>;

  Sequences(const HeadShape& shape, KvType type, std::vector<int> lengths,
            uint64_t seed = 3)
      : shape_(shape), type_(type) {
    RandomTensors random{seed};
    for (const int length : lengths) {
      qkv_.push_back(random.Rows(length, shape.cols()));
    }
    SetPages(1);
    const std::vector<float> ones(kMaxPositions * shape.head_dim / 2, 1.0f);
    const std::vector<float> zeros(ones.size(), 0.0f);
    how_.rotary = {dut_.Put(absl::MakeConstSpan(ones)),
                   dut_.Put(absl::MakeConstSpan(zeros)), kMaxPositions,
                   shape.head_dim};
  }

  // Empty pages full of NaN, of which each sequence has others than before.
  void SetPages(uint64_t seed) {
    std::vector<uint32_t> free;
    for (const Activations& qkv : qkv_) {
      const int blocks = (qkv.view().rows + kPageTokens - 1) / kPageTokens;
      for (int i = 0; i < blocks * shape_.num_kv; ++i) {
        free.push_back(static_cast<uint32_t>(free.size()));
      }
    }
    std::shuffle(free.begin(), free.end(), std::mt19937_64(seed));
    const KvPageFormat format{2, shape_.head_dim, type_};
    const std::vector<std::byte> nan(format.page_bytes() * free.size(),
                                     std::byte{0xff});
    kv_ = {{dut_.Put(absl::MakeConstSpan(nan)),
            static_cast<uint32_t>(free.size()), format},
           1};
    pages_.clear();
    size_t at = 0;
    for (const Activations& qkv : qkv_) {
      const size_t count = static_cast<size_t>(
          (qkv.view().rows + kPageTokens - 1) / kPageTokens * shape_.num_kv);
      pages_.emplace_back(free.begin() + at, free.begin() + at + count);
      at += count;
    }
  }

  // One step. The rows' results.
  Activations Run(const std::vector<Piece>& pieces, bool alone = false) {
    std::vector<int32_t> positions;
    std::vector<QueryChunk> chunks;
    for (const Piece& piece : pieces) {
      chunks.push_back({static_cast<int>(positions.size()), piece.count,
                        piece.first, pages_[piece.sequence]});
      for (int i = 0; i < piece.count; ++i) {
        positions.push_back(piece.first + i);
      }
    }
    Activations rows(static_cast<int>(positions.size()), shape_.cols());
    for (size_t c = 0; c < pieces.size(); ++c) {
      for (int i = 0; i < pieces[c].count; ++i) {
        for (int j = 0; j < shape_.cols(); ++j) {
          rows.at(chunks[c].first_row + i, j) =
              qkv_[pieces[c].sequence].at(pieces[c].first + i, j);
        }
      }
    }
    const View<float, D> on_gpu = dut_.PutRows(rows);
    RowSet<D> set = dut_.PutRowSet(positions, chunks);
    if (alone) set.scratch = nullptr;
    PrepareHeads(dut_.device(), shape_, how_, set, kv_, on_gpu);
    const View<float, D> queries = on_gpu.ColRange(0, shape_.q_cols());
    Attend(dut_.device(), shape_, set, kv_, queries);
    return dut_.TakeRows(queries);
  }

  // Rows [first, first + count) of a sequence, slowly.
  reference::Matrix Reference(const Piece& piece) const {
    const Activations& qkv = qkv_[piece.sequence];
    const int q = shape_.q_cols(), kv = shape_.kv_cols();
    const int rows = piece.first + piece.count;
    reference::Matrix query(piece.count, q), key(rows, kv), value(rows, kv);
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < kv; ++j) {
        key.at(i, j) = Stored(qkv.at(i, q + j));
        value.at(i, j) = Stored(qkv.at(i, q + kv + j));
      }
    }
    for (int i = 0; i < piece.count; ++i) {
      for (int j = 0; j < q; ++j) query.at(i, j) = qkv.at(piece.first + i, j);
    }
    return reference::Attention(query, key, value, shape_.num_kv,
                                shape_.head_dim, piece.first);
  }

  int length(int sequence) const { return qkv_[sequence].view().rows; }

 private:
  static constexpr int kMaxPositions = 6000;

  float Stored(float value) const {
    return type_ == KvType::kBf16 ? ToFloat(ToBf16(value)) : value;
  }

  DeviceUnderTest<D> dut_;
  const HeadShape shape_;
  const KvType type_;
  std::vector<Activations> qkv_;
  std::vector<std::vector<uint32_t>> pages_;
  HeadPreparation<D> how_;
  KvLayer<D> kv_;
};

template <Numerics N>
void ExpectNear(const Activations& got, int first_row,
                const reference::Matrix& want) {
  constexpr double kTolerance = N == Numerics::kExact ? 1e-4 : 2e-2;
  for (int i = 0; i < want.rows; ++i) {
    for (int j = 0; j < want.cols; ++j) {
      ASSERT_NEAR(got.at(first_row + i, j), want.at(i, j), kTolerance)
          << "row " << i << " column " << j;
    }
  }
}

// The rows of `piece`, which are rows [at, ...) of `got`, against `want`, of
// which they are rows [piece.first, ...).
void ExpectSameRows(const Activations& got, int at, const Piece& piece,
                    const Activations& want) {
  for (int i = 0; i < piece.count; ++i) {
    for (int j = 0; j < want.view().cols; ++j) {
      ASSERT_EQ(got.at(at + i, j), want.at(piece.first + i, j))
          << "sequence " << piece.sequence << " row " << piece.first + i
          << " column " << j;
    }
  }
}

template <class D>
class AttendGpuTest : public testing::Test {};
using Devices = testing::Types<CudaExact, CudaFast>;
TYPED_TEST_SUITE(AttendGpuTest, Devices);

// A prefill, a chunk behind it, and a row behind that.
TYPED_TEST(AttendGpuTest, EverySizeOfHeadsAgreesWithTheReference) {
  constexpr Numerics kNumerics = DeviceUnderTest<TypeParam>::kNumerics;
  const HeadShape shapes[] = {{4, 2, 32},   {6, 2, 48},   {8, 1, 64},
                              {16, 2, 128}, {16, 1, 128}, {2, 2, 128},
                              {4, 1, 256},  {3, 1, 80},   {2, 1, 16}};
  for (const HeadShape& shape : shapes) {
    for (const KvType type : {KvType::kFloat32, KvType::kBf16}) {
      SCOPED_TRACE(absl::StrCat(shape.num_q, " of ", shape.num_kv, " of ",
                                shape.head_dim, " as type ",
                                static_cast<int>(type)));
      Sequences<kNumerics> sequences(shape, type, {373, 70});
      const Piece pieces[] = {{0, 0, 330}, {0, 330, 42}, {0, 372, 1}};
      for (const Piece& piece : pieces) {
        const Activations got =
            piece.first == 0   ? sequences.Run({piece, {1, 0, 69}})
            : piece.count == 1 ? sequences.Run({{1, 69, 1}, piece})
                               : sequences.Run({piece});
        ExpectNear<kNumerics>(got, piece.count == 1 ? 1 : 0,
                              sequences.Reference(piece));
        if (piece.count == 1) {
          ExpectNear<kNumerics>(got, 0, sequences.Reference({1, 69, 1}));
        }
      }
    }
  }
}

TYPED_TEST(AttendGpuTest, ContextsOfFiveThousandTokens) {
  constexpr Numerics kNumerics = DeviceUnderTest<TypeParam>::kNumerics;
  for (const KvType type : {KvType::kFloat32, KvType::kBf16}) {
    Sequences<kNumerics> sequences({8, 1, 128}, type, {5003});
    sequences.Run({{0, 0, 2048}});
    sequences.Run({{0, 2048, 2900}});
    const Piece chunk{0, 4948, 54}, row{0, 5002, 1};
    ExpectNear<kNumerics>(sequences.Run({chunk}), 0,
                          sequences.Reference(chunk));
    const Activations shared = sequences.Run({row});
    ExpectNear<kNumerics>(shared, 0, sequences.Reference(row));
    ExpectNear<kNumerics>(sequences.Run({row}, true), 0,
                          sequences.Reference(row));
  }
}

class AttendExactTest : public testing::TestWithParam<KvType> {
 protected:
  static constexpr Numerics kExact = Numerics::kExact;
};

TEST_P(AttendExactTest, ARowsBitsDependOnNothingButTheRow) {
  for (const HeadShape& shape :
       {HeadShape{16, 2, 128}, HeadShape{4, 2, 32}, HeadShape{3, 1, 256}}) {
    Sequences<kExact> sequences(shape, GetParam(), {1100, 300, 65, 1});
    std::vector<Activations> whole;
    for (int s = 0; s < 4; ++s) {
      whole.push_back(sequences.Run({{s, 0, sequences.length(s)}}));
    }
    // Other pages, and chunks of any size, many sequences at once.
    std::mt19937 generator(5);
    for (const bool alone : {false, true}) {
      sequences.SetPages(alone ? 7 : 8);
      std::vector<int> done(4, 0);
      for (bool more = true; more;) {
        more = false;
        std::vector<Piece> pieces;
        for (int s = 0; s < 4; ++s) {
          const int left = sequences.length(s) - done[s];
          const int most[] = {1, 2, 40, 400};
          const int count = std::min<int>(
              left, 1 + static_cast<int>(generator() % most[generator() % 4]));
          if (count == 0 || generator() % 4 == 0) {
            more |= left > 0;
            continue;
          }
          pieces.push_back({s, done[s], count});
          done[s] += count;
          more |= done[s] < sequences.length(s);
        }
        if (pieces.empty()) continue;
        const Activations got = sequences.Run(pieces, alone);
        int at = 0;
        for (const Piece& piece : pieces) {
          ExpectSameRows(got, at, piece, whole[piece.sequence]);
          at += piece.count;
        }
        if (HasFatalFailure()) return;
      }
      // Each row by itself, as in decode: the last of all splits and blocks.
      for (const int row : {0, 15, 16, 63, 64, 255, 256, 257, 511, 512, 1099}) {
        const Activations got = sequences.Run({{0, row, 1}}, alone);
        ExpectSameRows(got, 0, {0, row, 1}, whole[0]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Pages, AttendExactTest,
                         testing::Values(KvType::kFloat32, KvType::kBf16));

}  // namespace
}  // namespace moebius
