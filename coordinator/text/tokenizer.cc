#include "coordinator/text/tokenizer.h"

#include <utility>

#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/utf8.h"

namespace moebius {
absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(
    const std::string& path) {
  ASSIGN_OR_RETURN(const std::string contents,
                   ReadFile(path, kMaxTokenizerFileBytes));
  return FromJson(contents, path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(
    std::string_view json, std::string_view name) {
  ASSIGN_OR_RETURN(TokenizerFile file, ParseTokenizerFile(json, name));
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(std::move(file)));
  if (const absl::Status status = tokenizer->Initialize(); !status.ok()) {
    return absl::Status(status.code(), Cat(name, ": ", status.message()));
  }
  return tokenizer;
}

Tokenizer::Tokenizer(TokenizerFile file)
    : file_(std::move(file)),
      bpe_(file_.byte_tokens, file_.merges, &file_.ids,
           static_cast<int32_t>(file_.tokens.size()), file_.ignore_merges),
      special_(file_.tokens.size()) {
  file_.merges = {};  // the model has its own form of them
}

absl::Status Tokenizer::Initialize() {
  for (const std::string& pattern : file_.split_patterns) {
    ASSIGN_OR_RETURN(auto split, SplitPattern::Compile(pattern));
    splits_.push_back(std::move(split));
  }
  std::vector<AddedToken> raw, normalized;
  for (const AddedToken& token : file_.added_tokens) {
    special_[token.id] = token.special;
    if (!token.normalized) {
      raw.push_back(token);
      continue;
    }
    normalized.push_back(token);
    if (file_.nfc) {
      ASSIGN_OR_RETURN(normalized.back().content, NormalizeNfc(token.content));
    }
  }
  raw_matcher_ = AddedTokenMatcher(std::move(raw));
  normalized_matcher_ = AddedTokenMatcher(std::move(normalized));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(
    std::string_view text, EncodeOptions options) const {
  if (text.size() > kMaxEncodeBytes) {
    return absl::InvalidArgumentError(Cat(
        "the text has ", text.size(), " bytes, more than ", kMaxEncodeBytes));
  }
  std::string repaired;
  if (!IsValidUtf8(text)) {
    repaired = RepairUtf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 1);
  RETURN_IF_ERROR(raw_matcher_.Split(
      text, options.parse_special,
      [&](std::string_view piece, const AddedToken* token) {
        if (token == nullptr) {
          return EncodeUnnormalized(piece, options.parse_special, &ids);
        }
        ids.push_back(token->id);
        return absl::OkStatus();
      }));
  return ids;
}

absl::Status Tokenizer::EncodeUnnormalized(std::string_view text,
                                           bool parse_special,
                                           std::vector<int32_t>* ids) const {
  std::string normalized;
  if (file_.nfc) {
    ASSIGN_OR_RETURN(normalized, NormalizeNfc(text));
    text = normalized;
  }
  return normalized_matcher_.Split(
      text, parse_special,
      [&](std::string_view piece, const AddedToken* token) {
        if (token == nullptr) return EncodeOrdinary(piece, 0, ids);
        ids->push_back(token->id);
        return absl::OkStatus();
      });
}

absl::Status Tokenizer::EncodeOrdinary(std::string_view text, size_t split,
                                       std::vector<int32_t>* ids) const {
  if (split == splits_.size()) {
    bpe_.Encode(text, ids);
    return absl::OkStatus();
  }
  return splits_[split]->Split(text, [&](std::string_view piece) {
    return EncodeOrdinary(piece, split + 1, ids);
  });
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids,
                              bool skip_special) const {
  std::string text;
  text.reserve(ids.size() * 4);
  Utf8Repairer repairer;
  for (const int32_t id : ids) {
    if (skip_special && IsSpecial(id)) continue;
    repairer.Append(TokenBytes(id), &text);
  }
  repairer.Flush(&text);
  return text;
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view token) const {
  for (const AddedToken& added : file_.added_tokens) {
    if (added.content == token) return added.id;
  }
  const auto it = file_.ids.find(token);
  if (it == file_.ids.end()) return std::nullopt;
  return it->second;
}

}  // namespace moebius
