#include "coordinator/text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "common/base/status_macros.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

bool EndsWithWord(std::string_view text) {
  if (text.empty()) return false;
  const size_t last = PreviousCharacter(text, text.size());
  return IsWordCharacter(ReadCodePoint(text.data() + last).value);
}

bool StartsWithWord(std::string_view text) {
  return !text.empty() && IsWordCharacter(ReadCodePoint(text.data()).value);
}

// Where the white space that ends text[0, end) begins, not before `floor`.
size_t StartOfSpaceBefore(std::string_view text, size_t end, size_t floor) {
  while (end > floor) {
    const size_t last = PreviousCharacter(text, end);
    if (!IsWhiteSpace(ReadCodePoint(text.data() + last).value)) break;
    end = last;
  }
  return end;
}

size_t EndOfSpaceAfter(std::string_view text, size_t at) {
  while (at < text.size()) {
    const CodePoint point = ReadCodePoint(text.data() + at);
    if (!IsWhiteSpace(point.value)) break;
    at += point.size_bytes;
  }
  return at;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), token_of_node_(1, -1) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    uint32_t node = 0;
    for (const char c : tokens_[i].content) {
      const auto byte = static_cast<uint8_t>(c);
      const auto [edge, inserted] =
          edges_.try_emplace(uint64_t{node} << 8 | byte,
                             static_cast<uint32_t>(token_of_node_.size()));
      if (inserted) token_of_node_.push_back(-1);
      node = edge->second;
    }
    if (token_of_node_[node] < 0) {
      token_of_node_[node] = static_cast<int32_t>(i);
    }
    starts_[static_cast<uint8_t>(tokens_[i].content[0])] = true;
  }
}

const AddedToken* AddedTokenMatcher::LongestAt(std::string_view text,
                                               size_t at) const {
  uint32_t node = 0;
  int32_t found = -1;
  for (; at < text.size(); ++at) {
    const auto edge =
        edges_.find(uint64_t{node} << 8 | static_cast<uint8_t>(text[at]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (token_of_node_[node] >= 0) found = token_of_node_[node];
  }
  return found < 0 ? nullptr : &tokens_[found];
}

absl::Status AddedTokenMatcher::Split(
    std::string_view text, bool parse_special,
    absl::FunctionRef<absl::Status(std::string_view, const AddedToken*)> piece)
    const {
  size_t reported = 0;
  for (size_t at = 0; !tokens_.empty() && at < text.size();) {
    if (!starts_[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const AddedToken* token = LongestAt(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + token->content.size();
    at = end;
    if (token->special && !parse_special) continue;
    if (token->single_word && (EndsWithWord(text.substr(0, begin)) ||
                               StartsWithWord(text.substr(end)))) {
      continue;
    }
    if (token->lstrip) begin = StartOfSpaceBefore(text, begin, reported);
    // An earlier rstrip may have gone past this token, to the end of the run.
    begin = std::max(begin, reported);
    end = std::max(end, reported);
    if (token->rstrip) end = EndOfSpaceAfter(text, end);
    if (begin > reported) {
      RETURN_IF_ERROR(piece(text.substr(reported, begin - reported), nullptr));
    }
    RETURN_IF_ERROR(piece(text.substr(begin, end - begin), token));
    reported = end;
  }
  if (reported < text.size()) {
    RETURN_IF_ERROR(piece(text.substr(reported), nullptr));
  }
  return absl::OkStatus();
}

}  // namespace moebius
