#include "worker/model/kv_layout.h"

#include "gtest/gtest.h"
#include "tests/unit/worker/model/small_model.h"

namespace moebius {
namespace {

DecoderSpec Small() {
  SmallModel model;
  model.num_q_heads = 8;
  model.num_kv_heads = 2;
  model.head_dim = 48;
  model.is_moe_layer = {true, false, true};
  return SpecOf(model);
}

TEST(KvLayout, APageOfGroupedQueryAttentionIsWhatOperatorsTakeItFor) {
  for (const KvType type : {KvType::kFloat32, KvType::kBf16}) {
    const KvLayout layout = MakeKvLayout(Small(), type);
    EXPECT_EQ(layout.num_heads, 2);
    const KvPageFormat format = PageFormatOf(layout);
    EXPECT_EQ(format.num_layers, 3);
    EXPECT_EQ(format.head_dim, 48);
    EXPECT_EQ(layout.page_bytes(), static_cast<int64_t>(format.page_bytes()));
  }
}

TEST(KvLayout, WindowsAreToldLayerByLayer) {
  DecoderSpec spec = Small();
  std::get<GroupedQueryAttention>(spec.layers[1].attention).window = 128;
  const KvLayout layout = MakeKvLayout(spec, KvType::kBf16);
  EXPECT_EQ(layout.layers[0].window, 0);
  EXPECT_EQ(layout.layers[1].window, 128);
}

// DeepSeek-V3: 512 elements and 64 turned ones a token, whatever the heads.
TEST(KvLayout, LatentAttentionCachesOneHeadWithoutV) {
  LatentAttention latent;
  latent.heads = 128;
  latent.kv_lora_rank = 512;
  latent.rope_head_dim = 64;
  latent.nope_head_dim = latent.v_head_dim = 128;
  DecoderSpec spec = Small();
  for (LayerSpec& layer : spec.layers) layer.attention = latent;
  const KvLayout layout = MakeKvLayout(spec, KvType::kBf16);
  EXPECT_EQ(layout.num_heads, 1);
  EXPECT_EQ(layout.layers[2], (KvLayout::Layer{576, 0, 0}));
  EXPECT_EQ(layout.page_bytes(), 3 * 576 * kPageTokens * 2);
}

using KvLayoutDeathTest = testing::Test;

TEST(KvLayoutDeathTest, LayersOfDifferentHeadsShareNoPages) {
  DecoderSpec spec = Small();
  std::get<GroupedQueryAttention>(spec.layers[1].attention).kv_heads = 4;
  EXPECT_DEATH(MakeKvLayout(spec, KvType::kBf16), "check failed");
}

}  // namespace
}  // namespace moebius
