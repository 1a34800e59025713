#include "tests/simulation/tiny_model.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "common/base/check.h"
#include "coordinator/text/byte_alphabet.h"
#include "nlohmann/json.hpp"
#include "tests/unit/worker/model/test_group.h"
#include "worker/model/kv_layout.h"
#include "worker/model/model_shape.h"
#include "worker/model/weights.h"

namespace moebius::simulation {
namespace {

template <typename T>
T Must(absl::StatusOr<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", result.status().ToString().c_str());
    std::abort();
  }
  return *std::move(result);
}

nlohmann::json ConfigJson(int index) {
  const bool first = index == 0;
  return {{"architectures", {"Qwen3MoeForCausalLM"}},
          {"model_type", "qwen3_moe"},
          {"hidden_act", "silu"},
          {"hidden_size", 32},
          {"num_hidden_layers", 3},
          {"num_attention_heads", first ? 8 : 6},
          {"num_key_value_heads", first ? 4 : 6},
          {"head_dim", 16},
          {"intermediate_size", 96},
          {"moe_intermediate_size", first ? 128 : 96},
          {"num_experts", first ? 8 : 6},
          {"num_experts_per_tok", 2},
          {"norm_topk_prob", true},
          {"decoder_sparse_step", 1},
          {"tie_word_embeddings", false},
          {"vocab_size", 128},
          {"max_position_embeddings", kMaxModelLen},
          {"rope_theta", 10000.0},
          {"rms_norm_eps", 1e-6}};
}

bool IsNorm(const std::string& name) { return name.find("norm") != name.npos; }

nlohmann::json TokenizerJson() {
  nlohmann::json vocab = nlohmann::json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocab[SpellingFromBytes(std::string(1, static_cast<char>(byte)))] = byte;
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", nlohmann::json::array()},
          {"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer",
           {{"type", "ByteLevel"},
            {"add_prefix_space", false},
            {"trim_offsets", true},
            {"use_regex", true}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", nlohmann::json::array()}}}};
}

}  // namespace

TinyModel::TinyModel(int index) {
  WriteFile(dir_.File("config.json"), ConfigJson(index).dump());
  config_ = Must(LoadModelConfig(dir_.path()));
  model_ = Must(LoadModel(dir_.path()));
  std::vector<NamedTensor> tensors = DummyTensors(model_.spec);
  for (NamedTensor& tensor : tensors) {
    if (IsNorm(tensor.name)) continue;
    for (float& value : tensor.values) value *= 8;  // a power of two: exact
  }
  WriteCheckpoint(dir_.path(), tensors, TensorType::kBf16, 1);
}

int64_t TinyModel::sequence_bytes() const {
  const KvLayout kv = MakeKvLayout(model_.spec, KvType::kFloat32);
  const int64_t blocks = (kMaxModelLen + kPageTokens - 1) / kPageTokens;
  return blocks * config_.num_kv_heads * kv.page_bytes();
}

const TinyModel::Slots& TinyModel::SlotsOf(int num_ranks, Layout layout,
                                           Rank rank) {
  const auto key = std::make_tuple(num_ranks, layout.tp_size, rank);
  auto found = slots_.find(key);
  if (found != slots_.end()) return found->second;
  const ModelShape shape = Must(MakeModelShape(model_.spec, num_ranks));
  AlignedBytes dense(PlanDense(shape).size_bytes);
  AlignedBytes experts(shape.experts.region_bytes());
  Must(LoadWeights(shape, model_.names, dir_.path(), false,
                   {rank, ExpertsState::At(layout, Side::kLow), dense.data(),
                    experts.data()}));
  Slots slots{shape.experts, {experts.span().begin(), experts.span().end()}};
  return slots_.emplace(key, std::move(slots)).first->second;
}

const Tokenizer& ByteTokenizer() {
  static const auto* const tokenizer =
      Must(Tokenizer::FromJson(TokenizerJson().dump(), "bytes")).release();
  return *tokenizer;
}

TinyModel& ModelOf(int index) {
  // Not leaked, so that its folder goes away.
  static std::unique_ptr<TinyModel> models[kNumModels];
  CHECK(index >= 0 && index < kNumModels);
  if (models[index] == nullptr) {
    models[index] = std::make_unique<TinyModel>(index);
  }
  return *models[index];
}

}  // namespace moebius::simulation
