// The tokenizer against what the Hugging Face library gives: for Qwen3
// (data/qwen3-tokens.json), for the small checkpoint (its reference.json), and
// for other pipelines over the small vocabulary (data/pipeline-rows.json).
#include "coordinator/text/streaming_detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "gmock/gmock.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/text/tokenizer_files.h"

namespace moebius {
namespace {

using Ids = std::vector<int32_t>;

TEST(Qwen3Tokenizer, EveryRowOfTheReferenceAgrees) {
  const Tokenizer* tokenizer = Qwen3();
  ASSERT_NE(tokenizer, nullptr);
  const nlohmann::json rows =
      ReadJson("tests/unit/coordinator/text/data/qwen3-tokens.json");
  ASSERT_GE(rows.size(), 200u);
  for (const auto& row : rows) {
    const auto text = row["text"].get<std::string>();
    const auto expected = row["ids"].get<Ids>();
    const auto ids = tokenizer->Encode(text);
    ASSERT_THAT(ids, IsOk());
    EXPECT_EQ(*ids, expected) << text;
    const auto decoded = row["decoded"].get<std::string>();
    EXPECT_EQ(tokenizer->Decode(expected, /*skip_special=*/false), decoded);
    StreamingDetokenizer stream(tokenizer, /*skip_special=*/false);
    std::string streamed;
    for (const int32_t id : expected) streamed += stream.Append(id);
    streamed += stream.Flush();
    EXPECT_EQ(streamed, decoded);
  }
}

TEST(Qwen3Tokenizer, KnowsItsSpecialTokens) {
  const Tokenizer* tokenizer = Qwen3();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->TokenId("<|im_end|>"), 151645);
  EXPECT_TRUE(tokenizer->IsSpecial(151645));
  EXPECT_EQ(tokenizer->TokenBytes(151645), "<|im_end|>");
  // Added, but not special: it stays in the text.
  const auto think = tokenizer->TokenId("<think>");
  ASSERT_TRUE(think.has_value());
  EXPECT_FALSE(tokenizer->IsSpecial(*think));
  EXPECT_EQ(tokenizer->Decode(Ids{*think, 151645}, /*skip_special=*/true),
            "<think>");
  EXPECT_EQ(tokenizer->vocab_size(), 151669);
}

TEST(Qwen3Tokenizer, EveryTokenIsFoundByItsBytes) {
  const Tokenizer* tokenizer = Qwen3();
  ASSERT_NE(tokenizer, nullptr);
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
    ASSERT_EQ(tokenizer->TokenId(tokenizer->TokenBytes(id)), id);
  }
}

TEST(VerseMoeTokenizer, EveryRowOfTheReferenceAgrees) {
  const Tokenizer* tokenizer = VerseMoe();
  ASSERT_NE(tokenizer, nullptr);
  const nlohmann::json reference = ReadJson("models/verse-moe/reference.json");
  const auto& rows = reference["rows"];
  ASSERT_GE(rows.size(), 20u);
  for (const auto& row : rows) {
    const auto ids = tokenizer->Encode(row["prompt"].get<std::string>());
    ASSERT_THAT(ids, IsOk());
    EXPECT_EQ(*ids, row["prompt_ids"].get<Ids>()) << row["prompt"];
    EXPECT_EQ(tokenizer->Decode(row["greedy_ids"].get<Ids>(),
                                /*skip_special=*/false),
              row["greedy_text"].get<std::string>());
  }
}

TEST(Pipelines, EveryRowOfTheReferenceAgrees) {
  const nlohmann::json file =
      ReadJson("tests/unit/coordinator/text/data/pipeline-rows.json");
  ASSERT_EQ(file["cases"].size(), 7u);
  for (const auto& one : file["cases"]) {
    SCOPED_TRACE(one["name"].get<std::string>());
    nlohmann::json changed = ReadJson(kVerseMoePath);
    changed.merge_patch(one["patch"]);
    const auto tokenizer = FromJson(changed);
    ASSERT_THAT(tokenizer, IsOk());
    ASSERT_GE(one["rows"].size(), 40u);
    for (const auto& row : one["rows"]) {
      const auto ids = (*tokenizer)->Encode(row["text"].get<std::string>());
      ASSERT_THAT(ids, IsOk());
      EXPECT_EQ(*ids, row["ids"].get<Ids>()) << row["text"];
      EXPECT_EQ((*tokenizer)->Decode(*ids, /*skip_special=*/false),
                row["decoded"].get<std::string>());
    }
  }
}

// Older files write a merge as one string.
TEST(Pipelines, MergesAsStringsMeanTheSame) {
  nlohmann::json changed = ReadJson(kVerseMoePath);
  for (auto& merge : changed["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  const auto tokenizer = FromJson(changed);
  ASSERT_THAT(tokenizer, IsOk());
  const nlohmann::json reference = ReadJson("models/verse-moe/reference.json");
  ASSERT_GE(reference["rows"].size(), 20u);
  for (const auto& row : reference["rows"]) {
    EXPECT_EQ((*tokenizer)->Encode(row["prompt"].get<std::string>()).value(),
              row["prompt_ids"].get<Ids>());
  }
}

}  // namespace
}  // namespace moebius
