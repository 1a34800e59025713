// What the KV cache of a model holds. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/formats.h"
#include "worker/model/decoder_spec.h"

namespace moebius {

// KvLayout
//
// Each token has, for each head that is cached, K and V of every layer. A head
// page is that of one head and kPageTokens tokens. Grouped-query attention
// caches its KV heads; latent attention caches one "head": K is the latent and
// the turned elements, and V is made of the latent.
//
// How a page lies in memory is for the operators to say (KvPageFormat in
// kernels/formats.h); this is what they are given room for.
struct KvLayout {
  // Of one token and one head.
  struct Layer {
    int k_elements = 0;
    int v_elements = 0;  // 0: V is made of K
    int window = 0;      // how many tokens see it, itself among them; 0: all
    bool operator==(const Layer&) const = default;
  };

  int num_heads = 0;  // of the model, before they are divided or replicated
  KvType type = KvType::kFloat32;
  std::vector<Layer> layers;

  int64_t page_bytes() const;
  bool operator==(const KvLayout&) const = default;
};

// REQUIRES: all layers cache the same number of heads.
KvLayout MakeKvLayout(const DecoderSpec& spec, KvType type);

// The layout as today's operators see it.
// REQUIRES: K and V have the same number of elements, in every layer.
KvPageFormat PageFormatOf(const KvLayout& layout);

}  // namespace moebius
