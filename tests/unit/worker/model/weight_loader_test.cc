// What loading demands of a sink, and what a sink may do.
#include "worker/model/weight_loader.h"

#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/small_model.h"
#include "tests/unit/worker/model/test_group.h"
#include "worker/model/weight_sink_cpu.h"

namespace moebius {
namespace {

using absl::StatusCode;

ModelShape Shape() {
  SmallModel model;
  model.hidden_size = 48;
  model.num_q_heads = 8;
  model.num_kv_heads = 2;
  model.head_dim = 16;
  model.intermediate_size = 80;
  model.moe_intermediate_size = 80;
  model.num_experts = 6;
  model.experts_per_token = 2;
  model.vocab_size = 101;
  model.max_positions = 512;
  model.is_moe_layer = {true, false, true};
  const auto shape = MakeModelShape(SpecOf(model), 4);
  EXPECT_THAT(shape, IsOk());
  return *shape;
}

LoadOrder OrderOf(const ModelShape& shape, Layout layout) {
  return {shape, kSmallModelNames, 1, ExpertsState::At(layout, Side::kLow)};
}

// Counts calls, and fails where it is told to.
struct FailingSink : WeightSink {
  absl::StatusOr<std::byte*> Stage(int64_t size_bytes) override {
    ++stages;
    if (stages == fail_stage) return absl::ResourceExhaustedError("no room");
    room.resize(static_cast<size_t>(size_bytes));
    return room.data();
  }
  absl::Status Put(const WeightPart&) override {
    ++puts;
    if (puts == fail_put) return absl::InternalError("a part before it");
    return absl::OkStatus();
  }
  absl::Status Finish() override {
    ++finishes;
    return finish;
  }
  std::vector<std::byte> room;
  int fail_stage = 0, fail_put = 0;
  int stages = 0, puts = 0, finishes = 0;
  absl::Status finish;
};

TEST(WeightLoader, AnErrorOfTheSinkEndsTheLoadAtOnce) {
  const ModelShape shape = Shape();
  const auto source = MakeDummyWeights();
  {
    FailingSink sink;
    sink.fail_stage = 5;
    EXPECT_THAT(LoadWeights(OrderOf(shape, ExpertParallel()), *source, sink),
                StatusIs(StatusCode::kResourceExhausted, "no room"));
    EXPECT_EQ(sink.puts, 4);
    EXPECT_EQ(sink.finishes, 0);
  }
  FailingSink sink;
  sink.fail_put = 5;
  EXPECT_THAT(LoadWeights(OrderOf(shape, ExpertParallel()), *source, sink),
              StatusIs(StatusCode::kInternal, "a part before it"));
  EXPECT_EQ(sink.stages, 5);
  EXPECT_EQ(sink.finishes, 0);
}

TEST(WeightLoader, AnErrorThatShowsAtTheEndIsTheLoads) {
  const ModelShape shape = Shape();
  FailingSink sink;
  sink.finish = absl::DataLossError("the last copy");
  EXPECT_THAT(
      LoadWeights(OrderOf(shape, TensorParallel(4)), *MakeDummyWeights(), sink),
      StatusIs(StatusCode::kDataLoss, "the last copy"));
}

// Has every tensor, and cannot read one.
struct TornSource : TensorSource {
  absl::Status Check(const std::string&, absl::Span<const int64_t>) override {
    return absl::OkStatus();
  }
  absl::Status ReadBf16(const std::string& name, MatrixSlice slice,
                        absl::Span<Bf16> out) override {
    if (name == torn) return absl::DataLossError(name);
    return whole->ReadBf16(name, slice, out);
  }
  absl::Status ReadFloat(const std::string& name,
                         absl::Span<float> out) override {
    if (name == torn) return absl::DataLossError(name);
    return whole->ReadFloat(name, out);
  }
  int64_t bytes_read() const override { return 0; }
  std::unique_ptr<TensorSource> whole = MakeDummyWeights();
  std::string torn;
};

TEST(WeightLoader, APartThatCannotBeReadIsNotHandedOver) {
  const ModelShape shape = Shape();
  TornSource source;
  for (const char* name : {"model.norm.weight", "model.embed_tokens.weight",
                           "model.layers.0.mlp.experts.2.down_proj.weight"}) {
    source.torn = name;
    FailingSink sink;
    EXPECT_THAT(LoadWeights(OrderOf(shape, TensorParallel(4)), source, sink),
                StatusIs(StatusCode::kDataLoss, name));
    EXPECT_EQ(sink.stages, sink.puts + 1);
    EXPECT_EQ(sink.finishes, 0);
  }
}

// As a device may: is handed several parts at once, keeps them all in memory of
// its own, and packs them only at the end, the last part first.
class LateSink : public WeightSink {
 public:
  explicit LateSink(std::unique_ptr<WeightSink> to) : to_(std::move(to)) {}

  int MostStaged() const override { return 4; }
  absl::StatusOr<std::byte*> Stage(int64_t size_bytes) override {
    EXPECT_LT(staged_.size(), 4u);
    staged_.push_back(std::make_unique<AlignedBytes>(size_bytes));
    return staged_.back()->data();
  }
  absl::Status Put(const WeightPart& part) override {
    parts_.emplace_back(part, std::move(staged_.front()));
    staged_.pop_front();
    return absl::OkStatus();
  }
  absl::Status Finish() override {
    for (; !parts_.empty(); parts_.pop_back()) {
      const auto& [part, host] = parts_.back();
      const auto room = to_->Stage(host->size());
      if (!room.ok()) return room.status();
      if (host->size() > 0) {
        std::memcpy(*room, host->data(), static_cast<size_t>(host->size()));
      }
      const absl::Status put = to_->Put(part);
      if (!put.ok()) return put;
    }
    return to_->Finish();
  }

 private:
  std::unique_ptr<WeightSink> to_;
  std::deque<std::unique_ptr<AlignedBytes>> staged_;
  std::vector<std::pair<WeightPart, std::unique_ptr<AlignedBytes>>> parts_;
};

TEST(WeightLoader, ASinkMayPackLateAndInAnyOrder) {
  const ModelShape shape = Shape();
  TornSource source;  // not torn, and not made up
  const auto zeroed = [](int64_t size_bytes) {
    AlignedBytes bytes(size_bytes);
    std::memset(bytes.data(), 0, static_cast<size_t>(size_bytes));
    return bytes;
  };
  for (const Layout layout : LayoutsOf(shape.attention)) {
    const int64_t dense_bytes = PlanDense(shape).size_bytes;
    const int64_t expert_bytes = shape.experts.region_bytes();
    const AlignedBytes dense = zeroed(dense_bytes),
                       experts = zeroed(expert_bytes),
                       late_dense = zeroed(dense_bytes),
                       late_experts = zeroed(expert_bytes);
    const auto in_place = MakeCpuWeightSink(dense.data(), experts.data());
    LateSink late(MakeCpuWeightSink(late_dense.data(), late_experts.data()));
    ASSERT_THAT(LoadWeights(OrderOf(shape, layout), source, *in_place), IsOk());
    ASSERT_THAT(LoadWeights(OrderOf(shape, layout), source, late), IsOk());
    EXPECT_EQ(late_dense.span(), dense.span());
    EXPECT_EQ(late_experts.span(), experts.span());
  }
}

}  // namespace
}  // namespace moebius
