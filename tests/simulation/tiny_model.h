// The models that are simulated: whole Qwen3-MoE models, yet so small that a
// step takes microseconds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "common/config/config.h"
#include "common/config/model_config.h"
#include "common/layout/experts_state.h"
#include "coordinator/text/tokenizer.h"
#include "tests/unit/worker/model/checkpoint_writer.h"
#include "worker/model/families/families.h"

namespace moebius::simulation {

inline constexpr int kNumModels = 2;
// Longest sequence of each.
inline constexpr int kMaxModelLen = 64;

// TinyModel
//
// A checkpoint in a folder of its own, written at construction. Its weights are
// large enough for every token to depend on all that came before it.
class TinyModel {
 public:
  // 0: for groups of 2, 4 and 8. 1: of 2, 3 and 6.
  explicit TinyModel(int index);

  const std::string& path() const { return dir_.path(); }
  const ModelConfig& config() const { return config_; }
  // KV of the longest sequence, all heads.
  int64_t sequence_bytes() const;

  // How the slots of a rank must look in a layout, low, one after the other;
  // loaded from the checkpoint at the first call.
  struct Slots {
    ExpertShape shape;
    std::vector<std::byte> bytes;  // the whole region
  };
  const Slots& SlotsOf(int num_ranks, Layout layout, Rank rank);

 private:
  TempDir dir_;
  ModelConfig config_;
  Model model_;
  std::map<std::tuple<int, int, Rank>, Slots> slots_;
};

// One token a byte.
const Tokenizer& ByteTokenizer();

// The models, made at their first use.
TinyModel& ModelOf(int index);

}  // namespace moebius::simulation
