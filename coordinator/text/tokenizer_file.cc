#include "coordinator/text/tokenizer_file.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/json_reader.h"
#include "coordinator/text/pretokenizer.h"

namespace moebius {
namespace {

using Element = JsonReader::Element;
using Array = JsonReader::Array;
using Object = JsonReader::Object;

constexpr size_t kMaxJsonDepth = 64;
constexpr int kMaxSequenceDepth = 8;

class Parser {
 public:
  explicit Parser(std::string_view name) : json_(name) {}

  absl::StatusOr<TokenizerFile> Run(std::string_view json);

 private:
  absl::StatusOr<int32_t> AsId(Element element, std::string_view key) const;

  absl::Status Normalizer(Element element, const std::string& key, int depth);
  absl::Status PreTokenizer(Element element, const std::string& key, int depth);
  absl::Status Split(Object object, const std::string& key);
  absl::Status ByteLevel(Object object, const std::string& key);
  absl::Status Decoder(Element element);
  absl::Status PostProcessor(Element element, const std::string& key,
                             int depth);
  absl::Status Template(Object object, const std::string& key);
  absl::Status Model(Element element);
  absl::Status Vocabulary(Object vocab);
  absl::Status Merges(Array merges);
  absl::StatusOr<std::pair<std::string_view, std::string_view>> MergeParts(
      Element element, size_t index) const;
  absl::StatusOr<int32_t> MergeToken(std::string_view spelling, size_t index,
                                     std::string* bytes) const;
  absl::Status AddedTokens(Array added);
  absl::Status AddToken(Element element, const std::string& key);
  std::optional<int32_t> IdOfSpelling(std::string_view spelling) const;

  JsonReader json_;
  TokenizerFile file_;
  std::vector<bool> taken_;  // by id
  bool byte_level_ = false;
  // Vocabulary entries not spelled in the byte-level alphabet, as they stand.
  absl::flat_hash_map<std::string, int32_t> other_spellings_;
};

absl::StatusOr<int32_t> Parser::AsId(Element element,
                                     std::string_view key) const {
  int64_t id;
  if (element.get(id) != simdjson::SUCCESS || id < 0 || id >= kMaxVocabSize) {
    return json_.Error(key, "must be a token id, a whole number from 0 to ",
                       kMaxVocabSize - 1);
  }
  return static_cast<int32_t>(id);
}

absl::StatusOr<TokenizerFile> Parser::Run(std::string_view json) {
  if (json.size() > kMaxTokenizerFileBytes) {
    return absl::InvalidArgumentError(Cat(json_.name(), ": has ", json.size(),
                                          " bytes, more than ",
                                          kMaxTokenizerFileBytes));
  }
  // An allocation of the size of the file, and of a few times it for the
  // parsed form.
  simdjson::dom::parser parser(kMaxTokenizerFileBytes);
  auto error =
      parser.allocate(std::max<size_t>(json.size(), 64), kMaxJsonDepth);
  Element root;
  if (error == simdjson::SUCCESS) {
    error = parser.parse(simdjson::padded_string(json)).get(root);
  }
  if (error != simdjson::SUCCESS) {
    return absl::InvalidArgumentError(
        Cat(json_.name(), ": is not a JSON document of at most ", kMaxJsonDepth,
            " levels: ", simdjson::error_message(error)));
  }
  ASSIGN_OR_RETURN(const Object top, json_.AsObject(root, "the document"));
  RETURN_IF_ERROR(json_.OnlyMembers(
      top, "the document",
      {"version", "truncation", "padding", "added_tokens", "normalizer",
       "pre_tokenizer", "post_processor", "decoder", "model"}));
  Element element;
  if (top["version"].get(element) == simdjson::SUCCESS) {
    ASSIGN_OR_RETURN(const std::string_view version,
                     json_.AsString(element, "version"));
    if (version != "1.0") {
      return json_.Error("version", QuotedForMessage(version),
                         " is not supported; supported: \"1.0\"");
    }
  }
  if (top["normalizer"].get(element) == simdjson::SUCCESS) {
    RETURN_IF_ERROR(Normalizer(element, "normalizer", 0));
  }
  ASSIGN_OR_RETURN(element,
                   json_.Require(top, "pre_tokenizer", "the document"));
  RETURN_IF_ERROR(PreTokenizer(element, "pre_tokenizer", 0));
  if (!byte_level_) {
    return json_.Error(
        "pre_tokenizer",
        "has no ByteLevel; supported are byte-level vocabularies");
  }
  ASSIGN_OR_RETURN(element, json_.Require(top, "decoder", "the document"));
  RETURN_IF_ERROR(Decoder(element));
  if (top["post_processor"].get(element) == simdjson::SUCCESS) {
    RETURN_IF_ERROR(PostProcessor(element, "post_processor", 0));
  }
  ASSIGN_OR_RETURN(element, json_.Require(top, "model", "the document"));
  RETURN_IF_ERROR(Model(element));
  if (top["added_tokens"].get(element) == simdjson::SUCCESS &&
      !element.is_null()) {
    ASSIGN_OR_RETURN(const Array added, json_.AsArray(element, "added_tokens"));
    RETURN_IF_ERROR(AddedTokens(added));
  }
  return std::move(file_);
}

absl::Status Parser::Normalizer(Element element, const std::string& key,
                                int depth) {
  if (element.is_null()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Object object, json_.AsObject(element, key));
  ASSIGN_OR_RETURN(const std::string_view type, json_.Type(object, key));
  if (type == "NFC") {
    RETURN_IF_ERROR(json_.OnlyMembers(object, key, {"type"}));
    file_.nfc = true;
    return absl::OkStatus();
  }
  if (type == "Sequence" && depth < kMaxSequenceDepth) {
    RETURN_IF_ERROR(json_.OnlyMembers(object, key, {"type", "normalizers"}));
    ASSIGN_OR_RETURN(const Element list,
                     json_.Require(object, "normalizers", key));
    const std::string list_key = key + ".normalizers";
    ASSIGN_OR_RETURN(const Array steps, json_.AsArray(list, list_key));
    size_t index = 0;
    for (const Element step : steps) {
      RETURN_IF_ERROR(
          Normalizer(step, Cat(list_key, "[", index++, "]"), depth + 1));
    }
    return absl::OkStatus();
  }
  return json_.Error(
      Cat(key, ".type"), QuotedForMessage(type),
      " is not supported; supported: null, NFC, Sequence of these (",
      kMaxSequenceDepth, " levels)");
}

absl::Status Parser::PreTokenizer(Element element, const std::string& key,
                                  int depth) {
  ASSIGN_OR_RETURN(const Object object, json_.AsObject(element, key));
  ASSIGN_OR_RETURN(const std::string_view type, json_.Type(object, key));
  if (byte_level_) return json_.Error(key, "nothing may follow ByteLevel");
  if (type == "Split") return Split(object, key);
  if (type == "ByteLevel") return ByteLevel(object, key);
  if (type == "Sequence" && depth < kMaxSequenceDepth) {
    RETURN_IF_ERROR(json_.OnlyMembers(object, key, {"type", "pretokenizers"}));
    ASSIGN_OR_RETURN(const Element list,
                     json_.Require(object, "pretokenizers", key));
    const std::string list_key = key + ".pretokenizers";
    ASSIGN_OR_RETURN(const Array steps, json_.AsArray(list, list_key));
    size_t index = 0;
    for (const Element step : steps) {
      RETURN_IF_ERROR(
          PreTokenizer(step, Cat(list_key, "[", index++, "]"), depth + 1));
    }
    return absl::OkStatus();
  }
  return json_.Error(
      Cat(key, ".type"), QuotedForMessage(type),
      " is not supported; supported: Split, ByteLevel, Sequence of "
      "these (",
      kMaxSequenceDepth, " levels)");
}

absl::Status Parser::Split(Object object, const std::string& key) {
  RETURN_IF_ERROR(json_.OnlyMembers(object, key,
                                    {"type", "pattern", "behavior", "invert"}));
  ASSIGN_OR_RETURN(Element element, json_.Require(object, "behavior", key));
  ASSIGN_OR_RETURN(const std::string_view behavior,
                   json_.AsString(element, key + ".behavior"));
  if (behavior != "Isolated") {
    return json_.Error(key + ".behavior", QuotedForMessage(behavior),
                       " is not supported; supported: \"Isolated\"");
  }
  ASSIGN_OR_RETURN(const bool invert,
                   json_.BoolOr(object, "invert", key, false));
  if (invert) {
    return json_.Error(key + ".invert",
                       "true is not supported; supported: false");
  }
  ASSIGN_OR_RETURN(element, json_.Require(object, "pattern", key));
  const std::string pattern_key = key + ".pattern";
  ASSIGN_OR_RETURN(const Object pattern, json_.AsObject(element, pattern_key));
  RETURN_IF_ERROR(json_.OnlyMembers(pattern, pattern_key, {"Regex"}));
  ASSIGN_OR_RETURN(element, json_.Require(pattern, "Regex", pattern_key));
  ASSIGN_OR_RETURN(const std::string_view regex,
                   json_.AsString(element, pattern_key + ".Regex"));
  // Compiled here for the sake of the message; Tokenizer compiles again.
  const auto compiled = SplitPattern::Compile(regex);
  if (!compiled.ok()) {
    return json_.Error(pattern_key + ".Regex", compiled.status().message());
  }
  if (file_.split_patterns.size() == kMaxSplits) {
    return json_.Error(key, "there are more than ", kMaxSplits, " Split steps");
  }
  file_.split_patterns.emplace_back(regex);
  return absl::OkStatus();
}

absl::Status Parser::ByteLevel(Object object, const std::string& key) {
  RETURN_IF_ERROR(json_.OnlyMembers(
      object, key, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  ASSIGN_OR_RETURN(const bool prefix,
                   json_.BoolOr(object, "add_prefix_space", key, true));
  if (prefix) {
    return json_.Error(key + ".add_prefix_space",
                       "true (the default) is not supported; supported: false");
  }
  ASSIGN_OR_RETURN(const bool regex,
                   json_.BoolOr(object, "use_regex", key, true));
  if (regex) file_.split_patterns.emplace_back(kGpt2SplitPattern);
  byte_level_ = true;
  return absl::OkStatus();
}

absl::Status Parser::Decoder(Element element) {
  if (element.is_null()) {
    return json_.Error("decoder",
                       "null is not supported; supported: ByteLevel");
  }
  ASSIGN_OR_RETURN(const Object object, json_.AsObject(element, "decoder"));
  ASSIGN_OR_RETURN(const std::string_view type, json_.Type(object, "decoder"));
  if (type != "ByteLevel") {
    return json_.Error("decoder.type", QuotedForMessage(type),
                       " is not supported; supported: ByteLevel");
  }
  return json_.OnlyMembers(
      object, "decoder",
      {"type", "add_prefix_space", "trim_offsets", "use_regex"});
}

absl::Status Parser::PostProcessor(Element element, const std::string& key,
                                   int depth) {
  if (element.is_null()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Object object, json_.AsObject(element, key));
  ASSIGN_OR_RETURN(const std::string_view type, json_.Type(object, key));
  if (type == "ByteLevel") {
    return json_.OnlyMembers(
        object, key, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  }
  if (type == "TemplateProcessing") return Template(object, key);
  if (type == "Sequence" && depth < kMaxSequenceDepth) {
    RETURN_IF_ERROR(json_.OnlyMembers(object, key, {"type", "processors"}));
    ASSIGN_OR_RETURN(const Element list,
                     json_.Require(object, "processors", key));
    const std::string list_key = key + ".processors";
    ASSIGN_OR_RETURN(const Array steps, json_.AsArray(list, list_key));
    size_t index = 0;
    for (const Element step : steps) {
      RETURN_IF_ERROR(
          PostProcessor(step, Cat(list_key, "[", index++, "]"), depth + 1));
    }
    return absl::OkStatus();
  }
  return json_.Error(
      Cat(key, ".type"), QuotedForMessage(type),
      " is not supported; supported: null, ByteLevel, Sequence of "
      "these, TemplateProcessing that adds no token");
}

absl::Status Parser::Template(Object object, const std::string& key) {
  ASSIGN_OR_RETURN(const Element single, json_.Require(object, "single", key));
  const std::string single_key = key + ".single";
  ASSIGN_OR_RETURN(const Array pieces, json_.AsArray(single, single_key));
  for (const Element piece : pieces) {
    ASSIGN_OR_RETURN(const Object item, json_.AsObject(piece, single_key));
    Element sequence;
    if (item["Sequence"].get(sequence) != simdjson::SUCCESS) {
      return json_.Error(single_key,
                         "adds tokens to every text, which is not supported; "
                         "supported is only {\"Sequence\": ..}");
    }
  }
  return absl::OkStatus();
}

absl::Status Parser::Model(Element element) {
  ASSIGN_OR_RETURN(const Object model, json_.AsObject(element, "model"));
  RETURN_IF_ERROR(json_.OnlyMembers(
      model, "model",
      {"type", "dropout", "unk_token", "continuing_subword_prefix",
       "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges",
       "vocab", "merges"}));
  ASSIGN_OR_RETURN(const std::string_view type, json_.Type(model, "model"));
  if (type != "BPE") {
    return json_.Error("model.type", QuotedForMessage(type),
                       " is not supported; supported: BPE");
  }
  for (const std::string_view member :
       {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
        "byte_fallback"}) {
    RETURN_IF_ERROR(json_.OnlyEmpty(model, member, "model"));
  }
  ASSIGN_OR_RETURN(file_.ignore_merges,
                   json_.BoolOr(model, "ignore_merges", "model", false));
  ASSIGN_OR_RETURN(element, json_.Require(model, "vocab", "model"));
  ASSIGN_OR_RETURN(const Object vocab, json_.AsObject(element, "model.vocab"));
  RETURN_IF_ERROR(Vocabulary(vocab));
  ASSIGN_OR_RETURN(element, json_.Require(model, "merges", "model"));
  ASSIGN_OR_RETURN(const Array merges, json_.AsArray(element, "model.merges"));
  return Merges(merges);
}

absl::Status Parser::Vocabulary(Object vocab) {
  const auto key_of = [](std::string_view spelling) {
    return Cat("model.vocab[", QuotedForMessage(spelling), "]");
  };
  std::vector<std::pair<std::string_view, int32_t>> entries;
  int32_t size = 0;
  for (const auto member : vocab) {
    int64_t id;
    // The common case without building a key for a message.
    if (member.value.get(id) != simdjson::SUCCESS || id < 0 ||
        id >= kMaxVocabSize) {
      return AsId(member.value, key_of(member.key)).status();
    }
    entries.emplace_back(member.key, static_cast<int32_t>(id));
    size = std::max(size, static_cast<int32_t>(id) + 1);
  }
  file_.tokens.resize(size);
  taken_.resize(size);
  file_.ids.reserve(entries.size());
  for (const auto& [spelling, id] : entries) {
    if (spelling.empty())
      return json_.Error(key_of(spelling), "is an empty token");
    if (taken_[id]) {
      return json_.Error(key_of(spelling), "id ", id, " is there twice");
    }
    taken_[id] = true;
    std::string& bytes = file_.tokens[id];
    std::optional<std::string> spelled = BytesFromSpelling(spelling);
    bool is_new;
    if (spelled.has_value()) {
      bytes = *std::move(spelled);
      is_new = file_.ids.emplace(bytes, id).second;
    } else {
      bytes = spelling;
      is_new = other_spellings_.emplace(bytes, id).second;
    }
    if (!is_new) return json_.Error(key_of(spelling), "is there twice");
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const auto it = file_.ids.find(std::string_view(&c, 1));
    if (it == file_.ids.end()) {
      return json_.Error(
          "model.vocab", "lacks ",
          QuotedForMessage(SpellingFromBytes(std::string_view(&c, 1))),
          ", the token of byte ", byte,
          "; supported are vocabularies with all 256");
    }
    file_.byte_tokens[byte] = it->second;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::pair<std::string_view, std::string_view>>
Parser::MergeParts(Element element, size_t index) const {
  const auto refuse = [&] {
    return json_.Error(Cat("model.merges[", index, "]"),
                       "must be \"left right\" or [\"left\", \"right\"]");
  };
  std::string_view text;
  if (element.get(text) == simdjson::SUCCESS) {
    const size_t space = text.find(' ');
    if (space == std::string_view::npos ||
        text.find(' ', space + 1) != std::string_view::npos) {
      return refuse();
    }
    return std::pair(text.substr(0, space), text.substr(space + 1));
  }
  Array array;
  if (element.get(array) != simdjson::SUCCESS || array.size() != 2) {
    return refuse();
  }
  std::string_view left, right;
  if (array.at(0).get(left) != simdjson::SUCCESS ||
      array.at(1).get(right) != simdjson::SUCCESS) {
    return refuse();
  }
  return std::pair(left, right);
}

absl::StatusOr<int32_t> Parser::MergeToken(std::string_view spelling,
                                           size_t index,
                                           std::string* bytes) const {
  const auto refuse = [&](std::string_view reason) {
    return json_.Error(Cat("model.merges[", index, "]"),
                       QuotedForMessage(spelling), " ", reason);
  };
  std::optional<std::string> spelled = BytesFromSpelling(spelling);
  if (!spelled.has_value()) {
    return refuse("has a character outside of the byte-level alphabet");
  }
  const auto it = file_.ids.find(*spelled);
  if (it == file_.ids.end()) return refuse("is not in model.vocab");
  *bytes = *std::move(spelled);
  return it->second;
}

absl::Status Parser::Merges(Array merges) {
  absl::flat_hash_set<uint64_t> pairs;
  pairs.reserve(merges.size());
  file_.merges.reserve(merges.size());
  std::string left_bytes, right_bytes;
  size_t index = 0;
  for (const Element element : merges) {
    ASSIGN_OR_RETURN(const auto parts, MergeParts(element, index));
    ASSIGN_OR_RETURN(const int32_t left,
                     MergeToken(parts.first, index, &left_bytes));
    ASSIGN_OR_RETURN(const int32_t right,
                     MergeToken(parts.second, index, &right_bytes));
    left_bytes += right_bytes;
    const auto result = file_.ids.find(left_bytes);
    if (result == file_.ids.end()) {
      return json_.Error(Cat("model.merges[", index, "]"), "gives ",
                         QuotedForMessage(SpellingFromBytes(left_bytes)),
                         ", which is not in model.vocab");
    }
    if (!pairs.insert(static_cast<uint64_t>(left) << 32 | right).second) {
      return json_.Error(Cat("model.merges[", index, "]"), "is there twice");
    }
    file_.merges.push_back({left, right, result->second});
    ++index;
  }
  return absl::OkStatus();
}

std::optional<int32_t> Parser::IdOfSpelling(std::string_view spelling) const {
  if (const auto bytes = BytesFromSpelling(spelling)) {
    if (const auto it = file_.ids.find(*bytes); it != file_.ids.end()) {
      return it->second;
    }
    return std::nullopt;
  }
  const auto it = other_spellings_.find(AbslView(spelling));
  if (it == other_spellings_.end()) return std::nullopt;
  return it->second;
}

absl::Status Parser::AddedTokens(Array added) {
  // Array::size() saturates, so count here.
  size_t count = 0;
  for (const Element element : added) {
    const std::string key = Cat("added_tokens[", count, "]");
    if (++count > kMaxAddedTokens) {
      return json_.Error("added_tokens", "has more than ", kMaxAddedTokens);
    }
    RETURN_IF_ERROR(AddToken(element, key));
  }
  absl::flat_hash_set<std::string_view> contents;
  absl::flat_hash_set<int32_t> ids;
  int32_t size = static_cast<int32_t>(file_.tokens.size());
  for (const AddedToken& token : file_.added_tokens) {
    if (!contents.insert(token.content).second) {
      return json_.Error("added_tokens", QuotedForMessage(token.content),
                         " is there twice");
    }
    if (!ids.insert(token.id).second) {
      return json_.Error("added_tokens", "id ", token.id, " is there twice");
    }
    size = std::max(size, token.id + 1);
  }
  if (size > static_cast<int32_t>(file_.tokens.size())) {
    // Growing moves the strings that `ids` looks at, so build it anew.
    std::vector<int32_t> spelled;
    spelled.reserve(file_.ids.size());
    for (const auto& [bytes, id] : file_.ids) spelled.push_back(id);
    file_.ids.clear();
    file_.tokens.resize(size);
    for (const int32_t id : spelled) file_.ids.emplace(file_.tokens[id], id);
  }
  // A token that is in the vocabulary too keeps the bytes it has there.
  taken_.resize(file_.tokens.size());
  for (const AddedToken& token : file_.added_tokens) {
    if (!taken_[token.id]) file_.tokens[token.id] = token.content;
  }
  return absl::OkStatus();
}

absl::Status Parser::AddToken(Element element, const std::string& key) {
  ASSIGN_OR_RETURN(const Object object, json_.AsObject(element, key));
  RETURN_IF_ERROR(json_.OnlyMembers(object, key,
                                    {"id", "content", "single_word", "lstrip",
                                     "rstrip", "normalized", "special"}));
  AddedToken token;
  ASSIGN_OR_RETURN(Element member, json_.Require(object, "id", key));
  ASSIGN_OR_RETURN(token.id, AsId(member, key + ".id"));
  ASSIGN_OR_RETURN(member, json_.Require(object, "content", key));
  ASSIGN_OR_RETURN(const std::string_view content,
                   json_.AsString(member, key + ".content"));
  if (content.empty() || content.size() > kMaxAddedTokenBytes) {
    return json_.Error(key + ".content", "must have 1 to ", kMaxAddedTokenBytes,
                       " bytes, not ", content.size());
  }
  token.content = content;
  ASSIGN_OR_RETURN(token.single_word,
                   json_.BoolOr(object, "single_word", key, false));
  ASSIGN_OR_RETURN(token.lstrip, json_.BoolOr(object, "lstrip", key, false));
  ASSIGN_OR_RETURN(token.rstrip, json_.BoolOr(object, "rstrip", key, false));
  ASSIGN_OR_RETURN(token.special, json_.BoolOr(object, "special", key, false));
  ASSIGN_OR_RETURN(token.normalized,
                   json_.BoolOr(object, "normalized", key, !token.special));
  const std::optional<int32_t> in_vocab = IdOfSpelling(content);
  const bool id_in_vocab =
      token.id < static_cast<int32_t>(taken_.size()) && taken_[token.id];
  if (in_vocab.has_value() && *in_vocab != token.id) {
    return json_.Error(key, QuotedForMessage(content), " has id ", token.id,
                       " here and id ", *in_vocab, " in model.vocab");
  }
  if (!in_vocab.has_value() && id_in_vocab) {
    return json_.Error(key, "id ", token.id, " belongs to another token, ",
                       QuotedForMessage(file_.tokens[token.id]),
                       " in model.vocab");
  }
  file_.added_tokens.push_back(std::move(token));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerFile> ParseTokenizerFile(std::string_view json,
                                                 std::string_view name) {
  return Parser(name).Run(json);
}

}  // namespace moebius
