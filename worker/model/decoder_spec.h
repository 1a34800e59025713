// What a decoder computes: everything of a model but its weights, where they
// are kept, and how they are divided. A family (worker/model/families/) makes
// one of a config.json; nothing else knows families.
//
// It can say more than the operators of kernels/ compute today:
// CheckSupported() tells.
//
// A layer is, with x its rows (pre-norm, Xiong et al. 2020, arXiv 2002.04745):
//
//   x += Attention(RmsNorm(x));   x += Mlp(RmsNorm(x))
//   RmsNorm(x) = x / sqrt(mean(x^2) + norm_eps) * weight  (arXiv 1910.07467)
#pragma once

#include <optional>
#include <variant>
#include <vector>

#include "absl/status/status.h"

namespace moebius {

// All frequencies divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
struct LinearScaling {
  double factor = 1;
  bool operator==(const LinearScaling&) const = default;
};

// Frequencies of long contexts by parts: those that turn more than beta_fast
// times in the original context stay, those that turn less than beta_slow times
// are divided by `factor`, and between them it goes linearly (Peng et al. 2023,
// arXiv 2309.00071, section 3.2).
struct YarnScaling {
  double factor = 1;
  double original_positions = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;  // the bounds between the parts are whole numbers
  double attention_factor = 1;  // of cos and sin
  bool operator==(const YarnScaling&) const = default;
};

// As Llama 3.1: wavelengths beyond original_positions / low_freq_factor are
// stretched by `factor`, those below original_positions / high_freq_factor stay
// (Grattafiori et al. 2024, arXiv 2407.21783; transformers, "llama3").
struct Llama3Scaling {
  double factor = 1;
  double original_positions = 0;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  bool operator==(const Llama3Scaling&) const = default;
};

// Rotary position embedding of each head of Q and K (Su et al. 2021, arXiv
// 2104.09864): pair i turns by position * theta^(-2i / dims).
struct RotarySpec {
  // Which elements are a pair: i and i + dims/2, or 2i and 2i + 1.
  enum class Pairs { kHalfSplit, kInterleaved };

  double theta = 10000;
  int dims = 0;  // that are turned, from the head's first; GLM-4 turns half
  Pairs pairs = Pairs::kHalfSplit;
  std::variant<std::monostate, LinearScaling, YarnScaling, Llama3Scaling>
      scaling;
  bool operator==(const RotarySpec&) const = default;
};

// Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245); with as many
// KV heads as query heads it is the multi-head one.
struct GroupedQueryAttention {
  // RMSNorm of Q and K before they are turned: of each head with one weight for
  // all heads (Qwen3), or of all heads of a row at once (OLMoE).
  enum class QkNorm { kNone, kPerHead, kWholeRow };

  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  QkNorm qk_norm = QkNorm::kNone;
  bool qkv_bias = false;
  bool output_bias = false;
  // A learned logit a head in the denominator of the softmax (gpt-oss).
  bool sinks = false;
  // How many tokens a token sees, itself among them (Beltagy et al. 2020, arXiv
  // 2004.05150); 0: all that came before it.
  int window = 0;
  bool operator==(const GroupedQueryAttention&) const = default;
};

// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): K
// and V of all heads are projections of one latent of kv_lora_rank elements,
// beside which K has rope_head_dim turned elements that the heads share. The
// latent and these elements are what is cached. Latents are RMS-normed before
// they are projected.
struct LatentAttention {
  int heads = 0;
  int q_lora_rank = 0;  // 0: queries are projected from the row itself
  int kv_lora_rank = 0;
  int nope_head_dim = 0;  // of Q and K, not turned
  int rope_head_dim = 0;  // of Q and K, turned
  int v_head_dim = 0;
  double latent_norm_eps = 1e-6;
  // Of the scores, beyond 1 / sqrt(nope_head_dim + rope_head_dim); with YaRN it
  // is mscale(factor)^2.
  double score_scale = 1;
  bool operator==(const LatentAttention&) const = default;
};

// What stands between the two products of an MLP, of gate g and up u:
// silu(g) * u (Shazeer 2020, arXiv 2002.05202).
struct SwiGlu {
  bool operator==(const SwiGlu&) const = default;
};
// g' * sigmoid(alpha * g') * (u' + 1), where g' is g up to `limit`, and u' is u
// within +-limit (gpt-oss).
struct ClampedSwiGlu {
  double alpha = 1;
  double limit = 0;
  bool operator==(const ClampedSwiGlu&) const = default;
};
using ActivationSpec = std::variant<SwiGlu, ClampedSwiGlu>;

// down(activation(gate x, up x)) with `rows` elements between.
struct DenseMlp {
  int rows = 0;
  ActivationSpec activation;
  bool bias = false;
  bool operator==(const DenseMlp&) const = default;
};

// Which experts a row goes to, and with what weights (Fedus et al. 2021, arXiv
// 2101.03961): the top_k of its scores.
struct RouterSpec {
  enum class Score {
    kSoftmax,          // of all logits: Mixtral, Qwen, OLMoE, DeepSeek-V2
    kSoftmaxOfChosen,  // of the logits of the chosen ones: gpt-oss
    kSigmoid,          // of each logit: DeepSeek-V3, GLM-4
  };
  // A group's score: of its best expert (DeepSeek-V2), or the sum of its best
  // two (DeepSeek-V3).
  enum class GroupScore { kBest, kBestTwo };

  int num_experts = 0;
  int top_k = 0;
  Score score = Score::kSoftmax;
  bool bias = false;  // of the logits
  // Added to the scores for the choice, not for the weights (DeepSeek-V3, arXiv
  // 2412.19437, section 2.1.2).
  bool correction_bias = false;
  // Experts are chosen from the best `top_groups` of `groups` equal groups
  // (DeepSeek-V2, section 2.2.2).
  int groups = 1;
  int top_groups = 1;
  GroupScore group_score = GroupScore::kBest;
  bool renormalize = false;  // weights are divided by their sum
  double scale = 1;          // and multiplied by this
  bool operator==(const RouterSpec&) const = default;
};

// An MLP that every row goes to, beside the chosen ones (DeepSeekMoE, arXiv
// 2401.06066).
struct SharedExpert {
  int rows = 0;
  bool gated = false;  // multiplied by sigmoid(w x): Qwen2-MoE
  bool operator==(const SharedExpert&) const = default;
};

struct MoeMlp {
  RouterSpec router;
  int rows = 0;  // of one expert
  ActivationSpec activation;
  bool bias = false;  // of the experts' products
  std::optional<SharedExpert> shared;
  bool operator==(const MoeMlp&) const = default;
};

struct LayerSpec {
  std::variant<GroupedQueryAttention, LatentAttention> attention;
  RotarySpec rotary;
  std::variant<DenseMlp, MoeMlp> mlp;

  // Null where the MLP is of the other kind.
  const MoeMlp* moe() const { return std::get_if<MoeMlp>(&mlp); }
  const DenseMlp* dense() const { return std::get_if<DenseMlp>(&mlp); }
  bool operator==(const LayerSpec&) const = default;
};

// REQUIRES, of whoever makes one: sizes are positive and bounded as
// families/json_terms.h says, so products of three of them fit in 64 bits.
struct DecoderSpec {
  int hidden_size = 0;
  int vocab_size = 0;
  int max_positions = 0;  // that the weights were trained for
  double norm_eps = 1e-6;
  bool tied_embedding = false;  // the logits' matrix is the embedding
  double logit_scale = 1;
  std::vector<LayerSpec> layers;

  int num_layers() const { return static_cast<int>(layers.size()); }
  int num_moe_layers() const;
  bool operator==(const DecoderSpec&) const = default;
};

// Whether the operators of kernels/ compute this decoder.
// Errors: kUnimplemented that names the first layer and what of it is missing.
absl::Status CheckSupported(const DecoderSpec& spec);

}  // namespace moebius
