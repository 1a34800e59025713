// Cap'n Proto codec of the parts that more than one schema holds.
#include "common/wire/wire_fields_capnp.h"

#include <algorithm>

#include "common/base/status_macros.h"
#include "common/wire/wire_limits.h"

namespace moebius {
namespace {

absl::Status Read(wire_schema::MoveWave::Reader in,
                  std::vector<PageMove>& out) {
  const auto src_rank = in.getSrcRank();
  const auto src_page = in.getSrcPage();
  const auto dst_rank = in.getDstRank();
  const auto dst_page = in.getDstPage();
  const unsigned n = src_rank.size();
  if (src_page.size() != n || dst_rank.size() != n || dst_page.size() != n) {
    return Malformed("columns of page moves differ in length");
  }
  out.resize(n);
  for (unsigned i = 0; i < n; ++i) {
    if (src_rank[i] >= kMaxRanks || dst_rank[i] >= kMaxRanks) {
      return Malformed("page move");
    }
    out[i] = PageMove{src_rank[i], src_page[i], dst_rank[i], dst_page[i]};
  }
  return absl::OkStatus();
}

absl::Status ReadBadWords(wire_schema::Sampling::Reader in,
                          std::vector<std::vector<int32_t>>& out) {
  const auto sizes = in.getBadWordSizes();
  const auto tokens = in.getBadWordTokens();
  if (sizes.size() > kMaxBadWords || tokens.size() > kMaxBadWordIds) {
    return Malformed("bad words");
  }
  unsigned at = 0;
  for (const unsigned size : sizes) {
    if (size == 0 || size > tokens.size() - at) return Malformed("a bad word");
    std::vector<int32_t>& word = out.emplace_back();
    for (const unsigned end = at + size; at < end; ++at) {
      word.push_back(tokens[at]);
    }
  }
  return at == tokens.size() ? absl::OkStatus() : Malformed("bad words");
}

void BuildBadWords(wire_schema::Sampling::Builder out,
                   const std::vector<std::vector<int32_t>>& in) {
  std::vector<int32_t> tokens;
  for (const auto& word : in) {
    tokens.insert(tokens.end(), word.begin(), word.end());
  }
  FillColumn(out.initBadWordSizes(in.size()), in,
             [](const auto& word) { return word.size(); });
  FillList(out.initBadWordTokens(tokens.size()), tokens);
}

}  // namespace

absl::StatusOr<Layout> ReadLayout(unsigned tp_size) {
  if (tp_size < 1 || tp_size > kMaxRanks) return Malformed("layout");
  return Layout{static_cast<int>(tp_size)};
}

absl::Status Read(wire_schema::Sampling::Reader in, SamplingParams& out) {
  out.temperature = in.getTemperature();
  out.top_k = in.getTopK();
  out.top_p = in.getTopP();
  out.min_p = in.getMinP();
  out.repetition_penalty = in.getRepetitionPenalty();
  out.presence_penalty = in.getPresencePenalty();
  out.frequency_penalty = in.getFrequencyPenalty();
  out.seed = in.getSeed();
  out.num_logprobs = in.getNumLogprobs();
  out.num_prompt_logprobs = in.getNumPromptLogprobs();
  if (std::max(out.num_logprobs, out.num_prompt_logprobs) > kMaxLogprobs) {
    return Malformed("number of log-probabilities");
  }
  out.min_tokens = in.getMinTokens();
  out.suppressed_ids = ReadList<int32_t>(in.getSuppressed());
  const auto tokens = in.getBiasTokens();
  const auto values = in.getBiasValues();
  if (tokens.size() != values.size() || tokens.size() > kMaxLogitBias) {
    return Malformed("logit bias");
  }
  out.logit_bias.reserve(tokens.size());
  for (unsigned i = 0; i < tokens.size(); ++i) {
    out.logit_bias.emplace_back(tokens[i], values[i]);
  }
  if (in.getAllowed().size() > kMaxAllowedIds) return Malformed("allowed ids");
  out.allowed_ids = ReadList<int32_t>(in.getAllowed());
  return ReadBadWords(in, out.bad_words);
}

absl::Status Read(wire_schema::KvTable::Reader in, KvTable& out) {
  out.slot = in.getSlot();
  out.num_blocks = static_cast<int>(in.getNumBlocks());
  const auto tables = in.getTables();
  if (out.slot >= kMaxSlotNumber || in.getNumBlocks() > kMaxPosition ||
      tables.size() > kMaxRanks) {
    return Malformed("KV table");
  }
  out.tables.resize(tables.size());
  for (unsigned i = 0; i < tables.size(); ++i) {
    RankTable& table = out.tables[i];
    table.rank = tables[i].getRank();
    table.kv_begin = tables[i].getKvBegin();
    table.num_kv = tables[i].getNumKv();
    table.pages = ReadList<PageId>(tables[i].getPages());
    if (table.rank >= kMaxRanks ||
        table.pages.size() !=
            static_cast<size_t>(out.num_blocks) * table.num_kv) {
      return Malformed("KV table of a rank");
    }
  }
  return absl::OkStatus();
}

absl::Status Read(wire_schema::Prepare::Reader in, wire::Prepare& out) {
  out.epoch = Epoch{in.getEpoch()};
  ASSIGN_OR_RETURN(out.target, ReadLayout(in.getTargetTp()));
  const auto waves = in.getWaves();
  if (waves.size() > kMaxKvWaves) return Malformed("number of waves");
  out.kv.waves.resize(waves.size());
  for (unsigned i = 0; i < waves.size(); ++i) {
    RETURN_IF_ERROR(Read(waves[i], out.kv.waves[i]));
  }
  const auto tables = in.getTables();
  out.kv.tables.resize(tables.size());
  for (unsigned i = 0; i < tables.size(); ++i) {
    RETURN_IF_ERROR(Read(tables[i], out.kv.tables[i]));
  }
  return absl::OkStatus();
}

void Build(wire_schema::Sampling::Builder out, const SamplingParams& in) {
  out.setTemperature(in.temperature);
  out.setTopK(in.top_k);
  out.setTopP(in.top_p);
  out.setMinP(in.min_p);
  out.setRepetitionPenalty(in.repetition_penalty);
  out.setPresencePenalty(in.presence_penalty);
  out.setFrequencyPenalty(in.frequency_penalty);
  out.setSeed(in.seed);
  out.setNumLogprobs(in.num_logprobs);
  out.setNumPromptLogprobs(in.num_prompt_logprobs);
  out.setMinTokens(in.min_tokens);
  FillList(out.initSuppressed(in.suppressed_ids.size()), in.suppressed_ids);
  FillColumn(out.initBiasTokens(in.logit_bias.size()), in.logit_bias,
             [](const auto& bias) { return bias.first; });
  FillColumn(out.initBiasValues(in.logit_bias.size()), in.logit_bias,
             [](const auto& bias) { return bias.second; });
  FillList(out.initAllowed(in.allowed_ids.size()), in.allowed_ids);
  BuildBadWords(out, in.bad_words);
}

void Build(wire_schema::KvTable::Builder out, const KvTable& in) {
  out.setSlot(in.slot);
  out.setNumBlocks(in.num_blocks);
  auto ranks = out.initTables(in.tables.size());
  for (unsigned i = 0; i < in.tables.size(); ++i) {
    const RankTable& rank = in.tables[i];
    ranks[i].setRank(rank.rank);
    ranks[i].setKvBegin(rank.kv_begin);
    ranks[i].setNumKv(rank.num_kv);
    FillList(ranks[i].initPages(rank.pages.size()), rank.pages);
  }
}

void Build(wire_schema::Prepare::Builder out, const wire::Prepare& in) {
  out.setEpoch(in.epoch.value);
  out.setTargetTp(in.target.tp_size);
  auto waves = out.initWaves(in.kv.waves.size());
  for (unsigned i = 0; i < in.kv.waves.size(); ++i) {
    const auto& moves = in.kv.waves[i];
    const unsigned n = moves.size();
    FillColumn(waves[i].initSrcRank(n), moves,
               [](auto& m) { return m.src_rank; });
    FillColumn(waves[i].initSrcPage(n), moves,
               [](auto& m) { return m.src_page; });
    FillColumn(waves[i].initDstRank(n), moves,
               [](auto& m) { return m.dst_rank; });
    FillColumn(waves[i].initDstPage(n), moves,
               [](auto& m) { return m.dst_page; });
  }
  auto tables = out.initTables(in.kv.tables.size());
  for (unsigned i = 0; i < in.kv.tables.size(); ++i) {
    Build(tables[i], in.kv.tables[i]);
  }
}

}  // namespace moebius
