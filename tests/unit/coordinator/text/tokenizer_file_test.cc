// Malformed and unsupported tokenizer files: an error that names the file,
// the key and the reason, never a crash.
#include "coordinator/text/tokenizer_file.h"

#include <filesystem>

#include "gmock/gmock.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/text/tokenizer_files.h"

namespace moebius {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;
using Json = nlohmann::json;

// The small file with `value` at `pointer`.
Json With(const char* pointer, Json value) {
  Json file = SmallTokenizer();
  file[Json::json_pointer(pointer)] = std::move(value);
  return file;
}

Json Without(const char* pointer, const char* member) {
  Json file = SmallTokenizer();
  file[Json::json_pointer(pointer)].erase(member);
  return file;
}

void ExpectError(const Json& file, const std::string& key,
                 const std::string& reason) {
  EXPECT_THAT(FromJson(file), StatusIs(absl::StatusCode::kInvalidArgument,
                                       AllOf(StartsWith("small.json: " + key),
                                             HasSubstr(reason))));
}

void ExpectTextError(const std::string& text, const std::string& reason) {
  EXPECT_THAT(Tokenizer::FromJson(text, "small.json"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(StartsWith("small.json: "), HasSubstr(reason))));
}

TEST(TokenizerFile, AMissingFileIsNotFoundAndAFolderInvalid) {
  EXPECT_THAT(Tokenizer::Load("/nonexistent/tokenizer.json"),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("/nonexistent/tokenizer.json")));
  EXPECT_THAT(Tokenizer::Load("/"),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(TokenizerFile, RefusesWhatIsNoJson) {
  ExpectTextError("", "is not a JSON document");
  ExpectTextError("{", "is not a JSON document");
  ExpectTextError("{} {}", "is not a JSON document");
  ExpectTextError("[]", "must be an object");
  ExpectTextError("\"text\"", "must be an object");
  std::string file = SmallTokenizer().dump();
  ExpectTextError(file.substr(0, file.size() / 2), "is not a JSON document");
  file[file.find("<|end|>")] = '\xFF';
  ExpectTextError(file, "UTF-8");
}

TEST(TokenizerFile, RefusesDeepNesting) {
  ExpectTextError(std::string(1000000, '['), "at most 64 levels");
  std::string nested = "{\"type\":\"NFC\"}";
  for (int i = 0; i < 20; ++i) {
    nested = "{\"type\":\"Sequence\",\"normalizers\":[" + nested + "]}";
  }
  ExpectError(With("/normalizer", Json::parse(nested)),
              "normalizer.normalizers[0]", "8 levels");
}

TEST(TokenizerFile, RefusesUnknownKeys) {
  ExpectError(With("/extra", 1), "the document", "\"extra\" is not known");
  ExpectError(With("/model/extra", 1), "model", "\"extra\" is not known");
  ExpectError(With("/normalizer/extra", 1), "normalizer", "not known");
  ExpectError(With("/pre_tokenizer/extra", 1), "pre_tokenizer", "not known");
  ExpectError(With("/decoder/extra", 1), "decoder", "not known");
  ExpectError(With("/added_tokens/0/extra", 1), "added_tokens[0]",
              "supported: id, content");
  std::string twice = SmallTokenizer().dump();
  twice.insert(1, "\"decoder\":null,");
  ExpectTextError(twice, "\"decoder\" is there twice");
}

TEST(TokenizerFile, RefusesMissingParts) {
  for (const char* member : {"pre_tokenizer", "decoder", "model"}) {
    ExpectError(Without("", member), "the document",
                "lacks \"" + std::string(member));
  }
  for (const char* member : {"type", "vocab", "merges"}) {
    ExpectError(Without("/model", member), "model",
                "lacks \"" + std::string(member));
  }
  for (const char* member : {"id", "content"}) {
    ExpectError(Without("/added_tokens/0", member), "added_tokens[0]",
                "lacks \"" + std::string(member));
  }
}

TEST(TokenizerFile, RefusesOtherPipelines) {
  ExpectError(With("/version", "2.0"), "version", "supported: \"1.0\"");
  ExpectError(With("/version", 1), "version", "must be a string");
  ExpectError(With("/normalizer/type", "NFKC"), "normalizer.type",
              "supported: null, NFC");
  ExpectError(With("/normalizer", "NFC"), "normalizer", "must be an object");
  ExpectError(With("/pre_tokenizer/type", "Metaspace"), "pre_tokenizer.type",
              "supported: Split, ByteLevel");
  ExpectError(With("/pre_tokenizer", nullptr), "pre_tokenizer",
              "must be an object");
  ExpectError(With("/pre_tokenizer/add_prefix_space", true),
              "pre_tokenizer.add_prefix_space", "supported: false");
  ExpectError(Without("/pre_tokenizer", "add_prefix_space"),
              "pre_tokenizer.add_prefix_space", "supported: false");
  ExpectError(With("/decoder", nullptr), "decoder", "supported: ByteLevel");
  ExpectError(With("/decoder/type", "WordPiece"), "decoder.type",
              "supported: ByteLevel");
  ExpectError(With("/post_processor", {{"type", "BertProcessing"}}),
              "post_processor.type", "TemplateProcessing");
  ExpectError(
      With("/post_processor",
           {{"type", "TemplateProcessing"},
            {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}}}}),
      "post_processor.single", "adds tokens");
  ExpectError(With("/model/type", "Unigram"), "model.type", "supported: BPE");
  ExpectError(With("/model/dropout", 0.1), "model.dropout", "only null");
  ExpectError(With("/model/byte_fallback", true), "model.byte_fallback", "");
  ExpectError(With("/model/end_of_word_suffix", "</w>"),
              "model.end_of_word_suffix", "only null");
  ExpectError(With("/model/ignore_merges", 3), "model.ignore_merges",
              "must be true or false");
}

Json Split(const char* regex) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

Json Sequence(std::vector<Json> steps) {
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

const Json& PlainByteLevel() {
  static const Json step = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  return step;
}

TEST(TokenizerFile, RefusesOtherSplits) {
  const std::string first = "pre_tokenizer.pretokenizers[0]";
  const auto with = [](Json split) {
    return With("/pre_tokenizer", Sequence({split, PlainByteLevel()}));
  };
  Json split = Split("a");
  split["behavior"] = "Removed";
  ExpectError(with(split), first + ".behavior", "supported: \"Isolated\"");
  split = Split("a");
  split["invert"] = true;
  ExpectError(with(split), first + ".invert", "supported: false");
  split = Split("a");
  split["pattern"] = {{"String", " "}};
  ExpectError(with(split), first + ".pattern", "supported: Regex");
  split["pattern"] = "a";
  ExpectError(with(split), first + ".pattern", "must be an object");
  ExpectError(with(Split("(a")), first + ".pattern.Regex", "parenthesis");
  ExpectError(with(Split("\\w")), first + ".pattern.Regex", "not supported");
  ExpectError(With("/pre_tokenizer", Sequence({Split("a")})), "pre_tokenizer",
              "no ByteLevel");
  ExpectError(With("/pre_tokenizer", Sequence({PlainByteLevel(), Split("a")})),
              "pre_tokenizer.pretokenizers[1]", "follow ByteLevel");
  ExpectError(
      With("/pre_tokenizer", Sequence(std::vector<Json>(20, Split("a")))),
      "pre_tokenizer.pretokenizers[16]", "more than 16");
}

TEST(TokenizerFile, RefusesIdsOutOfRange) {
  for (const Json& id :
       {Json(-1), Json(kMaxVocabSize), Json(4294967296), Json(1e300),
        Json(18446744073709551615u), Json(1.5), Json("7"), Json(nullptr)}) {
    ExpectError(With("/model/vocab/new", id), "model.vocab[\"new\"]",
                "whole number from 0 to 1048575");
    ExpectError(With("/added_tokens/0/id", id), "added_tokens[0].id",
                "whole number from 0 to 1048575");
  }
}

TEST(TokenizerFile, RefusesDuplicates) {
  ExpectError(With("/model/vocab/new", 5), "model.vocab[", "id 5 is there");
  std::string twice = SmallTokenizer().dump();
  twice.insert(twice.find("\"vocab\":{") + 9, "\"a\":290,");
  ExpectTextError(twice, "model.vocab[\"a\"]: is there twice");
  Json merges = SmallTokenizer()["model"]["merges"];
  merges.push_back(merges[0]);
  ExpectError(With("/model/merges", merges), "model.merges[5]",
              "is there twice");
  Json added = SmallTokenizer()["added_tokens"];
  added.push_back(added[0]);
  ExpectError(With("/added_tokens", added), "added_tokens", "is there twice");
  added[1]["content"] = "other";
  ExpectError(With("/added_tokens", added), "added_tokens",
              "id 300 is there twice");
}

TEST(TokenizerFile, RefusesAVocabularyWithoutAllBytes) {
  ExpectError(Without("/model/vocab", "Ġ"), "model.vocab", "byte 32");
  ExpectError(With("/model/vocab", Json::object()), "model.vocab", "byte 0");
  ExpectError(With("/model/vocab", Json::array()), "model.vocab",
              "must be an object");
  ExpectError(With("/model/vocab/", 299), "model.vocab[\"\"]", "empty token");
}

TEST(TokenizerFile, RefusesMergesThatTheVocabularyLacks) {
  for (const auto& [merge, reason] : std::vector<std::pair<Json, std::string>>{
           {"t zz", "\"zz\" is not in model.vocab"},
           {"z z", "gives \"zz\", which is not in model.vocab"},
           {{"t", "中"}, "outside of the byte-level alphabet"},
           {"t", "must be"},
           {"t h e", "must be"},
           {"t  h", "must be"},
           {"t ", "not in model.vocab"},
           {{"t"}, "must be"},
           {{"t", "h", "e"}, "must be"},
           {{"t", 1}, "must be"},
           {7, "must be"},
           {nullptr, "must be"}}) {
    ExpectError(With("/model/merges/2", merge), "model.merges[2]", reason);
  }
  ExpectError(With("/model/merges", "t h"), "model.merges", "must be a list");
}

TEST(TokenizerFile, RefusesAddedTokensThatContradictTheVocabulary) {
  ExpectError(With("/added_tokens/0/id", 97), "added_tokens[0]",
              "id 97 belongs to another token, \"a\"");
  ExpectError(With("/added_tokens/0/content", "a"), "added_tokens[0]",
              "id 300 here and id 97");
  ExpectError(With("/added_tokens/0/content", ""), "added_tokens[0].content",
              "1 to 1024 bytes");
  ExpectError(With("/added_tokens/0/content", std::string(2000, 'x')),
              "added_tokens[0].content", "not 2000");
  ExpectError(With("/added_tokens/0/special", 1), "added_tokens[0].special",
              "must be true or false");
  ExpectError(With("/added_tokens", "x"), "added_tokens", "must be a list");
  ExpectError(With("/added_tokens/0", "x"), "added_tokens[0]",
              "must be an object");
}

// Every prefix of a file and every file with one byte changed either loads or
// is refused, and what loads works.
TEST(TokenizerFile, DamagedFilesAreRefusedOrWork) {
  const std::string good = SmallTokenizer().dump();
  const auto try_one = [](const std::string& text) {
    const auto tokenizer = Tokenizer::FromJson(text, "damaged.json");
    if (!tokenizer.ok()) {
      EXPECT_THAT(std::string(tokenizer.status().message()),
                  StartsWith("damaged.json: "));
      return;
    }
    const auto ids = (*tokenizer)->Encode("the abc<|end|> the");
    if (ids.ok()) (*tokenizer)->Decode(*ids, false);
  };
  for (size_t size = 0; size < good.size(); size += 7) {
    try_one(good.substr(0, size));
  }
  for (size_t at = 0; at < good.size(); ++at) {
    std::string damaged = good;
    damaged[at] = "\"0{}[],:z\xFF"[at % 11];
    try_one(damaged);
  }
}

TEST(TokenizerFile, AcceptsTheSmallFile) {
  EXPECT_THAT(FromJson(SmallTokenizer()), IsOk());
  EXPECT_THAT(FromJson(With("/normalizer", nullptr)), IsOk());
  EXPECT_THAT(FromJson(Without("", "normalizer")), IsOk());
  EXPECT_THAT(FromJson(Without("", "added_tokens")), IsOk());
  EXPECT_THAT(FromJson(With("/model/unk_token", "<|end|>")), IsOk());
  EXPECT_THAT(FromJson(With(
                  "/post_processor",
                  {{"type", "TemplateProcessing"},
                   {"single", {{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
                   {"special_tokens", Json::object()}})),
              IsOk());
}

}  // namespace
}  // namespace moebius
