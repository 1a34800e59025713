// Every operator of a forward pass against the slow reference, the same for
// every device: a file for each names its types. The CPU's small parts have
// tests of their own beside this.
#pragma once

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference.h"
#include "tests/backends/device_under_test.h"

namespace moebius {

template <class D>
class OperatorsTest : public testing::Test {
 protected:
  void ExpectNear(const Activations& got, const reference::Matrix& want,
                  double scale = 1.0) {
    const ConstRows view = got.view();
    ASSERT_EQ(view.rows, want.rows);
    ASSERT_EQ(view.cols, want.cols);
    for (int i = 0; i < want.rows; ++i) {
      for (int j = 0; j < want.cols; ++j) {
        ASSERT_NEAR(got.at(i, j), want.at(i, j),
                    scale * DeviceUnderTest<D>::kTolerance)
            << "row " << i << " column " << j;
      }
    }
  }
  // The same bits with exact numerics.
  void ExpectSame(const Activations& got, const Activations& first) {
    if constexpr (DeviceUnderTest<D>::kNumerics == Numerics::kExact) {
      EXPECT_EQ(got, first);
    } else {
      ExpectNear(got, first.ToDouble());
    }
  }
  // residual 0 plus the sums.
  Activations Reduce(const std::vector<ConstPartialRows<D>>& sources, int rows,
                     int cols) {
    const View<float, D> residual = dut.PutRows(Activations(rows, cols));
    const View<float, D> normed = dut.PutRows(Activations(rows, cols));
    const std::vector<float> ones(static_cast<size_t>(cols), 1.0f);
    AddPartials(
        dut.device(), sources,
        {residual, {dut.Put(absl::MakeConstSpan(ones)), cols, 1e-6f}, normed});
    const Activations sums = dut.TakeRows(residual);
    ExpectNear(dut.TakeRows(normed),
               reference::RmsNorm(sums.ToDouble(), ones, 1e-6));
    return sums;
  }

  DeviceUnderTest<D> dut;
  RandomTensors random{7};
};

// The sum of each row's top_k experts, by their renormalised weights.
inline reference::Matrix MixtureOf(const reference::Matrix& x,
                                   const std::vector<Bf16>& router,
                                   const std::vector<PlainExpert>& experts,
                                   int top_k) {
  const int count = static_cast<int>(experts.size());
  const int rows = static_cast<int>(experts[0].gate.size()) / x.cols;
  const auto logits = reference::Product(x, router, count);
  reference::Matrix out(x.rows, x.cols);
  for (int i = 0; i < x.rows; ++i) {
    std::vector<float> of_row;
    std::vector<double> row;
    for (int e = 0; e < count; ++e) of_row.push_back(logits.at(i, e));
    for (int j = 0; j < x.cols; ++j) row.push_back(x.at(i, j));
    const reference::Route route = reference::RouteTopK(of_row, top_k, true);
    for (int t = 0; t < top_k; ++t) {
      const PlainExpert& expert = experts[route.experts[t]];
      const auto sums =
          reference::Expert(row, expert.gate, expert.up, expert.down, rows);
      for (int j = 0; j < x.cols; ++j) {
        out.at(i, j) += route.weights[t] * sums[j];
      }
    }
  }
  return out;
}

// Columns [begin, begin + count).
inline reference::Matrix ColumnsOf(const Activations& x, int begin, int count) {
  const int rows = x.view().rows;
  reference::Matrix out(rows, count);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < count; ++j) out.at(i, j) = x.at(i, begin + j);
  }
  return out;
}

// Attention of a whole sequence.
inline reference::Matrix AttentionOf(const Activations& qkv,
                                     const HeadShape& shape,
                                     const std::vector<float>& q_norm,
                                     const std::vector<float>& k_norm) {
  std::vector<int32_t> positions;
  for (int i = 0; i < qkv.view().rows; ++i) positions.push_back(i);
  const int q = shape.q_cols(), k = shape.kv_cols(), d = shape.head_dim;
  return reference::Attention(
      reference::HeadNormRotary(ColumnsOf(qkv, 0, q), d, q_norm, 1e-6,
                                positions, 1e4),
      reference::HeadNormRotary(ColumnsOf(qkv, q, k), d, k_norm, 1e-6,
                                positions, 1e4),
      ColumnsOf(qkv, q + k, k), shape.num_kv, d, 0);
}

TYPED_TEST_SUITE_P(OperatorsTest);

TYPED_TEST_P(OperatorsTest, EmbedReadsRowsAndKeepRowsMovesThemUp) {
  using D = TypeParam;
  constexpr int kVocabulary = 70, kHidden = 48;
  const auto table = this->random.Weights(kVocabulary, kHidden);
  const std::vector<int32_t> ids = {69, 0, 17, 17, 3};
  const View<float, D> out = this->dut.PutRows(Activations(5, kHidden));
  Embed(this->dut.device(),
        this->dut.PutColumnParallel(table, kVocabulary, kHidden),
        this->dut.Put(absl::MakeConstSpan(ids)), out);
  const auto row = [&](const Activations& rows, int i, int32_t id) {
    for (int j = 0; j < kHidden; ++j) {
      ASSERT_EQ(rows.at(i, j), ToFloat(table[size_t(id) * kHidden + j]));
    }
  };
  const Activations all = this->dut.TakeRows(out);
  for (int i = 0; i < 5; ++i) row(all, i, ids[i]);
  const std::vector<int32_t> kept = {0, 2, 4};
  KeepRows(this->dut.device(), this->dut.Put(absl::MakeConstSpan(kept)), 3,
           out);
  const Activations left = this->dut.TakeRows(out);
  for (int i = 0; i < 3; ++i) row(left, i, ids[kept[i]]);
}

TYPED_TEST_P(OperatorsTest, ProjectPutsItsPartsSideBySide) {
  using D = TypeParam;
  constexpr int kHidden = 96, kOutputs = 80;
  const auto w = this->random.Weights(kOutputs, kHidden);
  const ColumnParallel<D> whole =
      this->dut.PutColumnParallel(w, kOutputs, kHidden);
  for (const int rows : {0, 1, 7, 40}) {
    const Activations x = this->random.Rows(rows, kHidden);
    const View<float, D> out = this->dut.PutRows(Activations(rows, 48));
    const ColumnParallel<D> parts[] = {whole.OutputRange(48, 80),
                                       whole.OutputRange(0, 16)};
    Project(this->dut.device(), this->dut.PutRows(x), parts, out);
    const auto product = reference::Product(x.ToDouble(), w, kOutputs);
    reference::Matrix want(rows, 48);
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < 48; ++j) {
        want.at(i, j) = product.at(i, j < 32 ? 48 + j : j - 32);
      }
    }
    this->ExpectNear(this->dut.TakeRows(out), want);
  }
}

// However the ranks share the steps of the reduced dimension.
TYPED_TEST_P(OperatorsTest, PartialSumsOfAllRanksAreTheProduct) {
  using D = TypeParam;
  constexpr int kInputs = 128, kHidden = 64, kRows = 9;
  const auto w = this->random.Weights(kHidden, kInputs);
  const RowParallel<D> whole = this->dut.PutRowParallel(w, kHidden, kInputs);
  const Activations x = this->random.Rows(kRows, kInputs);
  const View<float, D> on_device = this->dut.PutRows(x);
  const auto want = reference::Product(x.ToDouble(), w, kHidden);
  Activations first(0, 0);
  for (const int ranks : {1, 2, 4}) {
    std::vector<ConstPartialRows<D>> sources;
    const int share = kInputs / ranks;
    for (int r = 0; r < ranks; ++r) {
      const PartialRows<D> sums = this->dut.MakeSums(kRows, kHidden);
      ProjectPartial(this->dut.device(), on_device.ColRange(r * share, share),
                     RowSlices<D>{whole, r * share, 16}, sums);
      sources.push_back(sums);
    }
    const Activations sum = this->Reduce(sources, kRows, kHidden);
    this->ExpectNear(sum, want);
    if (ranks == 1) first = sum;
    SCOPED_TRACE(absl::StrCat(ranks, " ranks"));
    this->ExpectSame(sum, first);
  }
}

// One sequence whose last rows come in a chunk, another that decodes.
TYPED_TEST_P(OperatorsTest, HeadsArePreparedStoredAndAttended) {
  using D = TypeParam;
  constexpr int kQ = 4, kKv = 2, kDim = 32;
  constexpr HeadShape kShape{kQ, kKv, kDim};
  const auto table = RotaryTable::Create(64, PlainAngles(kDim, 1e4));
  ASSERT_TRUE(table.ok());
  const auto q_norm = this->random.Floats(kDim),
             k_norm = this->random.Floats(kDim);
  HeadPreparation<D> how;
  how.q_norm = {this->dut.Put(absl::MakeConstSpan(q_norm)), kDim, 1e-6f};
  how.k_norm = {this->dut.Put(absl::MakeConstSpan(k_norm)), kDim, 1e-6f};
  how.rotary = {this->dut.Put(table->cos()), this->dut.Put(table->sin()), 64,
                kDim};
  const KvLayer<D> kv{this->dut.MakePages({2, kDim, KvType::kFloat32}, 12), 1};
  const std::vector<uint32_t> pages[] = {{5, 1, 9, 0}, {3, 2}};
  const int lengths[] = {21, 6};
  std::vector<Activations> qkv;
  for (const int length : lengths) {
    qkv.push_back(this->random.Rows(length, kShape.cols()));
  }
  // First all but the last two rows of the one and the last row of the other.
  const auto run = [&](int first0, int count0, int first1, int count1) {
    Activations rows(count0 + count1, kShape.cols());
    std::vector<int32_t> positions;
    std::vector<QueryChunk> chunks;
    const auto add = [&](int s, int first, int count) {
      chunks.push_back(
          {static_cast<int>(positions.size()), count, first, pages[s]});
      for (int i = 0; i < count; ++i) {
        for (int j = 0; j < kShape.cols(); ++j) {
          rows.at(static_cast<int>(positions.size()), j) =
              qkv[s].at(first + i, j);
        }
        positions.push_back(first + i);
      }
    };
    add(0, first0, count0);
    add(1, first1, count1);
    const View<float, D> on_device = this->dut.PutRows(rows);
    const RowSet<D> set = this->dut.PutRowSet(positions, chunks);
    PrepareHeads(this->dut.device(), kShape, how, set, kv, on_device);
    const View<float, D> queries = on_device.ColRange(0, kShape.q_cols());
    Attend(this->dut.device(), kShape, set, kv, queries);
    return this->dut.TakeRows(queries);
  };
  run(0, 19, 0, 5);
  const Activations got = run(19, 2, 5, 1);
  int row = 0;
  for (int s = 0; s < 2; ++s) {
    const reference::Matrix all = AttentionOf(qkv[s], kShape, q_norm, k_norm);
    for (int i = s == 0 ? 19 : 5; i < lengths[s]; ++i, ++row) {
      for (int j = 0; j < kQ * kDim; ++j) {
        ASSERT_NEAR(got.at(row, j), all.at(i, j),
                    5 * DeviceUnderTest<D>::kTolerance);
      }
    }
  }
}

// Routing, grouping and the experts of two ranks, each with half of them, in
// any number of pieces.
TYPED_TEST_P(OperatorsTest, RowsGoToTheirExpertsAndTheSumsAreTheMixture) {
  using D = TypeParam;
  constexpr int kHidden = 32, kRows = 64, kExperts = 6, kTopK = 2;
  std::vector<PlainExpert> experts;
  for (int e = 0; e < kExperts; ++e) {
    experts.push_back({this->random.Weights(kRows, kHidden),
                       this->random.Weights(kRows, kHidden),
                       this->random.Weights(kHidden, kRows)});
  }
  const auto router_weights = this->random.Weights(kExperts, kHidden);
  const ColumnParallel<D> router =
      this->dut.PutColumnParallel(router_weights, kExperts, kHidden);
  const int count = 11;
  const Activations x = this->random.Rows(count, kHidden);
  const View<float, D> rows = this->dut.PutRows(x);
  const std::vector<int32_t> ids(count * kTopK, -1);
  const std::vector<float> weights(count * kTopK, 0.0f);
  const Assignments<D> assignments{this->dut.Put(absl::MakeConstSpan(ids)),
                                   this->dut.Put(absl::MakeConstSpan(weights)),
                                   count, kTopK};
  Route(this->dut.device(), {kTopK, true}, rows, router, this->dut.routing(),
        assignments);

  const reference::Matrix want =
      MixtureOf(x.ToDouble(), router_weights, experts, kTopK);
  const auto chosen = this->dut.Take(assignments.experts, count * kTopK);
  Activations first(0, 0);
  for (const int pieces : {1, 2, 4}) {
    const ExpertRange halves[] = {{0, 3}, {3, 3}};
    Activations sum(count, kHidden);
    for (const ExpertRange& range : halves) {
      const std::vector<PlainExpert> part(
          experts.begin() + range.first,
          experts.begin() + range.first + range.count);
      const PartialRows<D> sums = this->dut.MakeSums(count, kHidden);
      Group(this->dut.device(), assignments, range, this->dut.routing());
      Experts(this->dut.device(),
              this->dut.PutExperts(part, kHidden, kRows, pieces), 16, rows,
              this->dut.routing(), sums);
      // Rows without an expert here have no sums.
      for (int i = 0; i < count; ++i) {
        bool here = false;
        for (int t = 0; t < kTopK; ++t) {
          const int32_t e = chosen[i * kTopK + t];
          here |= range.first <= e && e < range.first + range.count;
        }
        if (!here) continue;
        const Activations one = this->Reduce({sums.RowRange(i, 1)}, 1, kHidden);
        for (int j = 0; j < kHidden; ++j) sum.at(i, j) += one.at(0, j);
      }
    }
    this->ExpectNear(sum, want);
    if (pieces == 1) first = sum;
    SCOPED_TRACE(absl::StrCat(pieces, " pieces"));
    this->ExpectSame(sum, first);
  }
}

TYPED_TEST_P(OperatorsTest, ADenseMlpIsOneExpertOfAllRows) {
  using D = TypeParam;
  constexpr int kHidden = 32, kRows = 48, kCount = 5;
  const PlainExpert mlp{this->random.Weights(kRows, kHidden),
                        this->random.Weights(kRows, kHidden),
                        this->random.Weights(kHidden, kRows)};
  const Activations x = this->random.Rows(kCount, kHidden);
  const PartialRows<D> sums = this->dut.MakeSums(kCount, kHidden);
  GroupAllRows(this->dut.device(), kCount, this->dut.routing());
  Experts(this->dut.device(), this->dut.PutExperts({mlp}, kHidden, kRows, 3),
          16, this->dut.PutRows(x), this->dut.routing(), sums);
  reference::Matrix want(kCount, kHidden);
  for (int i = 0; i < kCount; ++i) {
    std::vector<double> row;
    for (int j = 0; j < kHidden; ++j) row.push_back(x.at(i, j));
    const auto out = reference::Expert(row, mlp.gate, mlp.up, mlp.down, kRows);
    for (int j = 0; j < kHidden; ++j) want.at(i, j) = out[j];
  }
  this->ExpectNear(this->Reduce({sums}, kCount, kHidden), want);
}

TYPED_TEST_P(OperatorsTest, RowsOfLogitsGiveTokensOrLogProbabilities) {
  constexpr int kVocabulary = 300;
  const Activations logits = this->random.Rows(4, kVocabulary, 3.0f);
  SamplingParams greedy{.temperature = 0.0f}, scored{.num_prompt_logprobs = 2};
  SamplingParams drawn{.temperature = 0.7f, .top_k = 20, .seed = 5};
  drawn.num_logprobs = 1;
  std::vector<float> seen(kVocabulary);
  const auto results =
      this->dut.RunSample(this->dut.PutRows(logits),
                          {{.sampling = &greedy},
                           {.sampling = &scored, .known = 17},
                           {.sampling = &drawn},
                           {.sampling = &greedy, .logits = seen.data()}});
  const auto row = [&](int i) {
    std::vector<float> values;
    for (int j = 0; j < kVocabulary; ++j) values.push_back(logits.at(i, j));
    return values;
  };
  EXPECT_EQ(results[0].value.token, Argmax(row(0)));
  EXPECT_EQ(results[1].value.token, 17);
  EXPECT_EQ(results[1].value.logprobs.top.size(), 2u);
  EXPECT_NEAR(results[1].value.logprobs.logprob,
              reference::LogSoftmax(row(1))[17], 1e-4);
  Sampler sampler;
  std::vector<float> third = row(2);
  const SampledValue want =
      sampler.Sample(absl::MakeSpan(third), drawn, nullptr, 0);
  EXPECT_EQ(results[2].value.token, want.token);
  EXPECT_EQ(results[2].value.logprobs.top, want.logprobs.top);
  EXPECT_EQ(seen, row(3));
  for (const SampledRow& result : results) EXPECT_TRUE(result.finite);
}

TYPED_TEST_P(OperatorsTest, ARowThatIsNotFiniteIsTold) {
  Activations logits(2, 64);
  logits.at(1, 9) = std::nanf("");
  const SamplingParams greedy{.temperature = 0.0f};
  const auto results =
      this->dut.RunSample(this->dut.PutRows(logits),
                          {{.sampling = &greedy}, {.sampling = &greedy}});
  EXPECT_TRUE(results[0].finite);
  EXPECT_FALSE(results[1].finite);
}

REGISTER_TYPED_TEST_SUITE_P(OperatorsTest, EmbedReadsRowsAndKeepRowsMovesThemUp,
                            ProjectPutsItsPartsSideBySide,
                            PartialSumsOfAllRanksAreTheProduct,
                            HeadsArePreparedStoredAndAttended,
                            RowsGoToTheirExpertsAndTheSumsAreTheMixture,
                            ADenseMlpIsOneExpertOfAllRows,
                            RowsOfLogitsGiveTokensOrLogProbabilities,
                            ARowThatIsNotFiniteIsTold);

}  // namespace moebius
