#include "deploy/cli/manual.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class ManualTest : public ::testing::Test {
 protected:
  ManualTest() {
    CLI::App* serve = app_.add_subcommand("serve", "Serve it. With flags.");
    serve->add_option("-c,--config", text_, ".dots first, \\back and it's")
        ->option_text("FILE");
    serve->add_option("--layout", text_, "One of them.")->option_text("ep|tp");
    serve->add_option("--secret", text_, "unseen")->group("");
    serve->footer("Example:\n  serve it\nEnd.");
    CLI::App* bench = app_.add_subcommand("bench", "Measure.");
    bench->add_subcommand("step", "Steps.");
    app_.add_subcommand("build", "Of the build.")->group("");
  }

  const CLI::App& Serve() { return *app_.get_subcommand("serve"); }

  std::string text_;
  CLI::App app_{"A program.", "prog"};
};

TEST_F(ManualTest, EveryShownCommandHasAPageAndNoOther) {
  std::vector<std::string> names;
  for (const CLI::App* command : ShownCommands(app_)) {
    names.push_back(PageName(*command));
  }
  EXPECT_THAT(names, ElementsAre("prog", "prog-serve", "prog-bench",
                                 "prog-bench-step"));
}

TEST_F(ManualTest, PageSaysWhatHelpSays) {
  const std::string page = ManPage(Serve());
  EXPECT_THAT(page, HasSubstr("prog\\-serve \\- Serve it\n"));
  EXPECT_THAT(page,
              HasSubstr("\\fB\\-c\\fR, \\fB\\-\\-config\\fR \\fIFILE\\fR"));
  EXPECT_THAT(page, Not(HasSubstr("secret")));
  EXPECT_THAT(page, HasSubstr("\\fBprog\\fR(1)"));
  EXPECT_THAT(page, HasSubstr(".nf\n  serve it\n.fi\nEnd."));
}

TEST_F(ManualTest, TextIsNoRequestOfRoff) {
  EXPECT_THAT(ManPage(Serve()),
              HasSubstr("\n\\&.dots first, \\eback and it's"));
}

TEST_F(ManualTest, ShellsHearOfCommandsFlagsAndValues) {
  const std::string bash = BashCompletion(app_);
  EXPECT_THAT(bash, HasSubstr("'prog') words='serve bench -h --help'"));
  EXPECT_THAT(bash, HasSubstr("'prog serve --layout') "
                              "COMPREPLY=($(compgen -W 'ep tp'"));
  EXPECT_THAT(bash, HasSubstr("'prog serve -c'|'prog serve --config') "
                              "COMPREPLY=($(compgen -f"));
  const std::string fish = FishCompletion(app_);
  EXPECT_THAT(fish, HasSubstr("-l layout -f -a 'ep tp' -r"));
  EXPECT_THAT(fish, HasSubstr("'.dots first, \\back and it'\\''s'"));
}

}  // namespace
}  // namespace moebius
