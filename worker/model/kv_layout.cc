#include "worker/model/kv_layout.h"

#include <variant>

#include "common/base/check.h"

namespace moebius {
namespace {

KvLayout::Layer CachedBy(const GroupedQueryAttention& attention) {
  return {attention.head_dim, attention.head_dim, attention.window};
}
KvLayout::Layer CachedBy(const LatentAttention& attention) {
  return {attention.kv_lora_rank + attention.rope_head_dim, 0, 0};
}

int CachedHeads(const GroupedQueryAttention& attention) {
  return attention.kv_heads;
}
int CachedHeads(const LatentAttention&) { return 1; }

int64_t ElementBytes(KvType type) { return type == KvType::kFloat32 ? 4 : 2; }

}  // namespace

int64_t KvLayout::page_bytes() const {
  int64_t elements = 0;
  for (const Layer& layer : layers) {
    elements += layer.k_elements + layer.v_elements;
  }
  return elements * kPageTokens * ElementBytes(type);
}

KvLayout MakeKvLayout(const DecoderSpec& spec, KvType type) {
  KvLayout layout;
  layout.type = type;
  for (const LayerSpec& layer : spec.layers) {
    const int num_heads =
        std::visit([](const auto& attention) { return CachedHeads(attention); },
                   layer.attention);
    if (layout.num_heads == 0) layout.num_heads = num_heads;
    CHECK(layout.num_heads == num_heads);
    layout.layers.push_back(
        std::visit([](const auto& attention) { return CachedBy(attention); },
                   layer.attention));
  }
  return layout;
}

KvPageFormat PageFormatOf(const KvLayout& layout) {
  CHECK(!layout.layers.empty());
  const KvLayout::Layer& first = layout.layers[0];
  for (const KvLayout::Layer& layer : layout.layers) {
    CHECK(layer.k_elements == first.k_elements &&
          layer.v_elements == first.k_elements);
  }
  return {static_cast<int>(layout.layers.size()), first.k_elements,
          layout.type};
}

}  // namespace moebius
