// Parts of messages that more than one schema holds (wire.capnp, and the
// journal's): their Cap'n Proto readers and builders. For files named _capnp.cc
// alone. Readers refuse what is out of its range with kInvalidArgument; the
// library's exceptions pass through them, to be caught where the message is
// opened.
#pragma once

#include <capnp/list.h>
#include <capnp/message.h>

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/wire/wire.capnp.h"
#include "common/wire/wire.h"

namespace moebius {

inline constexpr int kWireNestingLimit = 12;

inline absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("malformed message: ", what));
}

// ---- readers ---------------------------------------------------------------

template <typename T, typename List>
std::vector<T> ReadList(List list) {
  std::vector<T> values;
  values.reserve(list.size());
  for (auto value : list) values.push_back(static_cast<T>(value));
  return values;
}

absl::StatusOr<Layout> ReadLayout(unsigned tp_size);
absl::Status Read(wire_schema::Sampling::Reader in, SamplingParams& out);
absl::Status Read(wire_schema::KvTable::Reader in, KvTable& out);
absl::Status Read(wire_schema::Prepare::Reader in, wire::Prepare& out);

// Reads the most likely tokens of some of `entries` into top_of(entry).
template <typename List, typename Entries, typename TopOf>
absl::Status ReadRankings(List rankings, Entries& entries, TopOf top_of) {
  for (auto ranking : rankings) {
    const auto tokens = ranking.getTokens();
    const auto logprobs = ranking.getLogprobs();
    if (ranking.getIndex() >= entries.size() ||
        tokens.size() != logprobs.size() ||
        tokens.size() > static_cast<unsigned>(kMaxLogprobs)) {
      return Malformed("ranking");
    }
    std::vector<TokenLogprob>& top = top_of(entries[ranking.getIndex()]);
    if (!top.empty()) return Malformed("two rankings of one entry");
    top.reserve(tokens.size());
    for (unsigned i = 0; i < tokens.size(); ++i) {
      top.push_back(TokenLogprob{tokens[i], logprobs[i]});
    }
  }
  return absl::OkStatus();
}

// ---- builders --------------------------------------------------------------

// Fills a primitive list with field(element) of each element.
template <typename List, typename Container, typename Field>
void FillColumn(List list, const Container& elements, Field field) {
  for (unsigned i = 0; i < elements.size(); ++i) {
    list.set(i, field(elements[i]));
  }
}

template <typename List, typename T>
void FillList(List list, const std::vector<T>& values) {
  for (unsigned i = 0; i < values.size(); ++i) list.set(i, values[i]);
}

void Build(wire_schema::Sampling::Builder out, const SamplingParams& in);
void Build(wire_schema::KvTable::Builder out, const KvTable& in);
void Build(wire_schema::Prepare::Builder out, const wire::Prepare& in);

// Builds the lists of rankings of the entries that have one.
template <typename Entries, typename TopOf, typename Init>
void BuildRankings(const Entries& entries, TopOf top_of, Init init) {
  unsigned count = 0;
  for (const auto& entry : entries) count += !top_of(entry).empty();
  auto rankings = init(count);
  unsigned next = 0;
  for (unsigned i = 0; i < entries.size(); ++i) {
    const std::vector<TokenLogprob>& top = top_of(entries[i]);
    if (top.empty()) continue;
    auto ranking = rankings[next++];
    ranking.setIndex(i);
    FillColumn(ranking.initTokens(top.size()), top,
               [](auto& t) { return t.token; });
    FillColumn(ranking.initLogprobs(top.size()), top,
               [](auto& t) { return t.logprob; });
  }
}

}  // namespace moebius
