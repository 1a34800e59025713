// The forward pass on the processor.
#include "worker/model/decoder.h"

#include <cstring>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/decoder_tests.h"
#include "tests/unit/worker/model/small_model.h"
#include "tests/unit/worker/model/test_group.h"
#include "worker/model/kv_layout.h"
#include "worker/model/pass_cpu.h"
#include "worker/peers/collectives_cpu.h"
#include "worker/peers/exchange.h"

namespace moebius {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

INSTANTIATE_TEST_SUITE_P(Devices, DecoderTest,
                         testing::Values(DecoderCase{"Cpu", nullptr, 16}),
                         [](const auto& info) { return info.param.name; });

KvPageFormat KvFormatOf(const ModelShape& shape) {
  return PageFormatOf(MakeKvLayout(shape.spec, KvType::kFloat32));
}

// Some ranks, of which only the first is there; it sees its own region as that
// of the others.
class HalfGroup {
 public:
  explicit HalfGroup(Barrier* barrier, int num_ranks = 2)
      : shape(*MakeModelShape(SpecOf(OddConfig()), num_ranks)) {
    peers.shape = shape;
    peers.max_rows = 8;
    peers.exchange = exchange.data();
    peers.peer_exchange.assign(static_cast<size_t>(num_ranks), exchange.data());
    peers.barrier = barrier;
    decoder.shape = shape;
    decoder.max_rows = 8;
    decoder.dense = dense.data();
    decoder.experts = experts.data();
    decoder.kv = {kv.data(), 16, KvFormatOf(shape)};
  }

  const ModelShape shape;
  const AlignedBytes dense{PlanDense(shape).size_bytes};
  const AlignedBytes experts{shape.experts.region_bytes()};
  const AlignedBytes kv{
      static_cast<int64_t>(16 * KvFormatOf(shape).page_bytes())};
  const AlignedBytes exchange{PlanExchange(shape, 8).size_bytes};
  Collectives<Cpu>::Options peers;
  DecoderOptions<Cpu> decoder;
};

TEST(Decoder, OptionsOutOfRangeAreRefused) {
  ThreadBarrier barrier(2);
  const HalfGroup good(&barrier);
  const auto peers = Collectives<Cpu>::Create(Cpu{}, good.peers);
  ASSERT_THAT(peers, IsOk());
  const auto expect_refused = [&](auto spoil, const char* message) {
    DecoderOptions<Cpu> options = good.decoder;
    options.peers = peers->get();
    spoil(options);
    EXPECT_THAT(Decoder<Cpu>::Create(Cpu{}, options),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect_refused([](auto& o) { o.rank = 2; }, "rank 2 of 2");
  expect_refused([](auto& o) { o.rank = -1; }, "rank -1");
  expect_refused([](auto& o) { o.max_rows = 0; }, "0 rows");
  expect_refused([](auto& o) { o.dense = nullptr; }, "region");
  expect_refused([](auto& o) { o.kv.base += 16; }, "region");
  expect_refused(
      [](auto& o) {
        o.shape.spec.max_positions = 1 << 24;
        o.shape.head_dim = 1024;
      },
      "set max_model_len lower");
}

TEST(Collectives, OptionsOutOfRangeAreRefused) {
  ThreadBarrier barrier(2);
  const HalfGroup good(&barrier);
  EXPECT_THAT(Collectives<Cpu>::Create(Cpu{}, good.peers), IsOk());
  const auto expect_refused = [&](auto spoil, const char* message) {
    Collectives<Cpu>::Options options = good.peers;
    spoil(options);
    EXPECT_THAT(Collectives<Cpu>::Create(Cpu{}, options),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect_refused([](auto& o) { o.rank = 2; }, "rank 2 of 2");
  expect_refused([](auto& o) { o.max_rows = 0; }, "max_rows 0");
  expect_refused([](auto& o) { o.exchange = nullptr; }, "exchange");
  expect_refused([](auto& o) { o.barrier = nullptr; }, "barrier");
  expect_refused([](auto& o) { o.peer_exchange.pop_back(); }, "exchange");
  expect_refused([](auto& o) { o.peer_exchange[1] = nullptr; }, "rank 1");
}

// As collectives_cpu.h says: OddConfig() has two MoE layers and two dense ones.
TEST(Collectives, RanksMeetNoMoreOftenThanALayoutNeeds) {
  struct Counting : Barrier {
    absl::Status Wait() override {
      ++waits;
      return absl::OkStatus();
    }
    int waits = 0;
  } barrier;
  HalfGroup half(&barrier, 4);
  // Nobody writes what the others would show.
  std::memset(half.exchange.data(), 0,
              static_cast<size_t>(half.exchange.size()));
  const auto peers = Collectives<Cpu>::Create(Cpu{}, half.peers);
  ASSERT_THAT(peers, IsOk());
  half.decoder.peers = peers->get();
  const auto decoder = Decoder<Cpu>::Create(Cpu{}, half.decoder);
  ASSERT_THAT(decoder, IsOk());
  for (const auto& [layout, waits] : {std::pair(ExpertParallel(), 2 * 2),
                                      {Layout{2}, 2 * 3 + 2 * 2 + 1},
                                      {TensorParallel(4), 2 * 2 + 2 * 2 + 1}}) {
    ASSERT_THAT(LoadWeights(half.shape, kSmallModelNames, "", true,
                            {0, In(layout).experts, half.dense.data(),
                             half.experts.data()}),
                IsOk());
    barrier.waits = 0;
    PassBuilder builder;
    TwoChunks chunks;
    EXPECT_THAT((*decoder)->Run(chunks.Build(builder, In(layout), 4)), IsOk());
    EXPECT_EQ(barrier.waits, waits) << layout.tp_size;
  }
}

TEST(Decoder, ABrokenBarrierEndsThePassWithItsError) {
  struct Broken : Barrier {
    absl::Status Wait() override {
      return absl::DeadlineExceededError("rank 1 is late");
    }
  } broken;
  HalfGroup half(&broken);
  const auto peers = Collectives<Cpu>::Create(Cpu{}, half.peers);
  ASSERT_THAT(peers, IsOk());
  half.decoder.peers = peers->get();
  const auto decoder = Decoder<Cpu>::Create(Cpu{}, half.decoder);
  ASSERT_THAT(decoder, IsOk());
  for (const Layout layout : {ExpertParallel(), TensorParallel(2)}) {
    ASSERT_THAT(LoadWeights(half.shape, kSmallModelNames, "", true,
                            {0, In(layout).experts, half.dense.data(),
                             half.experts.data()}),
                IsOk());
    PassBuilder builder;
    TwoChunks chunks;
    EXPECT_THAT((*decoder)->Run(chunks.Build(builder, In(layout), 2)),
                StatusIs(StatusCode::kDeadlineExceeded, "rank 1 is late"));
    for (const SampledRow& row : builder.results()) {
      EXPECT_EQ(row.value.token, 0);
    }
  }
}

}  // namespace
}  // namespace moebius
