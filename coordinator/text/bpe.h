// Byte-level byte-pair encoding of single words.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace moebius {

// One merge rule: `left` followed by `right` becomes `result`. Its place in
// the list is its rank; lower ranks go first.
struct BpeMerge {
  int32_t left, right, result;
};

// The tokens of a vocabulary by their bytes. Keys are views of strings that
// the owner keeps.
using BytesToId = absl::flat_hash_map<std::string_view, int32_t>;

// BpeModel
//
// Turns a word into tokens: begins with one token a byte, and applies the
// merge of lowest rank, the leftmost of equals, until none applies (Sennrich
// et al. 2016, arXiv 1508.07909; over bytes as in GPT-2).
//
// Cost: about n^2 comparisons for short words, O(n log n) for long ones. A
// word that is a token is looked up; that merging it yields just this token is
// established once for each.
//
// Threading: thread-safe; constant but for the marks of that knowledge, which
// are atomic.
class BpeModel {
 public:
  // REQUIRES: `byte_tokens[b]` is the token of byte b; `ids` outlives the
  // model; ids are in [0, vocab_size); no pair twice in `merges`; the bytes of
  // a result are those of its parts.
  BpeModel(const std::array<int32_t, 256>& byte_tokens,
           const std::vector<BpeMerge>& merges, const BytesToId* ids,
           int32_t vocab_size, bool ignore_merges);

  // Appends the tokens of `word` to `out`.
  void Encode(std::string_view word, std::vector<int32_t>* out) const;

 private:
  struct Rule {
    uint32_t rank;
    int32_t result;
  };
  enum class Wholeness : uint8_t { kUnknown, kWhole, kInParts };

  // Applies to words of up to this many bytes the quadratic way.
  static constexpr size_t kShortWordBytes = 48;

  const Rule* Find(int32_t left, int32_t right) const {
    const auto it = rules_.find(uint64_t{static_cast<uint32_t>(left)} << 32 |
                                static_cast<uint32_t>(right));
    return it == rules_.end() ? nullptr : &it->second;
  }
  void MergeShort(std::string_view word, std::vector<int32_t>* out) const;
  void MergeLong(std::string_view word, std::vector<int32_t>* out) const;

  std::array<int32_t, 256> byte_tokens_;
  absl::flat_hash_map<uint64_t, Rule> rules_;
  const BytesToId* ids_;
  bool ignore_merges_;
  // By token: whether its own bytes merge into it.
  std::unique_ptr<std::atomic<Wholeness>[]> wholeness_;
};

}  // namespace moebius
