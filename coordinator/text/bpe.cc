#include "coordinator/text/bpe.h"

#include <functional>
#include <queue>

namespace moebius {
namespace {

constexpr uint32_t kNoRank = UINT32_MAX;

}  // namespace

BpeModel::BpeModel(const std::array<int32_t, 256>& byte_tokens,
                   const std::vector<BpeMerge>& merges, const BytesToId* ids,
                   int32_t vocab_size, bool ignore_merges)
    : byte_tokens_(byte_tokens),
      ids_(ids),
      ignore_merges_(ignore_merges),
      wholeness_(new std::atomic<Wholeness>[vocab_size]) {
  for (int32_t id = 0; id < vocab_size; ++id) {
    std::atomic_init(&wholeness_[id], Wholeness::kUnknown);
  }
  rules_.reserve(merges.size());
  for (uint32_t rank = 0; rank < merges.size(); ++rank) {
    const BpeMerge& merge = merges[rank];
    rules_.emplace(uint64_t{static_cast<uint32_t>(merge.left)} << 32 |
                       static_cast<uint32_t>(merge.right),
                   Rule{rank, merge.result});
  }
}

void BpeModel::Encode(std::string_view word, std::vector<int32_t>* out) const {
  if (word.empty()) return;
  if (word.size() == 1 && !ignore_merges_) {
    out->push_back(byte_tokens_[static_cast<uint8_t>(word[0])]);
    return;
  }
  std::atomic<Wholeness>* mark = nullptr;
  int32_t id = 0;
  if (const auto it = ids_->find(word); it != ids_->end()) {
    id = it->second;
    mark = &wholeness_[id];
    // Relaxed: every thread that writes the mark writes the same value.
    if (ignore_merges_ ||
        mark->load(std::memory_order_relaxed) == Wholeness::kWhole) {
      out->push_back(id);
      return;
    }
  }
  const size_t before = out->size();
  if (word.size() <= kShortWordBytes) {
    MergeShort(word, out);
  } else {
    MergeLong(word, out);
  }
  if (mark != nullptr) {
    const bool whole = out->size() == before + 1 && out->back() == id;
    mark->store(whole ? Wholeness::kWhole : Wholeness::kInParts,
                std::memory_order_relaxed);
  }
}

void BpeModel::MergeShort(std::string_view word,
                          std::vector<int32_t>* out) const {
  // symbols[i] and symbols[i + 1] merge by the rule of ranks[i], results[i].
  int32_t symbols[kShortWordBytes];
  uint32_t ranks[kShortWordBytes];
  int32_t results[kShortWordBytes];
  size_t count = word.size();
  for (size_t i = 0; i < count; ++i) {
    symbols[i] = byte_tokens_[static_cast<uint8_t>(word[i])];
  }
  const auto look_up = [&](size_t i) {
    const Rule* rule = Find(symbols[i], symbols[i + 1]);
    ranks[i] = rule == nullptr ? kNoRank : rule->rank;
    if (rule != nullptr) results[i] = rule->result;
  };
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoRank) break;
    symbols[best] = results[best];
    --count;
    for (size_t i = best + 1; i < count; ++i) symbols[i] = symbols[i + 1];
    for (size_t i = best; i + 1 < count; ++i) {
      ranks[i] = ranks[i + 1];
      results[i] = results[i + 1];
    }
    if (best + 1 < count) look_up(best);
    if (best > 0) look_up(best - 1);
  }
  out->insert(out->end(), symbols, symbols + count);
}

void BpeModel::MergeLong(std::string_view word,
                         std::vector<int32_t>* out) const {
  constexpr uint32_t kEnd = UINT32_MAX;
  constexpr int32_t kMerged = -1;  // the symbol became part of the one before
  struct Symbol {
    int32_t id;
    uint32_t previous, next;
  };
  const auto size = static_cast<uint32_t>(word.size());
  std::vector<Symbol> symbols(size);
  for (uint32_t i = 0; i < size; ++i) {
    symbols[i] = {byte_tokens_[static_cast<uint8_t>(word[i])],
                  i == 0 ? kEnd : i - 1, i + 1 == size ? kEnd : i + 1};
  }
  // Entries are rank << 32 | place: the lowest rank first, then the leftmost.
  // An entry that no longer describes its place is dropped when it comes up.
  using Queue = std::priority_queue<uint64_t, std::vector<uint64_t>,
                                    std::greater<uint64_t>>;
  std::vector<uint64_t> entries;
  entries.reserve(size);
  const auto rule_at = [&](uint32_t i) -> const Rule* {
    if (symbols[i].id == kMerged || symbols[i].next == kEnd) return nullptr;
    return Find(symbols[i].id, symbols[symbols[i].next].id);
  };
  for (uint32_t i = 0; i < size; ++i) {
    if (const Rule* rule = rule_at(i)) {
      entries.push_back(uint64_t{rule->rank} << 32 | i);
    }
  }
  Queue queue(std::greater<uint64_t>(), std::move(entries));
  while (!queue.empty()) {
    const auto rank = static_cast<uint32_t>(queue.top() >> 32);
    const auto at = static_cast<uint32_t>(queue.top());
    queue.pop();
    const Rule* rule = rule_at(at);
    if (rule == nullptr || rule->rank != rank) continue;
    Symbol& left = symbols[at];
    Symbol& right = symbols[left.next];
    left.id = rule->result;
    right.id = kMerged;
    left.next = right.next;
    if (left.next != kEnd) symbols[left.next].previous = at;
    if (const Rule* next = rule_at(at)) {
      queue.push(uint64_t{next->rank} << 32 | at);
    }
    if (left.previous != kEnd) {
      if (const Rule* next = rule_at(left.previous)) {
        queue.push(uint64_t{next->rank} << 32 | left.previous);
      }
    }
  }
  for (uint32_t i = 0; i != kEnd; i = symbols[i].next) {
    out->push_back(symbols[i].id);
  }
}

}  // namespace moebius
