// Parts of a pass, and who watches them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/route.h"

namespace moebius {

// What an operator is for. kOther belongs to whoever watches.
enum class PassPart : uint8_t {
  kEmbedding,  // and the first norm
  kQkv,
  kHeads,  // norms of heads, rotary embedding, K and V into their pages
  kAttention,
  kOutput,
  kSums,      // of ranks, with residual and norm
  kRouting,   // router, choice of experts, grouping
  kExchange,  // rows to the ranks that have their experts
  kExperts,   // and MLPs of dense layers
  kLogits,
  kSampling,
  kOther,
};
inline constexpr size_t kNumPassParts = static_cast<size_t>(PassPart::kOther);

constexpr std::string_view PassPartName(PassPart part) {
  switch (part) {
    case PassPart::kEmbedding:
      return "embedding";
    case PassPart::kQkv:
      return "qkv";
    case PassPart::kHeads:
      return "heads";
    case PassPart::kAttention:
      return "attention";
    case PassPart::kOutput:
      return "output";
    case PassPart::kSums:
      return "sums and norms";
    case PassPart::kRouting:
      return "routing";
    case PassPart::kExchange:
      return "exchange";
    case PassPart::kExperts:
      return "experts";
    case PassPart::kLogits:
      return "logits";
    case PassPart::kSampling:
      return "sampling";
    case PassPart::kOther:
      return "other";
  }
  return "unknown";
}

// PassObserver
//
// Hears from a decoder (Decoder::Observe) what it is about to launch, in the
// order of the stream. For benchmarks: a pass that serves has none.
template <class D>
class PassObserver {
 public:
  virtual ~PassObserver() = default;
  virtual void OnBegin() = 0;
  // What follows is of this part.
  virtual void OnPart(PassPart part) = 0;
  // Rows have been grouped by expert for a MoE layer, of this index among them.
  virtual void OnGrouped(int moe_layer, const Routing<D>& routing) = 0;
  virtual void OnEnd() = 0;
};

}  // namespace moebius
