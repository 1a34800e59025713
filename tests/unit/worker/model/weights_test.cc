#include "worker/model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/pull.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/checkpoint_writer.h"
#include "tests/unit/worker/model/small_model.h"
#include "tests/unit/worker/model/test_group.h"
#include "worker/model/weight_views.h"

namespace moebius {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

// 8 experts of 128 rows, a dense layer between MoE layers, untied embedding, a
// vocabulary that is no multiple of a panel.
SmallModel SmallConfig() {
  SmallModel config;
  config.hidden_size = 48;
  config.num_q_heads = 8;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.intermediate_size = 80;
  config.moe_intermediate_size = 128;
  config.num_experts = 8;
  config.experts_per_token = 2;
  config.vocab_size = 101;
  config.max_positions = 512;
  config.is_moe_layer = {true, false, true};
  return config;
}

struct Memory {
  explicit Memory(const ModelShape& shape)
      : dense(PlanDense(shape).size_bytes),
        experts(shape.experts.region_bytes()) {
    std::memset(dense.data(), 0, dense.size());
    std::memset(experts.data(), 0, experts.size());
  }
  LoadTarget Target(Rank rank, Layout layout) {
    return Target(rank, ExpertsState::At(layout, Side::kLow));
  }
  LoadTarget Target(Rank rank, const ExpertsState& state) {
    return {rank, state, dense.data(), experts.data()};
  }
  AlignedBytes dense, experts;
};

ModelShape Shape(const SmallModel& config, int num_ranks) {
  const auto shape = MakeModelShape(SpecOf(config), num_ranks);
  EXPECT_THAT(shape, IsOk());
  return *shape;
}

absl::Span<const std::byte> Slot(const ModelShape& shape, const Memory& memory,
                                 int slot) {
  return memory.experts.span().subspan(slot * shape.experts.slot_bytes(),
                                       shape.experts.slot_bytes());
}

TEST(ModelShape, SizesThatCannotBeDividedNameTheKey) {
  const auto expect = [](auto change, const char* message) {
    SmallModel config = SmallConfig();
    int num_ranks = 4;
    change(config, num_ranks);
    EXPECT_THAT(MakeModelShape(SpecOf(config), num_ranks),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect([](auto& c, auto&) { c.hidden_size = 40; }, "hidden_size: 40");
  expect([](auto& c, auto&) { c.head_dim = 24; }, "head_dim: 24");
  expect([](auto& c, auto&) { c.moe_intermediate_size = 72; },
         "moe_intermediate_size: 72");
  expect([](auto& c, auto&) { c.intermediate_size = 72; },
         "intermediate_size: 72");
  expect([](auto&, auto& n) { n = 3; }, "8 query heads");
  expect([](auto&, auto& n) { n = 0; }, "1 to 16 ranks");
  expect([](auto&, auto& n) { n = 17; }, "1 to 16 ranks");
}

TEST(ModelShape, WhatNoOperatorComputesIsRefused) {
  DecoderSpec spec = SpecOf(SmallConfig());
  spec.logit_scale = 0.5;
  EXPECT_THAT(MakeModelShape(spec, 1), StatusIs(StatusCode::kUnimplemented));
}

TEST(ModelShape, LayersThatCannotBeDividedAlikeAreRefused) {
  const auto expect = [](auto change, const char* message) {
    DecoderSpec spec = SpecOf(SmallConfig());
    change(std::get<GroupedQueryAttention>(spec.layers[2].attention),
           std::get<MoeMlp>(spec.layers[2].mlp));
    EXPECT_THAT(MakeModelShape(spec, 1),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect([](auto& a, auto&) { a.q_heads = 4; }, "layer 2: query heads 4");
  expect([](auto& a, auto&) { a.kv_heads = 4; }, "layer 2: KV heads 4");
  expect([](auto&, auto& m) { m.rows = 64; },
         "layer 2: moe_intermediate_size 64");
  expect([](auto&, auto& m) { m.router.num_experts = 4; },
         "layer 2: experts 4");
  expect([](auto&, auto& m) { m.router.top_k = 1; },
         "layer 2: experts of a row 1");
}

TEST(ModelShape, SlicesAreTheSameForEveryGroupSize) {
  for (const int n : {1, 2, 4, 8}) {
    const ModelShape shape = Shape(SmallConfig(), n);
    EXPECT_EQ(shape.output_slice_rows, 16);  // 8 heads of 16
    EXPECT_EQ(shape.expert_slice_rows, 16);  // 128 rows
    EXPECT_EQ(shape.num_mlp_slices, 5);      // 5 units
    EXPECT_EQ(shape.mlp_slice_rows, 16);
  }
  SmallModel config = SmallConfig();
  config.num_q_heads = config.num_kv_heads = 12;
  config.num_experts = 12;
  config.moe_intermediate_size = 16 * 24;
  for (const int n : {1, 2, 3, 4, 6}) {
    EXPECT_EQ(Shape(config, n).output_slice_rows, 16);
    EXPECT_EQ(Shape(config, n).expert_slice_rows, 32);  // 12 slices
  }
}

TEST(ModelShape, SharesAreWholeAndDifferByOneAtMost) {
  for (const int n : {1, 2, 3, 5, 8}) {
    for (const int total : {0, 1, 7, 8, 100}) {
      int next = 0;
      for (Rank r = 0; r < n; ++r) {
        const IndexRange share = ShareOf(total, n, r);
        EXPECT_EQ(share.begin, next);
        EXPECT_GE(share.size(), total / n);
        EXPECT_LE(share.size(), (total + n - 1) / n);
        next = share.end;
      }
      EXPECT_EQ(next, total);
    }
  }
}

TEST(Weights, AMissingOrMisshapenTensorIsRefusedBeforeAnythingIsWritten) {
  const ModelShape shape = Shape(SmallConfig(), 1);
  std::vector<NamedTensor> tensors = DummyTensors(SpecOf(SmallConfig()));
  TempDir dir;
  Memory memory(shape);
  const Memory untouched(shape);
  const auto load = [&] {
    return LoadWeights(shape, kSmallModelNames, dir.path(), false,
                       memory.Target(0, ExpertParallel()));
  };
  EXPECT_THAT(load(), StatusIs(StatusCode::kNotFound));
  for (const size_t broken :
       {size_t{0}, tensors.size() / 2, tensors.size() - 1}) {
    std::vector<NamedTensor> changed = tensors;
    changed[broken].shape.push_back(1);
    WriteCheckpoint(dir.path(), changed, TensorType::kBf16, 1);
    EXPECT_THAT(load(), StatusIs(StatusCode::kInvalidArgument,
                                 AllOf(HasSubstr("model.safetensors"),
                                       HasSubstr(tensors[broken].name))));
    changed[broken] = {"other", {1}, {1}};
    WriteCheckpoint(dir.path(), changed, TensorType::kBf16, 1);
    EXPECT_THAT(load(), StatusIs(StatusCode::kNotFound,
                                 HasSubstr(tensors[broken].name)));
  }
  EXPECT_EQ(memory.dense.span(), untouched.dense.span());
  EXPECT_EQ(memory.experts.span(), untouched.experts.span());
}

TEST(Weights, WithoutQkNormNoTensorsOfItAreWanted) {
  SmallModel config = SmallConfig();
  std::vector<NamedTensor> tensors = DummyTensors(SpecOf(config));
  std::erase_if(tensors, [](const NamedTensor& tensor) {
    return tensor.name.find("q_norm") != std::string::npos ||
           tensor.name.find("k_norm") != std::string::npos;
  });
  TempDir dir;
  WriteCheckpoint(dir.path(), tensors, TensorType::kBf16, 1);
  const auto load = [&] {
    const ModelShape shape = Shape(config, 1);
    Memory memory(shape);
    return LoadWeights(shape, kSmallModelNames, dir.path(), false,
                       memory.Target(0, ExpertParallel()))
        .status();
  };
  EXPECT_THAT(load(), StatusIs(StatusCode::kNotFound, HasSubstr("q_norm")));
  config.qk_norm = false;
  EXPECT_THAT(load(), IsOk());
}

TEST(Weights, OneFileShardsAndEveryTypeGiveTheBytesOfTheSource) {
  const SmallModel config = SmallConfig();
  const std::vector<NamedTensor> tensors = DummyTensors(SpecOf(config));
  for (const Layout layout : {ExpertParallel(), TensorParallel(2)}) {
    const ModelShape shape = Shape(config, 2);
    Memory expected(shape);
    ASSERT_THAT(LoadWeights(shape, kSmallModelNames, "", true,
                            expected.Target(1, layout)),
                IsOk());
    for (const TensorType type : {TensorType::kBf16, TensorType::kF32}) {
      for (const int num_shards : {1, 3}) {
        TempDir dir;
        WriteCheckpoint(dir.path(), tensors, type, num_shards);
        Memory memory(shape);
        ASSERT_THAT(LoadWeights(shape, kSmallModelNames, dir.path(), false,
                                memory.Target(1, layout)),
                    IsOk());
        EXPECT_EQ(memory.dense.span(), expected.dense.span());
        EXPECT_EQ(memory.experts.span(), expected.experts.span());
      }
    }
  }
}

TEST(Weights, HalfPrecisionIsRoundedToBf16) {
  const SmallModel config = SmallConfig();
  std::vector<NamedTensor> tensors = DummyTensors(SpecOf(config));
  for (NamedTensor& tensor : tensors) {
    // Numbers with the 11 significant bits of F16, which BF16 must round.
    for (float& value : tensor.values)
      value += value > 0 ? 0x1p-10f : -0x1p-10f;
  }
  const ModelShape shape = Shape(config, 1);
  TempDir half_dir, bf16_dir;
  WriteCheckpoint(half_dir.path(), tensors, TensorType::kF16, 1);
  // What F16 keeps of them, written as BF16 by the writer's rounding.
  for (NamedTensor& tensor : tensors) {
    for (size_t i = 0; i < tensor.values.size(); ++i) {
      // Normal numbers of F16 hold 10 fraction bits: clear the rest.
      const double scale = std::ldexp(1.0, 10 - std::ilogb(tensor.values[i]));
      const double kept =
          tensor.values[i] == 0 || std::abs(tensor.values[i]) < 0x1p-14f
              ? std::nearbyint(tensor.values[i] * 0x1p24) * 0x1p-24
              : std::nearbyint(tensor.values[i] * scale) / scale;
      tensor.values[i] = static_cast<float>(kept);
    }
  }
  WriteCheckpoint(bf16_dir.path(), tensors, TensorType::kBf16, 1);
  Memory half(shape), bf16(shape);
  ASSERT_THAT(LoadWeights(shape, kSmallModelNames, half_dir.path(), false,
                          half.Target(0, ExpertParallel())),
              IsOk());
  ASSERT_THAT(LoadWeights(shape, kSmallModelNames, bf16_dir.path(), false,
                          bf16.Target(0, ExpertParallel())),
              IsOk());
  EXPECT_EQ(half.dense.span(), bf16.dense.span());
  EXPECT_EQ(half.experts.span(), bf16.experts.span());
}

class PulledSlots : public testing::TestWithParam<int> {};

TEST_P(PulledSlots, EqualLoadedOnesByteForByteBetweenAnyTwoLayouts) {
  const int n = GetParam();
  const ModelShape shape = Shape(SmallConfig(), n);
  const std::vector<Layout> layouts = LayoutsOf(shape.attention);
  std::vector<std::vector<Memory>> loaded(layouts.size());  // [layout][rank]
  for (size_t i = 0; i < layouts.size(); ++i) {
    for (Rank r = 0; r < n; ++r) {
      Memory& memory = loaded[i].emplace_back(shape);
      ASSERT_THAT(LoadWeights(shape, kSmallModelNames, "", true,
                              memory.Target(r, layouts[i])),
                  IsOk());
      EXPECT_EQ(memory.dense.span(), loaded[0][0].dense.span());
    }
  }
  const int64_t slot_bytes = shape.experts.slot_bytes();
  const auto pull = [&](const std::vector<Memory>& from, Layout source,
                        Layout target, Rank rank, int layer) {
    std::vector<const std::byte*> slots;
    for (const Memory& memory : from) {
      slots.push_back(Slot(shape, memory, layer).data());
    }
    AlignedBytes pulled(slot_bytes);
    EXPECT_THAT(PullSegments(slots, slot_bytes,
                             PlanSlot(shape.experts, source, target, rank),
                             pulled.data(), slot_bytes, nullptr),
                IsOk());
    return pulled;
  };
  for (int layer = 0; layer < shape.experts.num_moe_layers; ++layer) {
    for (Rank r = 0; r < n; ++r) {
      for (size_t from = 0; from < layouts.size(); ++from) {
        for (size_t to = 0; to < layouts.size(); ++to) {
          EXPECT_EQ(
              pull(loaded[from], layouts[from], layouts[to], r, layer).span(),
              Slot(shape, loaded[to][r], layer));
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, PulledSlots, testing::Values(1, 2, 4, 8));

TEST(Weights, ARankReadsItsOwnExpertsAlone) {
  const SmallModel config = SmallConfig();
  TempDir dir;
  WriteCheckpoint(dir.path(), DummyTensors(SpecOf(config)), TensorType::kBf16,
                  1);
  const ModelShape shape = Shape(config, 4);
  const int64_t expert_bytes = int64_t{3} * 48 * 128 * 2;
  int64_t dense_bytes = 0;
  for (const NamedTensor& tensor : DummyTensors(SpecOf(config))) {
    if (tensor.name.find(".experts.") == std::string::npos) {
      dense_bytes += static_cast<int64_t>(tensor.values.size()) * 2;
    }
  }
  Memory memory(shape);
  int64_t done = 0, total = 0;
  const auto stats = LoadWeights(shape, kSmallModelNames, dir.path(), false,
                                 memory.Target(2, ExpertParallel()),
                                 [&](int64_t d, int64_t t) {
                                   EXPECT_GE(d, done);
                                   EXPECT_LE(d, t);
                                   done = d;
                                   total = t;
                                 });
  ASSERT_THAT(stats, IsOk());
  EXPECT_EQ(stats->bytes_read, dense_bytes + 2 * 2 * expert_bytes);
  EXPECT_GT(done, 0);
  EXPECT_EQ(total,
            PlanDense(shape).size_bytes + 2 * shape.experts.slot_bytes());

  // TP: a quarter of gate and up; down's rows are shorter than a page.
  const auto tp = LoadWeights(shape, kSmallModelNames, dir.path(), false,
                              memory.Target(2, TensorParallel(4)));
  ASSERT_THAT(tp, IsOk());
  const int64_t matrix = expert_bytes / 3;
  EXPECT_LE(tp->bytes_read, dense_bytes + 2 * 8 * (2 * matrix / 4 + matrix));
}

TEST(Weights, FreeSlotsAreNotTouched) {
  for (const int spare : {1, 2, 3}) {
    const auto made = MakeModelShape(SpecOf(SmallConfig()), 2, spare);
    ASSERT_THAT(made, IsOk());
    const ModelShape& shape = *made;
    const Layout ep = ExpertParallel(), tp = TensorParallel(2);
    for (const ExpertsState& state :
         {ExpertsState::At(ep, Side::kLow), ExpertsState::At(tp, Side::kHigh),
          ExpertsState{ep, tp, Side::kHigh, 1},
          ExpertsState{tp, ep, Side::kLow, 2}}) {
      Memory memory(shape);
      std::memset(memory.experts.data(), 0x5a, memory.experts.size());
      ASSERT_THAT(LoadWeights(shape, kSmallModelNames, "", true,
                              memory.Target(0, state)),
                  IsOk());
      std::vector<bool> used(shape.experts.num_slots());
      for (int layer = 0; layer < shape.experts.num_moe_layers; ++layer) {
        used[state.SlotOf(shape.experts, layer)] = true;
      }
      for (int slot = 0; slot < shape.experts.num_slots(); ++slot) {
        const auto bytes = Slot(shape, memory, slot);
        EXPECT_NE(used[slot],
                  std::all_of(bytes.begin(), bytes.end(), [](std::byte byte) {
                    return byte == std::byte{0x5a};
                  }));
      }
    }
  }
}

// In the midst of a switch each layer has the bytes of its own layout.
TEST(Weights, EachLayerIsLoadedInItsOwnLayout) {
  const ModelShape shape = Shape(SmallConfig(), 2);
  const Layout ep = ExpertParallel(), tp = TensorParallel(2);
  const ExpertsState state{ep, tp, Side::kHigh, 1};
  Memory mixed(shape), as_ep(shape), as_tp(shape);
  ASSERT_THAT(
      LoadWeights(shape, kSmallModelNames, "", true, mixed.Target(1, state)),
      IsOk());
  ASSERT_THAT(
      LoadWeights(shape, kSmallModelNames, "", true, as_ep.Target(1, ep)),
      IsOk());
  ASSERT_THAT(
      LoadWeights(shape, kSmallModelNames, "", true, as_tp.Target(1, tp)),
      IsOk());
  EXPECT_EQ(Slot(shape, mixed, 0), Slot(shape, as_tp, 0));
  EXPECT_EQ(Slot(shape, mixed, 2), Slot(shape, as_ep, 1));
}

std::vector<Bf16> RowOf(const PackedMatrix& matrix, int row) {
  std::vector<Bf16> values(static_cast<size_t>(matrix.n) * matrix.k);
  UnpackMatrix(matrix, values.data(), matrix.k);
  return {values.begin() + row * matrix.k,
          values.begin() + (row + 1) * matrix.k};
}

std::vector<Bf16> ColumnOf(const RowParallelMatrix& matrix, int column) {
  std::vector<Bf16> values(static_cast<size_t>(matrix.n) * matrix.k);
  UnpackRowParallel(matrix, values.data(), matrix.k);
  std::vector<Bf16> of_column;
  for (int n = 0; n < matrix.n; ++n) {
    of_column.push_back(values[n * matrix.k + column]);
  }
  return of_column;
}

// Gate, up and down of one row of the intermediate dimension.
std::vector<std::vector<Bf16>> RowsOf(const ExpertBlock& piece, int row) {
  return {RowOf(piece.gate(), row), RowOf(piece.up(), row),
          ColumnOf(piece.down(), row)};
}

// 6 experts of 80 rows over 4 ranks: 8 experts of 128 rows.
TEST(Weights, PaddingIsZerosAndTheRestIsWhatItWas) {
  SmallModel config = SmallConfig();
  config.num_experts = 6;
  config.moe_intermediate_size = 80;
  const ModelShape one = Shape(config, 1), four = Shape(config, 4);
  EXPECT_EQ(one.experts.padding_bytes(), 0);
  EXPECT_EQ(four.experts.padded_experts(), 8);
  EXPECT_EQ(four.experts.padded_rows(), 128);
  Memory whole(one);
  ASSERT_THAT(LoadWeights(one, kSmallModelNames, "", true,
                          whole.Target(0, ExpertParallel())),
              IsOk());
  const ExpertSlot<Cpu> experts =
      ViewSlot<Cpu>(one, ExpertParallel(), whole.experts.data());
  const std::vector<std::vector<Bf16>> zeros(
      3, std::vector<Bf16>(config.hidden_size));
  for (const Layout layout : LayoutsOf(four.attention)) {
    int rows_seen = 0;
    for (Rank r = 0; r < 4; ++r) {
      Memory memory(four);
      std::memset(memory.experts.data(), 0x5a, memory.experts.size());
      ASSERT_THAT(LoadWeights(four, kSmallModelNames, "", true,
                              memory.Target(r, layout)),
                  IsOk());
      const SlotView view = ViewOf(four.experts, layout, r);
      const ExpertSlot<Cpu> part =
          ViewSlot<Cpu>(four, layout, memory.experts.data());
      ASSERT_EQ(part.num_experts, view.num_experts);
      for (int e = 0; e < view.num_experts; ++e) {
        const ExpertView mine = part.expert(e);
        for (int row = 0; row < mine.intermediate(); ++row) {
          const int expert = view.first_expert + e;
          const int in_model = view.first_row + row;
          const bool there = expert < 6 && in_model < 80;
          rows_seen += there;
          ASSERT_EQ(
              RowsOf(mine.piece(row / mine.rows), row % mine.rows),
              there ? RowsOf(experts.expert(expert).piece(0), in_model) : zeros)
              << "expert " << expert << " row " << in_model;
        }
      }
    }
    EXPECT_EQ(rows_seen, 6 * 80);
  }
}

TEST(DummyWeights, AreBellShapedAndDependOnNameAndPlaceAlone) {
  const auto source = MakeDummyWeights();
  std::vector<Bf16> whole(200 * 100), part(10 * 20);
  ASSERT_THAT(source->ReadBf16("w", MatrixSlice::Whole(200, 100),
                               absl::MakeSpan(whole)),
              IsOk());
  ASSERT_THAT(source->ReadBf16("w", MatrixSlice{200, 100, 50, 60, 30, 50},
                               absl::MakeSpan(part)),
              IsOk());
  double sum = 0, squares = 0;
  for (const Bf16 value : whole) {
    sum += ToFloat(value);
    squares += ToFloat(value) * ToFloat(value);
  }
  EXPECT_NEAR(sum / whole.size(), 0.0, 0.001);
  EXPECT_NEAR(std::sqrt(squares / whole.size()), 0.02, 0.001);
  for (int row = 0; row < 10; ++row) {
    for (int col = 0; col < 20; ++col) {
      EXPECT_EQ(part[row * 20 + col], whole[(50 + row) * 100 + 30 + col]);
    }
  }
  std::vector<Bf16> other(200 * 100);
  ASSERT_THAT(source->ReadBf16("v", MatrixSlice::Whole(200, 100),
                               absl::MakeSpan(other)),
              IsOk());
  EXPECT_NE(other, whole);
}

// Tokens in journals were drawn from them.
TEST(DummyWeights, StayWhatTheyWere) {
  std::vector<Bf16> row(4);
  ASSERT_THAT(MakeDummyWeights()->ReadBf16("w", MatrixSlice::Whole(1, 4),
                                           absl::MakeSpan(row)),
              IsOk());
  EXPECT_EQ(row, (std::vector<Bf16>{{0xbbf8}, {0xbc79}, {0xbcdc}, {0x3c30}}));
}

}  // namespace
}  // namespace moebius
