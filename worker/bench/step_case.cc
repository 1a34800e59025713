#include "worker/bench/step_case.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/base/split_mix.h"

namespace moebius {
namespace {

constexpr double kWeightBytes = 2;  // BF16

int BlocksOf(int positions) {
  return (positions + kPageTokens - 1) / kPageTokens;
}

int GroupOf(const StepCase& one, int sequence, int num_ranks) {
  return sequence % one.layout.num_groups(num_ranks);
}

Admission MakeUp(const StepCase& one, int32_t vocabulary, int sequence) {
  Admission admission;
  admission.slot = static_cast<uint32_t>(sequence);
  admission.request = RequestId{static_cast<uint64_t>(sequence) + 1};
  admission.sampling.temperature = 0;
  // A decode step computes the last token that is known.
  const int known = one.decodes() ? one.tokens + 1 : one.tokens;
  for (int t = 0; t < known; ++t) {
    const uint64_t random =
        SplitMixAt(static_cast<uint64_t>(sequence), static_cast<uint64_t>(t));
    admission.tokens.push_back(
        static_cast<int32_t>(random % static_cast<uint64_t>(vocabulary)));
  }
  admission.num_prompt_tokens = static_cast<uint32_t>(known);
  return admission;
}

// A rank's part of a step.
struct Share {
  int sequences = 0;  // whose K and V are here; a row of each is wanted
  double rows = 0;
  HeadRange heads;
};

Share ShareOf(const StepCase& one, const ModelShape& shape, Rank rank) {
  Share share;
  const int groups = one.layout.num_groups(shape.num_ranks);
  const int sequences =
      (one.sequences + groups - 1 - one.layout.group_of(rank)) / groups;
  share.sequences = sequences;
  share.rows = double{1} * sequences * (one.decodes() ? 1 : one.tokens);
  share.heads = HeadsOf(shape.attention, one.layout, rank);
  return share;
}

}  // namespace

int64_t PagesOf(const StepCase& one, const ModelShape& shape, int steps) {
  const int64_t blocks = BlocksOf(one.length_after(steps) + 1);
  int64_t most = 0;
  for (Rank rank = 0; rank < shape.num_ranks; ++rank) {
    const Share share = ShareOf(one, shape, rank);
    most = std::max(most, blocks * share.sequences * share.heads.num_kv());
  }
  return most;
}

absl::StatusOr<std::vector<RestoredSequence>> PlaceSequences(
    const StepCase& one, const ModelShape& shape, uint32_t num_pages,
    int steps) {
  const int64_t most = PagesOf(one, shape, steps);
  if (most > int64_t{num_pages}) {
    return absl::ResourceExhaustedError(
        absl::StrCat("K and V of ", one.sequences, " sequences of ",
                     one.length_after(steps) + 1, " tokens take ", most,
                     " pages of a rank, which has ", num_pages));
  }
  const int blocks = BlocksOf(one.length_after(steps) + 1);
  std::vector<PageId> next(static_cast<size_t>(shape.num_ranks), 0);
  std::vector<RestoredSequence> placed;
  for (int i = 0; i < one.sequences; ++i) {
    RestoredSequence sequence;
    sequence.admission = MakeUp(one, shape.spec.vocab_size, i);
    sequence.computed = one.decodes() ? static_cast<uint32_t>(one.tokens) : 0;
    sequence.table.slot = sequence.admission.slot;
    sequence.table.num_blocks = blocks;
    for (Rank rank = 0; rank < shape.num_ranks; ++rank) {
      if (one.layout.group_of(rank) != GroupOf(one, i, shape.num_ranks)) {
        continue;
      }
      const HeadRange heads = HeadsOf(shape.attention, one.layout, rank);
      RankTable table{rank, heads.kv_begin, heads.num_kv(), {}};
      for (int p = 0; p < blocks * heads.num_kv(); ++p) {
        table.pages.push_back(next[static_cast<size_t>(rank)]++);
      }
      sequence.table.tables.push_back(std::move(table));
    }
    placed.push_back(std::move(sequence));
  }
  return placed;
}

StepPlan PlanStep(const StepCase& one, int num_ranks, StepId step, int index) {
  StepPlan plan;
  plan.step = step;
  plan.layout = {one.layout, ExpertsState::AtHome(one.layout)};
  for (int i = 0; i < one.sequences; ++i) {
    WorkItem item;
    item.slot = static_cast<uint32_t>(i);
    item.position =
        one.decodes() ? static_cast<uint32_t>(one.tokens + index) : 0;
    item.num_tokens = one.decodes() ? 1 : static_cast<uint32_t>(one.tokens);
    item.group = static_cast<uint8_t>(GroupOf(one, i, num_ranks));
    item.sample = true;
    plan.items.push_back(item);
  }
  return plan;
}

StepWork WorkOf(const StepCase& one, const ModelShape& shape, KvType kv_type,
                absl::Span<const std::vector<double>> experts_named,
                double position) {
  const double hidden = shape.spec.hidden_size, d = shape.head_dim;
  const double vocabulary = shape.spec.vocab_size;
  const double kv_bytes = kv_type == KvType::kBf16 ? 2 : 4;
  // Positions that a row sees, itself among them, and all K and V of a
  // sequence, of which a prefill writes all and a decode step one.
  const double seen = one.decodes() ? position + 1 : (one.tokens + 1) / 2.0;
  const double length = one.decodes() ? position + 1 : one.tokens;
  const double written = one.decodes() ? 1 : one.tokens;
  const double expert_elements = 3.0 * shape.experts.intermediate_rows * hidden;
  StepWork work;
  for (Rank rank = 0; rank < shape.num_ranks; ++rank) {
    const Share share = ShareOf(one, shape, rank);
    const double reads = share.rows > 0 ? 1 : 0;
    const double part = 1.0 / one.layout.tp_size;
    const double q = share.heads.num_q() * d, kv = share.heads.num_kv() * d;
    size_t moe_layer = 0;
    for (int l = 0; l < shape.spec.num_layers(); ++l) {
      const auto& attention =
          std::get<GroupedQueryAttention>(shape.spec.layers[l].attention);
      const auto inside = [&](double positions) {
        return attention.window == 0
                   ? positions
                   : std::min<double>(positions, attention.window);
      };
      // Of the last layer only K and V of rows that nobody wants.
      const bool last = l == shape.spec.num_layers() - 1;
      const double rows = last ? share.sequences : share.rows;
      double elements = reads * hidden * (2 * q + 2 * kv);
      work.operations += 2 * hidden * (share.rows * 2 * kv + rows * 2 * q) +
                         4 * q * rows * inside(last ? length : seen);
      work.bytes +=
          kv_bytes * 2 * kv * share.sequences * (inside(length) + written);
      if (const MoeMlp* moe = shape.spec.layers[l].moe()) {
        const double router = hidden * moe->router.num_experts;
        elements += reads * router +
                    part * expert_elements *
                        experts_named[static_cast<size_t>(rank)][moe_layer++];
        const double shared =
            moe->shared.has_value() ? 3 * hidden * moe->shared->rows : 0;
        elements += reads * part * shared;
        work.operations +=
            2 * rows *
            (router + part * (moe->router.top_k * expert_elements + shared));
      } else if (const DenseMlp* mlp = shape.spec.layers[l].dense()) {
        elements += reads * part * 3 * hidden * mlp->rows;
        work.operations += 2 * rows * part * 3 * hidden * mlp->rows;
      }
      work.bytes += kWeightBytes * elements;
    }
    work.bytes += kWeightBytes *
                  (reads * part * hidden * vocabulary + share.rows * hidden);
    work.operations += 2.0 * share.sequences * part * hidden * vocabulary;
  }
  return work;
}

}  // namespace moebius
