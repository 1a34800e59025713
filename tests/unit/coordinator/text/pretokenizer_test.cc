#include "coordinator/text/pretokenizer.h"

#include <vector>

#include "gmock/gmock.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> Pieces(std::string_view pattern,
                                std::string_view text) {
  const auto compiled = SplitPattern::Compile(pattern);
  EXPECT_THAT(compiled, IsOk());
  std::vector<std::string> pieces;
  if (!compiled.ok()) return pieces;
  EXPECT_THAT((*compiled)->Split(text,
                                 [&](std::string_view piece) {
                                   pieces.emplace_back(piece);
                                   return absl::OkStatus();
                                 }),
              IsOk());
  return pieces;
}

TEST(SplitPattern, RefusesWhatWouldMeanSomethingElse) {
  for (const char* pattern :
       {R"(\w+)",   R"(\h)",  R"(\bx)",  "^a",         "a$",         R"((a)\1)",
        R"([\S])",  "[a[b]]", "[a&&b]",  "[]a]",       "(?<name>a)", "(?i)a",
        "(*SKIP)a", "(?R)",   "(?#x)",   "a{,3}",      "a{2}+",      R"(\x41)",
        R"(\u12)",  R"(\p)",  R"(\p{L)", R"(\p{Lx.})", R"(\p{})",    "[a",
        "\\",       R"(\C)",  R"(\K)",   R"([a-\s])",  R"([\s-a])"}) {
    EXPECT_THAT(SplitPattern::Compile(pattern),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("is not supported")))
        << pattern;
  }
}

TEST(SplitPattern, RefusesWhatIsNoPattern) {
  for (const char* pattern : {"(a", "a)", "*", R"(\p{Nonsense})", "[b-a]",
                              R"(\x{110000})", "a{2,1}"}) {
    EXPECT_THAT(SplitPattern::Compile(pattern),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << pattern;
  }
  EXPECT_THAT(
      SplitPattern::Compile(std::string(20000, 'a')),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("20000 bytes")));
  EXPECT_THAT(SplitPattern::Compile("\xFF"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("UTF-8")));
}

TEST(SplitPattern, CostlyMatchesEndInAnError) {
  const auto compiled = SplitPattern::Compile("(?:a|aa|aaa)+\\p{Lu}");
  ASSERT_THAT(compiled, IsOk());
  const std::string text(200, 'a');
  EXPECT_THAT(
      (*compiled)->Split(text, [](auto) { return absl::OkStatus(); }),
      StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("byte 0")));
}

TEST(SplitPattern, ADeepMatchGetsALargerStack) {
  // Each round of the group keeps state to come back to.
  const auto compiled = SplitPattern::Compile("(?:ab|a(?=b)|b)+");
  ASSERT_THAT(compiled, IsOk());
  std::string text;
  for (int i = 0; i < 20000; ++i) text += "ab";
  size_t pieces = 0;
  EXPECT_THAT((*compiled)->Split(text,
                                 [&](std::string_view) {
                                   ++pieces;
                                   return absl::OkStatus();
                                 }),
              IsOk());
  EXPECT_EQ(pieces, 1u);
}

TEST(SplitPattern, TheErrorOfThePieceIsReturned) {
  const auto compiled = SplitPattern::Compile("a");
  ASSERT_THAT(compiled, IsOk());
  int calls = 0;
  EXPECT_THAT((*compiled)->Split("aaa",
                                 [&](std::string_view) {
                                   ++calls;
                                   return absl::AbortedError("enough");
                                 }),
              StatusIs(absl::StatusCode::kAborted));
  EXPECT_EQ(calls, 1);
}

TEST(SplitPattern, MatchesAndWhatIsBetweenArePieces) {
  EXPECT_THAT(Pieces("b+", "aabbbab"), ElementsAre("aa", "bbb", "a", "b"));
  EXPECT_THAT(Pieces("x", "aab"), ElementsAre("aab"));
  EXPECT_THAT(Pieces("x", ""), ElementsAre());
}

TEST(SplitPattern, EmptyMatchesCutAndGoOn) {
  EXPECT_THAT(Pieces("x*", "ax\u00E9"), ElementsAre("a", "x", "\u00E9"));
  EXPECT_THAT(Pieces("(?=b)", "abab"), ElementsAre("a", "ba", "b"));
}

TEST(SplitPattern, BlanksAreTheWhiteSpaceProperty) {
  EXPECT_THAT(Pieces(R"(\s)", "a\u3000b\u0085"),
              ElementsAre("a", "\u3000", "b", "\u0085"));
  // A format character, which PCRE2 alone takes for a blank.
  EXPECT_THAT(Pieces(R"(\s)", "a\u180Eb"), ElementsAre("a\u180Eb"));
  EXPECT_THAT(Pieces(R"([^\s]+)", "a\u180E b"),
              ElementsAre("a\u180E", " ", "b"));
  EXPECT_THAT(Pieces(R"(\v)", "a\v\nb"), ElementsAre("a", "\v", "\nb"));
}

TEST(SplitPattern, ScriptsAreScriptsNotTheirExtensions) {
  // The middle dot is used with Han, but belongs to the script Common.
  EXPECT_THAT(Pieces(R"(\p{Han}+)", "\u4E2D\u30FB\u6587"),
              ElementsAre("\u4E2D", "\u30FB", "\u6587"));
  EXPECT_THAT(Pieces(R"(\p{^Han}+)", "a\u4E2D"), ElementsAre("a", "\u4E2D"));
}

TEST(SplitPattern, Gpt2) {
  EXPECT_THAT(Pieces(kGpt2SplitPattern, "I'm 12  years\n\nold!? "),
              ElementsAre("I", "'m", " 12", " ", " years", "\n", "\n", "old",
                          "!?", " "));
}

}  // namespace
}  // namespace moebius
