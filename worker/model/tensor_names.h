// What a checkpoint calls its tensors.
#pragma once

#include <string>

namespace moebius {

// What a tensor is for. Matrices are [outputs][inputs].
enum class TensorRole {
  kEmbedding,  // [vocabulary][hidden]
  kLmHead,     // the same, unless the embedding is it
  kFinalNorm,  // [hidden]

  // Of a layer.
  kAttentionNorm,  // [hidden], before attention
  kMlpNorm,        // [hidden], before the MLP
  kQuery,          // [query heads * head_dim][hidden]
  kKey,            // [KV heads * head_dim][hidden]
  kValue,
  kQueryBias,
  kKeyBias,
  kValueBias,
  kQueryNorm,  // [head_dim], or of all heads
  kKeyNorm,
  kSinks,            // [query heads]
  kAttentionOutput,  // [hidden][query heads * head_dim]
  kAttentionOutputBias,
  kRouter,  // [experts][hidden]
  kRouterBias,
  kGate,  // [rows][hidden], of a dense MLP
  kUp,
  kDown,        // [hidden][rows]
  kSharedGate,  // of the expert that every row goes to
  kSharedUp,
  kSharedDown,
  kSharedRouter,  // [1][hidden]: by how much

  // Of an expert of a layer.
  kExpertGate,
  kExpertUp,
  kExpertDown,
  kExpertGateBias,  // [rows]
  kExpertUpBias,
  kExpertDownBias,  // [hidden]
};

// The name of a tensor of one role. `layer` counts for roles of a layer and of
// an expert, `expert` for those of an expert.
using TensorNames = std::string (*)(TensorRole role, int layer, int expert);

}  // namespace moebius
