// Which operators a pass calls, on what, in each layout and mixed state: the
// recorder's notes are those of decoder_calls.golden.
//
// To write that file anew, and then read what has changed:
//   MOEBIUS_WRITE_GOLDEN=1 build/release/tests/decoder_calls_test
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/recorder.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/model/decoder.h"
#include "worker/model/kv_layout.h"

namespace moebius {
namespace {

// A dense layer between two MoE layers; three heads share one of two KV heads.
SmallModel Model() {
  SmallModel model;
  model.hidden_size = 64;
  model.num_q_heads = 6;
  model.num_kv_heads = 2;
  model.head_dim = 16;
  model.intermediate_size = 80;
  model.moe_intermediate_size = 64;
  model.num_experts = 4;
  model.experts_per_token = 2;
  model.vocab_size = 160;
  model.max_positions = 64;
  model.is_moe_layer = {true, false, true};
  return model;
}

// The parts of a rank's weights by their names, in their order.
void NameWeights(const ModelShape& shape, std::byte* dense, std::byte* experts,
                 CallLog& log) {
  const DenseLayout plan = PlanDense(shape);
  const auto name = [&](int64_t offset, const std::string& what) {
    if (offset < 0) return;
    log.Name(dense + offset, plan.size_bytes - offset, what);
  };
  name(plan.embedding, "embedding");
  name(plan.lm_head, "lm_head");
  name(plan.final_norm, "final_norm");
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const DenseLayout::Layer& layer = plan.layers[l];
    name(layer.input_norm, absl::StrCat("input_norm ", l));
    name(layer.post_norm, absl::StrCat("post_norm ", l));
    name(layer.q_norm, absl::StrCat("q_norm ", l));
    name(layer.k_norm, absl::StrCat("k_norm ", l));
    name(layer.qkv, absl::StrCat("qkv ", l));
    name(layer.qkv_bias, absl::StrCat("qkv_bias ", l));
    name(layer.sinks, absl::StrCat("sinks ", l));
    name(layer.output, absl::StrCat("output ", l));
    name(layer.output_bias, absl::StrCat("output_bias ", l));
    name(layer.mlp, absl::StrCat("mlp ", l));
    name(layer.router, absl::StrCat("router ", l));
    name(layer.router_bias, absl::StrCat("router_bias ", l));
    name(layer.gate_bias, absl::StrCat("gate_bias ", l));
    name(layer.up_bias, absl::StrCat("up_bias ", l));
    name(layer.down_bias, absl::StrCat("down_bias ", l));
    name(layer.shared, absl::StrCat("shared ", l));
    name(layer.shared_gate, absl::StrCat("shared_gate ", l));
  }
  for (int slot = 0; slot < shape.experts.num_slots(); ++slot) {
    log.Name(experts + slot * shape.experts.slot_bytes(),
             shape.experts.slot_bytes(), absl::StrCat("slot ", slot));
  }
}

// What other families ask for, in two MoE layers.
DecoderSpec AllRules() {
  SmallModel model = Model();
  model.is_moe_layer = {true, true};
  DecoderSpec spec = SpecOf(model);
  for (LayerSpec& layer : spec.layers) {
    auto& attention = std::get<GroupedQueryAttention>(layer.attention);
    attention.qk_norm = GroupedQueryAttention::QkNorm::kWholeRow;
    attention.qkv_bias = attention.output_bias = attention.sinks = true;
    attention.window = 24;
    auto& moe = std::get<MoeMlp>(layer.mlp);
    moe.bias = moe.router.bias = true;
    moe.router.score = RouterSpec::Score::kSoftmaxOfChosen;
    moe.shared = SharedExpert{96, true};
  }
  return spec;
}

struct Scene {
  const char* title;
  int num_ranks;
  Rank rank;
  Layout attention;
  ExpertsState experts;
  int rows, wanted;
  std::vector<int> rows_of_group, wanted_of_group;
};

// What the decoder calls for one pass.
std::string Play(const Scene& scene, const DecoderSpec& spec) {
  CallLog log;
  const Recorder device{&log};
  const ModelShape shape = *MakeModelShape(spec, scene.num_ranks);
  constexpr int kMaxRows = 32;
  DecoderOptions<Recorder> options;
  options.shape = shape;
  options.rank = scene.rank;
  options.max_rows = kMaxRows;
  std::byte* const dense = log.Reserve("dense", PlanDense(shape).size_bytes);
  std::byte* const experts =
      log.Reserve("experts", shape.experts.region_bytes());
  NameWeights(shape, dense, experts, log);
  options.dense = dense;
  options.experts = experts;
  options.kv = {log.Reserve("kv", 1 << 20), 16,
                PageFormatOf(MakeKvLayout(shape.spec, KvType::kBf16))};
  Collectives<Recorder> peers(device, shape, scene.rank, kMaxRows);
  options.peers = &peers;
  const auto decoder = Decoder<Recorder>::Create(device, options);
  EXPECT_THAT(decoder, IsOk());
  Pass<Recorder> pass;
  pass.layout = {scene.attention, scene.experts};
  pass.rows = {scene.rows, "rows"};
  pass.wanted = {scene.wanted, "wanted rows"};
  pass.samples = {0, 1, scene.wanted};
  pass.rows_of_group = scene.rows_of_group;
  pass.wanted_of_group = scene.wanted_of_group;
  EXPECT_THAT((*decoder)->Run(pass), IsOk());
  return absl::StrCat("== ", scene.title, "\n", log.Take());
}

std::string PlayAll() {
  const Layout ep = ExpertParallel(), tp = TensorParallel(2);
  const auto at = [](Layout layout) {
    return ExpertsState::At(layout, Side::kLow);
  };
  const ExpertsState to_tp{ep, tp, Side::kLow, 1}, to_ep{tp, ep, Side::kLow, 1};
  const Scene scenes[] = {
      {"one rank", 1, 0, ep, at(ep), 5, 2, {5}, {2}},
      {"EP, rank 1 of 2", 2, 1, ep, at(ep), 2, 1, {3, 2}, {2, 1}},
      {"EP, rank 1 of 2 without rows", 2, 1, ep, at(ep), 0, 0, {3, 0}, {2, 0}},
      {"EP, every row wanted", 2, 0, ep, at(ep), 2, 2, {2, 1}, {2, 0}},
      {"TP, rank 1 of 2", 2, 1, tp, at(tp), 5, 3, {5}, {3}},
      // Others have more rows of logits than are shared at once.
      {"tp2, rank 3 of 6",
       6,
       3,
       Layout{2},
       at(Layout{2}),
       2,
       1,
       {1, 2, 20},
       {1, 1, 20}},
      {"attention EP, experts 1 of 2 layers on their way to TP",
       2,
       0,
       ep,
       to_tp,
       3,
       1,
       {3, 2},
       {1, 1}},
      {"attention TP, experts 1 of 2 layers on their way to EP",
       2,
       1,
       tp,
       to_ep,
       5,
       2,
       {5},
       {2}},
  };
  std::string all;
  for (const Scene& scene : scenes) {
    all += Play(scene, SpecOf(Model())) + "\n";
  }
  const Scene rules[] = {
      {"all rules, one rank", 1, 0, ep, at(ep), 5, 2, {5}, {2}},
      {"all rules, TP, rank 1 of 2", 2, 1, tp, at(tp), 5, 3, {5}, {3}},
      // Nothing says then which rows are wanted.
      {"all rules, every row wanted", 1, 0, ep, at(ep), 3, 3, {3}, {3}},
  };
  for (const Scene& scene : rules) all += Play(scene, AllRules()) + "\n";
  return all;
}

std::string GoldenPath() {
  const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
  return absl::StrCat(source != nullptr ? source : ".",
                      "/tests/unit/worker/model/decoder_calls.golden");
}

TEST(DecoderCalls, AreThoseOfTheGoldenFile) {
  const std::string calls = PlayAll();
  if (std::getenv("MOEBIUS_WRITE_GOLDEN") != nullptr) {
    std::ofstream(GoldenPath()) << calls;
    GTEST_SKIP() << "written: " << GoldenPath();
  }
  std::ifstream file(GoldenPath());
  ASSERT_TRUE(file.good()) << GoldenPath();
  std::istringstream got(calls);
  std::string want_line, got_line;
  int line = 0;
  while (std::getline(file, want_line)) {
    ++line;
    ASSERT_TRUE(std::getline(got, got_line)) << "line " << line << " on";
    ASSERT_EQ(got_line, want_line) << "line " << line;
  }
  EXPECT_FALSE(std::getline(got, got_line)) << got_line;
}

}  // namespace
}  // namespace moebius
