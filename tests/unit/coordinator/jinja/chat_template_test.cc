// Loading, errors and bounds of chat templates. What they render is compared
// with Jinja in chat_template_jinja_test.cc.
#include "coordinator/jinja/chat_template.h"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

ChatTemplateInput Input() {
  ChatTemplateInput input;
  input.messages = Json::parse(R"([{"role": "user", "content": "Hi"}])");
  input.now = absl::FromUnixSeconds(0);
  input.zone = absl::UTCTimeZone();
  return input;
}

absl::StatusOr<std::string> Render(const std::string& source,
                                   const ChatTemplateInput& input = Input()) {
  auto parsed = ChatTemplate::Parse(source, {});
  if (!parsed.ok()) return parsed.status();
  return parsed->Render(input);
}

std::string Repeat(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

class Checkpoint : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "chat-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { fs::remove_all(dir_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ / name, std::ios::binary) << text;
  }

  fs::path dir_;
};

TEST_F(Checkpoint, WithoutConfigIsNotFound) {
  EXPECT_THAT(ChatTemplate::Load(dir_),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("tokenizer_config.json")));
}

TEST_F(Checkpoint, WithoutTemplateIsNotFound) {
  Write("tokenizer_config.json", R"({"eos_token": "</s>"})");
  EXPECT_THAT(ChatTemplate::Load(dir_),
              StatusIs(absl::StatusCode::kNotFound,
                       AllOf(HasSubstr("tokenizer_config.json"),
                             HasSubstr("no chat template"))));
}

TEST_F(Checkpoint, MalformedConfigNamesTheFile) {
  Write("tokenizer_config.json", R"({"chat_template": )");
  EXPECT_THAT(ChatTemplate::Load(dir_),
              StatusIs(kInvalid, HasSubstr("tokenizer_config.json")));
}

TEST_F(Checkpoint, MalformedTemplateNamesFileAndLine) {
  Write("tokenizer_config.json", R"({"chat_template": "a\n{% if %}"})");
  EXPECT_THAT(
      ChatTemplate::Load(dir_),
      StatusIs(kInvalid, AllOf(HasSubstr("tokenizer_config.json: "),
                               HasSubstr("line 2: expected an expression"))));
}

TEST_F(Checkpoint, JinjaFileWinsAndIsNamedInErrors) {
  Write("tokenizer_config.json", R"({"chat_template": "from config"})");
  Write("chat_template.jinja", "from file\n");
  auto loaded = ChatTemplate::Load(dir_);
  ASSERT_THAT(loaded, IsOk());
  EXPECT_EQ(*loaded->Render(Input()), "from file");

  Write("chat_template.jinja", "{{ x");
  EXPECT_THAT(ChatTemplate::Load(dir_),
              StatusIs(kInvalid, AllOf(HasSubstr("chat_template.jinja: "),
                                       HasSubstr("line 1: "))));
}

TEST_F(Checkpoint, TooLargeJinjaFileIsRefused) {
  Write("tokenizer_config.json", "{}");
  Write("chat_template.jinja", std::string(jinja::kMaxTemplateBytes + 1, 'x'));
  EXPECT_THAT(ChatTemplate::Load(dir_),
              StatusIs(kInvalid, HasSubstr("chat_template.jinja")));
}

TEST(ChatTemplateConfig, WrongTypesAreNamed) {
  for (const auto& [config, reason] :
       std::vector<std::pair<std::string, std::string>>{
           {R"([])", "must be an object"},
           {R"({"chat_template": 5})", "must be a string or a list"},
           {R"({"chat_template": ["x"]})", "lacks 'name' or 'template'"},
           {R"({"chat_template": [{"name": "default"}]})",
            "lacks 'name' or 'template'"},
           {R"({"chat_template": [{"name": 1, "template": "x"}]})",
            "lacks 'name' or 'template'"},
           {R"({"chat_template": "x", "bos_token": 1})", "'bos_token'"},
           {R"({"chat_template": "x", "eos_token": {"content": 1}})",
            "'eos_token'"}}) {
    EXPECT_THAT(ChatTemplate::FromConfig(Json::parse(config), nullptr),
                StatusIs(kInvalid, HasSubstr(reason)))
        << config;
  }
  EXPECT_THAT(
      ChatTemplate::FromConfig(
          Json::parse(
              R"({"chat_template": [{"name": "rag", "template": "x"}]})"),
          nullptr),
      StatusIs(absl::StatusCode::kNotFound, HasSubstr("'default'")));
}

TEST(ChatTemplateConfig, TheDefaultOfANamedListIsTaken) {
  auto loaded = ChatTemplate::FromConfig(Json::parse(R"({"chat_template": [
      {"name": "tool_use", "template": "tools"},
      {"name": "default", "template": "plain"}]})"),
                                         nullptr);
  ASSERT_THAT(loaded, IsOk());
  EXPECT_EQ(*loaded->Render(Input()), "plain");
}

TEST(ChatTemplateConfig, ToolUseOfANamedListIsTakenWhereThereAreTools) {
  auto input = Input();
  auto loaded = ChatTemplate::FromConfig(Json::parse(R"({"chat_template": [
      {"name": "default", "template": "plain"},
      {"name": "rag", "template": "{{"},
      {"name": "tool_use", "template":
          "{% for p in messages[0].content %}{{ p }}{% endfor %}"}]})"),
                                         nullptr);
  ASSERT_THAT(loaded, IsOk());
  EXPECT_EQ(loaded->content_form(nullptr), ContentForm::kText);
  input.tools = Json::array();
  EXPECT_EQ(*loaded->Render(input), "plain");
  input.tools = Json::parse(R"([{"type": "function"}])");
  EXPECT_EQ(*loaded->Render(input), "Hi");
  EXPECT_EQ(loaded->content_form(input.tools), ContentForm::kPartsForAll);
  // Without a "default" there is nothing for the others.
  loaded = ChatTemplate::FromConfig(Json::parse(R"({"chat_template": [
      {"name": "tool_use", "template": "tools"}]})"),
                                    nullptr);
  ASSERT_THAT(loaded, IsOk());
  EXPECT_EQ(*loaded->Render(input), "tools");
  EXPECT_THAT(loaded->Render(Input()), StatusIs(kInvalid, HasSubstr("tools")));
}

TEST_F(Checkpoint, AFileOfItsOwnIsTakenWhereThereAreTools) {
  Write("chat_template.jinja", "plain");
  fs::create_directory(dir_ / "additional_chat_templates");
  Write("additional_chat_templates/tool_use.jinja", "tools");
  auto loaded = ChatTemplate::Load(dir_);
  ASSERT_THAT(loaded, IsOk());
  auto input = Input();
  EXPECT_EQ(*loaded->Render(input), "plain");
  input.tools = Json::parse(R"([{"type": "function"}])");
  EXPECT_EQ(*loaded->Render(input), "tools");
  Write("additional_chat_templates/tool_use.jinja", "{{");
  EXPECT_THAT(ChatTemplate::Load(dir_),
              StatusIs(kInvalid, HasSubstr("tool_use.jinja: ")));
}

TEST_F(Checkpoint, JinjaFileAloneIsRead) {
  Write("chat_template.jinja", "from file{{ bos_token is defined }}");
  auto loaded = ChatTemplate::Load(dir_);
  ASSERT_THAT(loaded, IsOk());
  EXPECT_EQ(*loaded->Render(Input()), "from fileFalse");
}

TEST(ChatTemplateConfig, SpecialTokensAreVariablesIfTheyAreSet) {
  auto loaded = ChatTemplate::FromConfig(Json::parse(R"({
      "bos_token": null, "eos_token": "</s>",
      "pad_token": {"content": "<pad>", "special": true},
      "chat_template":
          "{{ bos_token is defined }} {{ eos_token }} {{ pad_token }}"})"),
                                         nullptr);
  ASSERT_THAT(loaded, IsOk());
  EXPECT_EQ(*loaded->Render(Input()), "False </s> <pad>");
}

TEST(ChatTemplateRender, RaiseExceptionGivesItsOwnWords) {
  const auto result =
      Render("x\n{{ raise_exception('Roles must alternate: ' ~ 1) }}");
  EXPECT_THAT(result, StatusIs(kInvalid, "Roles must alternate: 1"));
}

TEST(ChatTemplateRender, ErrorsNameTheLineThatFailed) {
  EXPECT_THAT(Render("a\nb\n{{ messages[0].x.y }}\n"),
              StatusIs(kInvalid,
                       "chat template, line 3: 'dict object' has no "
                       "attribute 'x'"));
  // After a macro that is defined elsewhere, the line is the caller's.
  EXPECT_THAT(Render("{% macro m() %}\nx\n{% endmacro %}\n\n{{ m() + 1 }}"),
              StatusIs(kInvalid, HasSubstr("line 5: ")));
  EXPECT_THAT(Render("{% macro m(x) %}\n{{ x + 1 }}{% endmacro %}\n"
                     "{{ m('a') }}"),
              StatusIs(kInvalid, HasSubstr("line 2: ")));
}

TEST(ChatTemplateRender, MalformedTemplatesNameTheLine) {
  for (const std::string source :
       {"{{", "{%", "{#", "{% raw %}", "{{ 'a }}", "{% for %}", "{{ ( }}",
        "{% endfor %}", "{% include 'x' %}", "{% set a.b.c = 1 %}",
        "{{ a..b }}", "{{ 'x' 'y' 5 }}", "{{ '\\ud800' }}", "{{ '\\N{DASH}' }}",
        "\xFF", "{{ 999999999999999999999999999999999999999999 }}",
        "{% for x in y recursive %}{% endfor %}",
        "{% for x in y %}{% macro m() %}{% break %}{% endmacro %}{% endfor "
        "%}"}) {
    EXPECT_THAT(ChatTemplate::Parse("\n" + source, {}),
                StatusIs(kInvalid, StartsWith("chat template, line ")))
        << source;
  }
}

TEST(ChatTemplateRender, ReservedVariablesAreRefused) {
  for (const char* name : {"messages", "tools", "add_generation_prompt"}) {
    auto input = Input();
    input.extra = {{name, 1}};
    EXPECT_THAT(Render("x", input), StatusIs(kInvalid, HasSubstr(name)));
  }
  auto input = Input();
  input.extra = Json::array({1});
  EXPECT_THAT(Render("x", input), StatusIs(kInvalid, HasSubstr("object")));
}

TEST(ChatTemplateRender, InputThatIsNotUtf8IsRefused) {
  auto input = Input();
  input.messages[0]["content"] = "\xFF";
  EXPECT_THAT(Render("{{ messages }}", input),
              StatusIs(kInvalid, HasSubstr("UTF-8")));
}

TEST(ChatTemplateRender, ExtraVariablesAreSeenAndWinOverSpecialTokens) {
  auto parsed = ChatTemplate::Parse("{{ bos_token }}{{ deep.a[1] }}",
                                    {{"bos_token", "<s>"}});
  ASSERT_THAT(parsed, IsOk());
  auto input = Input();
  input.extra = Json::parse(R"({"bos_token": "B", "deep": {"a": [1, 2]}})");
  EXPECT_EQ(*parsed->Render(input), "B2");
}

TEST(ChatTemplateRender, ToolsAreNoneWithoutTools) {
  EXPECT_EQ(*Render("{{ tools is none }} {{ documents is none }}"),
            "True True");
}

TEST(ChatTemplateRender, ManyThreadsRenderOneTemplate) {
  auto parsed = ChatTemplate::Parse(
      "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
      "{{ [1, 'c'] | tojson }}",
      {});
  ASSERT_THAT(parsed, IsOk());
  std::atomic<int> num_right = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        num_right += *parsed->Render(Input()) == "HI[1, \"c\"]";
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(num_right, 400);
}

// Templates that would take all time, memory or stack there is. Each must
// come back with an error.
struct Bomb {
  const char* name;
  std::string source;
  const char* reason;
};

std::vector<Bomb> Bombs() {
  return {
      {"TemplateSize", std::string(jinja::kMaxTemplateBytes + 1, 'x'),
       "more than 1048576"},
      {"Parentheses", "{{ " + Repeat("(", 5000) + Repeat(")", 5000) + " }}",
       "nested deeper"},
      {"Nots", "{{ " + Repeat("not ", 5000) + "x }}", "nested deeper"},
      {"Signs", "{{ " + Repeat("-", 5000) + "1 }}", "nested deeper"},
      {"Ifs", Repeat("{% if 1 %}", 5000) + Repeat("{% endif %}", 5000),
       "nested deeper"},
      {"Elses", "{{ " + Repeat("1 if 0 else ", 5000) + "2 }}", "nested deeper"},
      {"Sums", "{{ 1" + Repeat(" + 1", 5000) + " }}", "higher"},
      {"Attributes", "{{ x" + Repeat(".x", 5000) + " }}", "higher"},
      {"Filters", "{{ x" + Repeat("|list", 5000) + " }}", "higher"},
      {"Calls", "{{ x" + Repeat("()", 5000) + " }}", "higher"},
      {"Conditionals", "{{ 1" + Repeat(" if 1", 5000) + " }}", "higher"},
      {"Recursion", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
       "nested deeper"},
      {"CallerRecursion",
       "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro "
       "%}{{ m() }}",
       "nested deeper"},
      {"FilterRecursion", "{{ 'a'|map(*('map,' * 1000).split(','))|list }}",
       "nested deeper"},
      {"FilterArguments", "{{ 'a'|map(*('map,' * 100000).split(','))|list }}",
       "steps"},
      {"Range", "{% for x in range(1000000000000) %}{% endfor %}",
       "more than 100000 items"},
      {"Loops",
       "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
       "{% endfor %}",
       "steps"},
      {"RepeatedString", "{{ 'x' * 1000000000000000000 }}", "too long"},
      {"Doubling",
       "{% set n = namespace(s='x') %}{% for i in range(99) %}"
       "{% set n.s = n.s + n.s %}{% endfor %}",
       "steps"},
      {"DoublingList",
       "{% set n = namespace(s=[1]) %}{% for i in range(99) %}"
       "{% set n.s = n.s + n.s %}{% endfor %}",
       "steps"},
      {"NestedList",
       "{% set n = namespace(s=[]) %}{% for i in range(9999) %}"
       "{% set n.s = [n.s] %}{% endfor %}",
       "nested deeper"},
      {"NestedMethod",
       "{% set n = namespace(s={}) %}{% for i in range(9999) %}"
       "{% set n.s = {'s': n.s.get} %}{% endfor %}",
       "nested deeper"},
      {"SharedList",  // small in memory, vast when printed
       "{% set n = namespace(s=[1]) %}{% for i in range(60) %}"
       "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
       "steps"},
      {"SharedListAsJson",
       "{% set n = namespace(s=[1]) %}{% for i in range(60) %}"
       "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s|tojson }}",
       "steps"},
      {"SharedListsCompared",
       "{% set n = namespace(s=[1], t=[1]) %}{% for i in range(60) %}"
       "{% set n.s = [n.s, n.s] %}{% set n.t = [n.t, n.t] %}{% endfor %}"
       "{{ n.s == n.t }}",
       "steps"},
      {"AttributePath", "{{ [1]|map(attribute='a.' * 1000000)|list }}",
       "longer than 1024 bytes"},
      {"Circle", "{% set n = namespace() %}{% set n.n = n %}{{ [n] }}",
       "cannot be printed"},
      {"Output",
       "{% set s = 'x' * 1000000 %}{% for i in range(99) %}{{ s }}{% endfor %}",
       "output"},
      {"Indentation", "{{ [[[[1]]]]|tojson(indent=1000000000000) }}", "steps"},
      {"IndentFilter", "{{ ('\\n' * 9999 ~ 'x')|indent(1000000000000) }}",
       "steps"},
      {"Replacing", "{% set s = 'x' * 100000 %}{{ s.replace('x', s) }}",
       "steps"},
      {"FormatWidth", "{{ '%999999999d'|format(1) }}", "too large"},
      {"TimeWidth", "{{ strftime_now('%999999d') }}", "too long"},
      {"Searching",
       "{% set a = 'x' * 1000000 %}{% set b = 'x' * 500000 ~ 'y' %}"
       "{% for i in range(99999) %}{{ b in a }}{% endfor %}",
       "steps"},
      {"Sorting",
       "{% set a = range(99999)|list %}{% for i in range(99999) %}"
       "{% set b = a|sort(reverse=true) %}{% endfor %}",
       "steps"},
      {"Scopes",
       "{% for i in range(99999) %}{% for j in range(99999) %}"
       "{% macro m() %}{% endmacro %}{% endfor %}{% endfor %}",
       "steps"},
      {"Splitting",
       "{% set a = 'x ' * 9999999 %}{% for i in range(999) %}"
       "{% set b = a.split(' ') %}{% endfor %}",
       "steps"},
  };
}

class Bounds : public testing::TestWithParam<Bomb> {};

TEST_P(Bounds, AreKept) {
  EXPECT_THAT(Render(GetParam().source),
              StatusIs(kInvalid, AllOf(HasSubstr("line "),
                                       HasSubstr(GetParam().reason))));
}

INSTANTIATE_TEST_SUITE_P(ChatTemplate, Bounds, testing::ValuesIn(Bombs()),
                         [](const auto& info) { return info.param.name; });

TEST(BoundsOfInput, DeepMessagesAreRefused) {
  Json deep = "x";
  for (int i = 0; i < jinja::kMaxValueDepth + 1; ++i) {
    deep = Json::array({std::move(deep)});
  }
  auto input = Input();
  input.messages = std::move(deep);
  EXPECT_THAT(Render("{{ messages }}", input),
              StatusIs(kInvalid, HasSubstr("nested deeper")));
}

TEST(BoundsOfInput, AFourMegabyteConversationRenders) {
  auto input = Input();
  input.messages[0]["content"] = std::string(4 << 20, 'x');
  const auto text = Render(
      "{% for m in messages %}{{ '<' + m.role + '>' + m.content.strip() + "
      "'</s>' }}{% endfor %}",
      input);
  ASSERT_THAT(text, IsOk());
  EXPECT_EQ(text->size(), (4u << 20) + 10);
}

TEST(BoundsOfInput, ThousandsOfMessagesRender) {
  auto input = Input();
  for (int i = 0; i < 5000; ++i) {
    input.messages.push_back(
        {{"role", i % 2 ? "user" : "assistant"}, {"content", "text"}});
  }
  const auto text = Render(
      "{% set ns = namespace(t='') %}{% for m in messages %}"
      "{% set ns.t = ns.t ~ m.role %}{% if loop.last %}{{ ns.t | length }}"
      "{% endif %}{% endfor %}",
      input);
  ASSERT_THAT(text, IsOk());
  EXPECT_EQ(*text, "32504");
}

}  // namespace
}  // namespace moebius
