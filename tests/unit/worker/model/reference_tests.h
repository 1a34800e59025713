// The small checkpoint against what transformers computes in float32, on any
// device. To be included by the test of a device, which says what to test by
// INSTANTIATE_TEST_SUITE_P.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/test_group.h"
#include "worker/model/families/families.h"

namespace moebius {
struct ReferenceRow {
  std::vector<int32_t> prompt;
  std::vector<int32_t> greedy;
  std::vector<double> prompt_logprobs;  // of prompt[1], prompt[2], ...
  std::vector<int> top20_ids;
  std::vector<double> top20_logits;
};

inline const std::vector<ReferenceRow>& Reference() {
  static const auto* const rows = [] {
    std::ifstream file(VerseMoeDir() + "/reference.json");
    const auto json = nlohmann::json::parse(file);
    auto* rows = new std::vector<ReferenceRow>;
    for (const auto& row : json.at("rows")) {
      rows->push_back({row.at("prompt_ids"), row.at("greedy_ids"),
                       row.at("prompt_logprobs"), row.at("last_top20_ids"),
                       row.at("last_top20_logits")});
    }
    return rows;
  }();
  return *rows;
}

// Largest differences from the reference.
struct ReferenceTolerance {
  double logprob = 1e-3;  // of any token of a prompt
  double logit = 1e-3;    // of the twenty largest of a prompt's last row
  double mean_logprob = 1e-3;
};

struct ReferenceCase {
  int num_ranks;
  bool tp;
  std::vector<int> chunk_sizes;        // taken in turn
  MakeTestRanks make_ranks = nullptr;  // on the processor
  ReferenceTolerance tolerance = {};
  bool same_tokens = true;  // greedy ones
};

inline std::string NameOf(const testing::TestParamInfo<ReferenceCase>& info) {
  return "Ranks" + std::to_string(info.param.num_ranks) +
         (info.param.tp ? "Tp" : "Ep") + "Chunk" +
         std::to_string(info.param.chunk_sizes[0]);
}

class ReferenceTest : public testing::TestWithParam<ReferenceCase> {};

TEST_P(ReferenceTest, GreedyTokensAndLogProbabilitiesEqual) {
  const std::vector<ReferenceRow>& rows = Reference();
  ASSERT_EQ(rows.size(), 27u);
  GroupOptions options;
  const auto model = LoadModel(VerseMoeDir());
  ASSERT_THAT(model, IsOk());
  options.spec = model->spec;
  options.num_ranks = GetParam().num_ranks;
  options.layout =
      GetParam().tp ? TensorParallel(options.num_ranks) : ExpertParallel();
  options.model_dir = VerseMoeDir();
  options.max_rows = 600;
  options.num_pages = 2048;
  options.make_ranks = GetParam().make_ranks;
  TestGroup group(options);

  std::vector<std::vector<int32_t>> tokens(rows.size());
  std::vector<std::vector<double>> logprobs(rows.size());
  std::vector<std::vector<float>> last_logits(rows.size());
  for (size_t s = 0; s < rows.size(); ++s) {
    logprobs[s].resize(rows[s].prompt.size() - 1);
  }
  const auto on_logits = [&](int s, int position, absl::Span<float> logits) {
    const ReferenceRow& row = rows[s];
    const int last = static_cast<int>(row.prompt.size()) - 1;
    if (position < last) {
      logprobs[s][position] = LogProbability(logits, row.prompt[position + 1]);
      return;
    }
    if (position == last) last_logits[s].assign(logits.begin(), logits.end());
    tokens[s].push_back(ArgMax(logits));
  };
  // Prefill and decode are mixed: a sequence decodes as soon as it can.
  std::vector<size_t> done(rows.size(), 0);
  size_t turn = 0;
  for (int step = 0; step < 200; ++step) {
    std::vector<Piece> pieces;
    size_t room = static_cast<size_t>(options.max_rows);
    for (size_t s = 0; s < rows.size() && room > 0; ++s) {
      const ReferenceRow& row = rows[s];
      if (tokens[s].size() == row.greedy.size()) continue;
      Piece piece{static_cast<int>(s), {}, Want::kAll};
      if (done[s] == row.prompt.size()) {
        piece.tokens = {tokens[s].back()};
      } else {
        const size_t size = static_cast<size_t>(
            GetParam().chunk_sizes[turn++ % GetParam().chunk_sizes.size()]);
        const size_t count =
            std::min({size, room, row.prompt.size() - done[s]});
        piece.tokens.assign(row.prompt.begin() + done[s],
                            row.prompt.begin() + done[s] + count);
        done[s] += count;
      }
      room -= piece.tokens.size();
      pieces.push_back(std::move(piece));
    }
    if (pieces.empty()) break;
    ASSERT_THAT(group.Step(pieces, on_logits), IsOk());
  }

  double worst_logprob = 0, worst_logit = 0, sum_logprob = 0;
  size_t num_logprobs = 0;
  for (size_t s = 0; s < rows.size(); ++s) {
    SCOPED_TRACE(testing::Message() << "row " << s);
    if (GetParam().same_tokens) {
      EXPECT_EQ(tokens[s], rows[s].greedy);
    }
    for (size_t i = 0; i < logprobs[s].size(); ++i) {
      const double difference =
          std::abs(logprobs[s][i] - rows[s].prompt_logprobs[i]);
      worst_logprob = std::max(worst_logprob, difference);
      sum_logprob += difference;
      ++num_logprobs;
    }
    for (size_t i = 0; i < rows[s].top20_ids.size(); ++i) {
      worst_logit =
          std::max(worst_logit, std::abs(last_logits[s][rows[s].top20_ids[i]] -
                                         rows[s].top20_logits[i]));
    }
  }
  const double mean_logprob = sum_logprob / static_cast<double>(num_logprobs);
  EXPECT_LT(worst_logprob, GetParam().tolerance.logprob);
  EXPECT_LT(worst_logit, GetParam().tolerance.logit);
  EXPECT_LT(mean_logprob, GetParam().tolerance.mean_logprob);
  RecordProperty("worst_logprob", std::to_string(worst_logprob));
  RecordProperty("worst_logit", std::to_string(worst_logit));
  RecordProperty("mean_logprob", std::to_string(mean_logprob));
}

}  // namespace moebius
