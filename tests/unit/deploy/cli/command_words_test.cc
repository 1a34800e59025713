// What is said about words that no command knows.
#include "deploy/cli/command_words.h"

#include "common/base/near_miss.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(NearMiss, NearestNameTable) {
  const std::vector<std::string_view> commands = {"serve", "status", "layout",
                                                  "bench", "chaos",  "demo"};
  const std::vector<std::string_view> layouts = {"ep", "tp", "auto"};
  const struct {
    std::string_view word;
    const std::vector<std::string_view>& names;
    std::string_view nearest;
  } kTable[] = {
      {"sideways", layouts, ""},
      {"", commands, ""},
      {"x", layouts, ""},
      {"xx", layouts, ""},  // two slips of two are another word
      {"run", commands, ""},
      {"sreve", commands, "serve"},
      {"server", commands, "serve"},
      {"stat", commands, "status"},  // two too few
      {"sta", commands, ""},
      {"lyaout", commands, "layout"},  // neighbours are one slip
      {"bnehc", commands, "bench"},    // twice
      {"serve", commands, "serve"},
      {"pe", layouts, "ep"},
      {"et", layouts, "ep"},
      {"atuo", layouts, "auto"},
      {"dem", commands, "demo"},
  };
  for (const auto& row : kTable) {
    EXPECT_EQ(NearestName(row.word, row.names), row.nearest) << row.word;
  }
}

TEST(NearMiss, LongWordsAreCut) {
  EXPECT_EQ(NearestName(std::string(100'000, 'a'), {"auto"}), "");
}

// A program with commands, flags and a positional.
class UnknownWordTest : public testing::Test {
 protected:
  UnknownWordTest() : app_("", "prog") {
    app_.add_flag("--version", flag_);
    CLI::App* serve = app_.add_subcommand("serve");
    serve->add_option("-c,--config", text_);
    serve->add_option("--port", text_);
    serve->add_flag("--watch", flag_);
    CLI::App* layout = app_.add_subcommand("layout");
    layout->add_option("layout", text_);
    layout->add_option("--timeout", text_);
    CLI::App* bench = app_.add_subcommand("bench");
    bench->add_subcommand("switch")->add_option("--streams", text_);
    bench->add_subcommand("serve")->add_option("--url", text_);
  }

  std::string Of(const std::vector<std::string>& words) const {
    return UnknownWord(app_, words);
  }

  CLI::App app_;
  bool flag_ = false;
  std::string text_;
};

TEST_F(UnknownWordTest, NamesTheWordAndTheNearestKnownOne) {
  const struct {
    std::vector<std::string> words;
    std::string said;
  } kTable[] = {
      {{"sreve"},
       "`prog` knows no command 'sreve' (did you mean 'serve'?); there are "
       "serve, layout, bench"},
      {{"run"},
       "`prog` knows no command 'run'; there are serve, layout, bench"},
      {{"--verison"},
       "`prog` knows no flag '--verison' (did you mean '--version'?)"},
      {{"serve", "--prot", "80"},
       "`prog serve` knows no flag '--prot' (did you mean '--port'?)"},
      {{"serve", "--prot=80"},
       "`prog serve` knows no flag '--prot' (did you mean '--port'?)"},
      {{"serve", "-port", "80"},
       "`prog serve` knows no flag '-port' (did you mean '--port'?)"},
      {{"serve", "--port", "80", "--wacth"},
       "`prog serve` knows no flag '--wacth' (did you mean '--watch'?)"},
      {{"serve", "--nonsense"}, "`prog serve` knows no flag '--nonsense'"},
      {{"serve", "--watch", "layuot"},
       "`prog serve` expects no word 'layuot' there"},
      {{"layout", "--timeot", "3", "tp"},
       "`prog layout` knows no flag '--timeot' (did you mean '--timeout'?)"},
      {{"layout", "tp", "ep"}, "`prog layout` expects no word 'ep' there"},
      {{"bench", "swich"},
       "`prog bench` knows no command 'swich' (did you mean 'switch'?); there "
       "are switch, serve"},
      {{"bench", "switch", "--stream", "8"},
       "`prog bench switch` knows no flag '--stream' (did you mean "
       "'--streams'?)"},
      {{"bad\x1b[31m"},
       "`prog` knows no command 'bad\\x1b[31m'; there are serve, layout, "
       "bench"},
  };
  for (const auto& row : kTable) EXPECT_EQ(Of(row.words), row.said);
}

TEST_F(UnknownWordTest, KnownWordsAndValuesAreNotNamed) {
  for (const std::vector<std::string>& words :
       std::vector<std::vector<std::string>>{
           {},
           {"--version"},
           {"serve", "--port", "--prot"},  // a value, whatever it looks like
           {"serve", "-c", "file"},
           {"serve", "-cfile"},
           {"serve", "--config=--nonsense"},
           {"layout", "sideways"},
           {"layout", "-3"},
           {"layout", "--timeout", "3", "tp"},
           {"bench", "switch", "--streams", "8"},
           {"bench"},
           {"serve", "--", "--nonsense"}}) {
    EXPECT_EQ(Of(words), "");
  }
}

TEST(OneOf, NamesTheNearest) {
  const CLI::Validator check = OneOf({"ep", "tp", "auto"});
  std::string good = "tp";
  std::string near = "atuo";
  std::string far = "sideways";
  EXPECT_EQ(check(good), "");
  EXPECT_EQ(check(near),
            "allowed is one of ep, tp, auto, not 'atuo' (did you mean "
            "'auto'?)");
  EXPECT_EQ(check(far), "allowed is one of ep, tp, auto, not 'sideways'");
}

TEST(LayoutWord, TakesLayoutsAndNamesTheNearest) {
  const CLI::Validator check = LayoutWord(/*also_auto=*/true);
  for (std::string good : {"ep", "tp", "tp2", "tp16", "auto"}) {
    EXPECT_EQ(check(good), "") << good;
  }
  std::string near = "atuo", far = "sideways", automatic = "auto";
  const std::string allowed =
      "allowed is ep, tp, or tpN with N workers in a group (tp2)";
  EXPECT_EQ(check(near),
            allowed + ", or auto, not 'atuo' (did you mean 'auto'?)");
  EXPECT_EQ(check(far), allowed + ", or auto, not 'sideways'");
  EXPECT_EQ(LayoutWord(/*also_auto=*/false)(automatic),
            allowed + ", not 'auto'");
}

}  // namespace
}  // namespace moebius
