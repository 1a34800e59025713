// Small checkpoints against what transformers computes in float32, on any
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
  std::vector<double> greedy_margins;   // logit of each over the next best
  std::vector<double> prompt_logprobs;  // of prompt[1], prompt[2], ...
  std::vector<int> top_ids;             // of the prompt's last row
  std::vector<double> top_logits;
};

// Of the checkpoint in that folder of the source tree.
inline std::vector<ReferenceRow> Reference(const std::string& folder) {
  std::ifstream file(SourceDir(folder) + "/reference.json");
  const auto json = nlohmann::json::parse(file);
  std::vector<ReferenceRow> rows;
  for (const auto& row : json.at("rows")) {
    const bool twenty = row.contains("last_top20_ids");
    rows.push_back({row.at("prompt_ids"), row.at("greedy_ids"),
                    row.at("greedy_margins"), row.at("prompt_logprobs"),
                    row.at(twenty ? "last_top20_ids" : "last_top_ids"),
                    row.at(twenty ? "last_top20_logits" : "last_top_logits")});
  }
  return rows;
}

// Largest differences from the reference.
struct ReferenceTolerance {
  double logprob = 1e-3;  // of any token of a prompt
  double logit = 1e-3;    // of the largest of a prompt's last row
  double mean_logprob = 1e-3;
  // Prompts in whose last row a router may choose another expert, and what that
  // may change of a logit.
  int rows_turned = 0;
  double turned_logit = 0;
  // A greedy token may be another one where the reference's margin is no more,
  // and what follows then is not compared.
  double margin = 0;
};

struct ReferenceCase {
  int num_ranks;
  bool tp;
  std::vector<int> chunk_sizes;        // taken in turn
  MakeTestRanks make_ranks = nullptr;  // on the processor
  ReferenceTolerance tolerance = {};
  const char* model = "models/verse-moe";
};

inline std::string NameOf(const testing::TestParamInfo<ReferenceCase>& info) {
  return "Ranks" + std::to_string(info.param.num_ranks) +
         (info.param.tp ? "Tp" : "Ep") + "Chunk" +
         std::to_string(info.param.chunk_sizes[0]);
}

class ReferenceTest : public testing::TestWithParam<ReferenceCase> {
 protected:
  static GroupOptions Options(const Model& model) {
    GroupOptions options;
    options.spec = model.spec;
    options.names = model.names;
    options.adapt = model.adapt;
    options.num_ranks = GetParam().num_ranks;
    options.layout =
        GetParam().tp ? TensorParallel(options.num_ranks) : ExpertParallel();
    options.model_dir = SourceDir(GetParam().model);
    options.max_rows = kMaxRows;
    options.num_pages = 2048;
    options.make_ranks = GetParam().make_ranks;
    return options;
  }

  void SetUp() override {
    ASSERT_GE(rows_.size(), 16u);
    for (size_t s = 0; s < rows_.size(); ++s) {
      logprobs_[s].resize(rows_[s].prompt.size() - 1);
    }
  }
  void OnLogits(int s, int position, absl::Span<float> logits) {
    const ReferenceRow& row = rows_[s];
    const int last = static_cast<int>(row.prompt.size()) - 1;
    if (position < last) {
      logprobs_[s][position] = LogProbability(logits, row.prompt[position + 1]);
      return;
    }
    if (position == last) last_logits_[s].assign(logits.begin(), logits.end());
    tokens_[s].push_back(ArgMax(logits));
  }
  // Prefill and decode are mixed: a sequence decodes as soon as it can.
  std::vector<Piece> NextPieces() {
    std::vector<Piece> pieces;
    size_t room = kMaxRows;
    for (size_t s = 0; s < rows_.size() && room > 0; ++s) {
      const ReferenceRow& row = rows_[s];
      if (tokens_[s].size() == row.greedy.size()) continue;
      Piece piece{static_cast<int>(s), {}, Want::kAll};
      if (done_[s] == row.prompt.size()) {
        piece.tokens = {tokens_[s].back()};
      } else {
        const size_t size = static_cast<size_t>(
            GetParam().chunk_sizes[turn_++ % GetParam().chunk_sizes.size()]);
        const size_t count =
            std::min({size, room, row.prompt.size() - done_[s]});
        piece.tokens.assign(row.prompt.begin() + done_[s],
                            row.prompt.begin() + done_[s] + count);
        done_[s] += count;
      }
      room -= piece.tokens.size();
      pieces.push_back(std::move(piece));
    }
    return pieces;
  }
  void CompareTokens() {
    for (size_t s = 0; s < rows_.size(); ++s) {
      const ReferenceRow& row = rows_[s];
      ASSERT_EQ(tokens_[s].size(), row.greedy.size());
      const auto [got, expected] = std::mismatch(
          tokens_[s].begin(), tokens_[s].end(), row.greedy.begin());
      if (got == tokens_[s].end()) continue;
      const auto i = expected - row.greedy.begin();
      EXPECT_LE(row.greedy_margins[i], GetParam().tolerance.margin)
          << "row " << s << ", token " << i << ": " << *got << " instead of "
          << *expected;
    }
  }
  void CompareLogprobs() {
    double worst = 0, sum = 0;
    size_t count = 0;
    for (size_t s = 0; s < rows_.size(); ++s) {
      for (size_t i = 0; i < logprobs_[s].size(); ++i) {
        const double difference =
            std::abs(logprobs_[s][i] - rows_[s].prompt_logprobs[i]);
        worst = std::max(worst, difference);
        sum += difference;
        ++count;
      }
    }
    const double mean = sum / static_cast<double>(count);
    EXPECT_LT(worst, GetParam().tolerance.logprob);
    EXPECT_LT(mean, GetParam().tolerance.mean_logprob);
    RecordProperty("worst_logprob", std::to_string(worst));
    RecordProperty("mean_logprob", std::to_string(mean));
  }
  void CompareLogits() {
    std::vector<double> worst(rows_.size());  // of each prompt
    for (size_t s = 0; s < rows_.size(); ++s) {
      for (size_t i = 0; i < rows_[s].top_ids.size(); ++i) {
        worst[s] =
            std::max(worst[s], std::abs(last_logits_[s][rows_[s].top_ids[i]] -
                                        rows_[s].top_logits[i]));
      }
    }
    std::sort(worst.begin(), worst.end());
    const ReferenceTolerance& tolerance = GetParam().tolerance;
    EXPECT_LT(worst[worst.size() - 1 - tolerance.rows_turned], tolerance.logit);
    if (tolerance.rows_turned > 0) {
      EXPECT_LT(worst.back(), tolerance.turned_logit);
    }
    RecordProperty("worst_logit", std::to_string(worst.back()));
  }

  static constexpr int kMaxRows = 600;
  const std::vector<ReferenceRow> rows_ = Reference(GetParam().model);
  // Of each row, what the group gives.
  std::vector<std::vector<int32_t>> tokens_ =
      std::vector<std::vector<int32_t>>(rows_.size());
  std::vector<std::vector<double>> logprobs_ =
      std::vector<std::vector<double>>(rows_.size());
  std::vector<std::vector<float>> last_logits_ =
      std::vector<std::vector<float>>(rows_.size());
  std::vector<size_t> done_ = std::vector<size_t>(rows_.size(), 0);
  size_t turn_ = 0;
};

TEST_P(ReferenceTest, GreedyTokensAndLogProbabilitiesEqual) {
  const auto model = LoadModel(SourceDir(GetParam().model));
  ASSERT_THAT(model, IsOk());
  TestGroup group(Options(*model));
  for (int step = 0; step < 200; ++step) {
    const std::vector<Piece> pieces = NextPieces();
    if (pieces.empty()) break;
    ASSERT_THAT(group.Step(pieces,
                           [&](int s, int position, absl::Span<float> logits) {
                             OnLogits(s, position, logits);
                           }),
                IsOk());
  }
  CompareTokens();
  CompareLogprobs();
  CompareLogits();
}

}  // namespace moebius
