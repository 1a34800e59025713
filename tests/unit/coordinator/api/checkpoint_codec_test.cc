// From the messages of a request to its prompt, with the templates that
// checkpoints have.
#include "coordinator/api/checkpoint_codec.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "coordinator/api/generation_request.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

fs::path SourceDir() { return std::getenv("MOEBIUS_SOURCE_DIR"); }

std::string ReadText(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

ApiLimits Limits() {
  ApiLimits limits;
  limits.max_model_len = 4096;
  limits.vocab_size = 4096;
  limits.allow_request_templates = true;
  return limits;
}

// A copy of the small checkpoint without its weights.
class ChatPrompt : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "codec-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
      fs::copy_file(SourceDir() / "models/verse-moe" / name, dir_ / name);
    }
  }
  void TearDown() override { fs::remove_all(dir_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ / name, std::ios::binary) << text;
  }
  void UseFamily(const std::string& name) {
    Write("chat_template.jinja",
          ReadText(SourceDir() / "tests/unit/coordinator/jinja/families" /
                   (name + ".jinja")));
  }

  // The prompt, or the error's words behind "400 PARAM: ".
  std::string PromptOf(const Json& body) {
    auto codec = CheckpointCodec::Load(dir_);
    if (!codec.ok()) return std::string(codec.status().message());
    const auto request = ParseChat(body.dump(), Limits());
    if (!request.ok()) return Error(request.error());
    const auto ids = EncodeChat(request->input, **codec);
    return ids.ok() ? (*codec)->Decode(*ids) : Error(ids.error());
  }
  std::string PromptOf(const char* messages) {
    return PromptOf(Json{{"messages", Json::parse(messages)}});
  }

  static std::string Error(const ApiError& error) {
    return std::to_string(error.http_status) + " " + error.param + ": " +
           error.message;
  }

  static Json Turn(const char* role, const Json& content) {
    return {{"role", role}, {"content", content}};
  }

  // A question, a call with these arguments, its result.
  static Json CallOf(const Json& arguments) {
    const Json call = {{"id", "1"},
                       {"type", "function"},
                       {"function", {{"name", "f"}, {"arguments", arguments}}}};
    Json asked = Turn("assistant", nullptr);
    asked["tool_calls"] = Json::array({call});
    return {{"messages", {Turn("user", "q"), asked, Turn("tool", "r")}}};
  }

  fs::path dir_;
};

constexpr char kBeforeCall[] =
    "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n";
constexpr char kAfterCall[] =
    "<|im_end|>\n<|im_start|>user\n<tool_response>\nr\n</tool_response>"
    "<|im_end|>\n<|im_start|>assistant\n";

TEST_F(ChatPrompt, ArgumentsThatAreNoObjectAreAnEmptyOne) {
  for (const Json& arguments :
       {Json(""), Json(" \n"), Json("{\"a\": \"cut o"), Json("not json"),
        Json("[1]"), Json("\"x\""), Json("5"), Json("null"), Json(nullptr),
        Json(5), Json::array({1}), Json("{} {}"),
        Json(std::string(100000, '{'))}) {
    UseFamily("xml_arguments_style");
    EXPECT_EQ(PromptOf(CallOf(arguments)),
              std::string(kBeforeCall) +
                  "<tool_call>\n<function=f>\n</function>\n</tool_call>" +
                  kAfterCall)
        << arguments.dump().substr(0, 80);
    UseFamily("thinking_style");
    EXPECT_EQ(PromptOf(CallOf(arguments)),
              std::string(kBeforeCall) +
                  "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n"
                  "</tool_call>" +
                  kAfterCall)
        << arguments.dump().substr(0, 80);
  }
}

TEST_F(ChatPrompt, ArgumentsAreReadAsPythonReadsThem) {
  const std::string digits = "123456789012345678901234567890";
  const std::string many = digits + digits + digits;
  const struct {
    std::string given, as_json, as_tags;
  } kCases[] = {
      {R"({"a": 1, "b": 2, "a": 3})", R"({"a": 3, "b": 2})",
       "<parameter=a>\n3\n</parameter>\n<parameter=b>\n2\n</parameter>"},
      {R"({"a": NaN, "b": -Infinity})", R"({"a": NaN, "b": -Infinity})",
       "<parameter=a>\nnan\n</parameter>\n<parameter=b>\n-inf\n</parameter>"},
      {R"({"a": 1e400})", R"({"a": Infinity})",
       "<parameter=a>\ninf\n</parameter>"},
      {"{\"a\": -" + digits + "}", "{\"a\": -" + digits + "}",
       "<parameter=a>\n-" + digits + "\n</parameter>"},
      {"{\"a\": " + many + "}", "{\"a\": " + many + "}",
       "<parameter=a>\n" + many + "\n</parameter>"},
      {"{\"a\": [" + many + "]}", "{\"a\": [" + many + "]}",
       "<parameter=a>\n[" + many + "]\n</parameter>"},
      {"{\"a\": " + std::string(64, '[') + std::string(64, ']') + "}",
       "{\"a\": " + std::string(64, '[') + std::string(64, ']') + "}",
       "<parameter=a>\n" + std::string(64, '[') + std::string(64, ']') +
           "\n</parameter>"},
  };
  for (const auto& c : kCases) {
    UseFamily("thinking_style");
    EXPECT_THAT(PromptOf(CallOf(c.given)),
                HasSubstr("\"arguments\": " + c.as_json + "}\n</tool_call>"));
    UseFamily("xml_arguments_style");
    EXPECT_THAT(PromptOf(CallOf(c.given)),
                HasSubstr("<function=f>\n" + c.as_tags + "\n</function>"));
  }
}

TEST_F(ChatPrompt, LongIntegersKeepTheirDigitsWhereverTheyStand) {
  Write("chat_template.jinja",
        "{{ tools | tojson }} {{ messages[0].x }} {{ messages[0].x is number }}"
        " {{ messages[0].x == messages[0].x }} {{ messages[0] | tojson }}");
  const std::string n = "99999999999999999999999999999999999999999999";
  auto codec = CheckpointCodec::Load(dir_);
  ASSERT_THAT(codec, IsOk());
  const auto request = ParseChat(
      R"({"tools":[{"max":)" + n +
          R"(}],"messages":[{"role":"user","content":"","x":)" + n + "}]}",
      Limits());
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(*(*codec)->RenderChat(request->input),
            "[{\"max\": " + n + "}] " + n +
                " True True {\"role\": \"user\", \"content\": \"\", \"x\": " +
                n + "}");
}

TEST_F(ChatPrompt, AFinalMessageIsContinued) {
  UseFamily("thinking_style");
  Json body = {{"messages", {Turn("user", "q"), Turn("assistant", "One, two")}},
               {"continue_final_message", true}};
  EXPECT_EQ(PromptOf(body),
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
            "<think>\n\n</think>\n\nOne, two");
  // White space at the end is the client's, as far as the template keeps it.
  body["messages"][1]["content"] = "One, \n";
  EXPECT_THAT(PromptOf(body), testing::EndsWith("</think>\n\nOne, \n"));
  Write("chat_template.jinja",
        "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}"
        "{{ 'open' if add_generation_prompt }}");
  EXPECT_EQ(PromptOf(body), "<q><One,");
  // A part of many, no text at all, and another role.
  body["messages"][1]["content"] =
      Json::parse(R"([{"type":"text","text":"a"},{"type":"text","text":"b"}])");
  EXPECT_EQ(PromptOf(body), "<q><a\nb");
  body["messages"][1]["content"] = "";
  EXPECT_EQ(PromptOf(body), "<q><");
  body["messages"].erase(1);
  EXPECT_EQ(PromptOf(body), "<q");
}

TEST_F(ChatPrompt, AFinalMessageThatIsNotShownCannotBeContinued) {
  Write("chat_template.jinja",
        "{{ messages[0].content }}{{ messages | length }}");
  Json body = {{"messages", {Turn("user", "q"), Turn("assistant", "One")}},
               {"continue_final_message", true}};
  EXPECT_THAT(PromptOf(body), HasSubstr("400 messages: the final message"));
  body["add_generation_prompt"] = true;
  EXPECT_THAT(PromptOf(body), HasSubstr("400 add_generation_prompt: "));
}

constexpr char kTwoParts[] = R"([{"role":"user","content":"a"},
    {"role":"assistant","content":null},
    {"role":"user","content":[{"type":"text","text":"b"},
                              {"type":"text","text":"c"}]},
    {"role":"tool","content":"d"}])";

TEST_F(ChatPrompt, ContentHasTheFormThatTheTemplateWants) {
  const struct {
    const char* source;
    const char* prompt;
  } kCases[] = {
      {"{% for m in messages %}<{{ m.content }}>{% endfor %}",
       "<a><><b\nc><d>"},
      // Parts, whatever the way to them.
      {"{% for m in messages %}<{% for p in m['content'] %}{{ p.text }},"
       "{% endfor %}>{% endfor %}",
       "<a,><><b,c,><d,>"},
      {"{% set turns = messages[1:] %}{% for m in turns %}{% set c = m.content "
       "%}"
       "<{% for p in c if p.type == 'text' %}{{ p.text }},{% endfor %}>"
       "{% endfor %}",
       "<><b,c,><d,>"},
      {"{% macro show(c) %}{% for p in c %}{{ p['text'] }},{% endfor %}"
       "{% endmacro %}{% for m in messages %}<{{ show(m.get('content')) }}>"
       "{% endfor %}",
       "<a,><><b,c,><d,>"},
      {"{% for m in messages %}<{{ m.content | map(attribute='text') |"
       " join(',') }}>{% endfor %}",
       "<a><><b,c><d>"},
      {"{{ messages[0]['content'][0]['text'] }}", "a"},
      // Who knows strings gets the results of tools as such.
      {"{% for m in messages %}<{% if m.content is string %}{{ m.content }}"
       "{% else %}{% for p in m.content %}{{ p.text }},{% endfor %}{% endif %}>"
       "{% endfor %}",
       "<a,><><b,c,><d>"},
      // Loops over other things.
      {"{% for m in messages %}{% for x in m.content.split('b') %}{% endfor %}"
       "{% for t in m.tool_calls or [] %}{% endfor %}{% endfor %}"
       "{{ messages[2].content }}",
       "b\nc"},
  };
  for (const auto& c : kCases) {
    Write("chat_template.jinja", c.source);
    EXPECT_EQ(PromptOf(kTwoParts), c.prompt) << c.source;
  }
}

TEST_F(ChatPrompt, OfTheFamiliesThoseThatReadPartsGetParts) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(
           SourceDir() / "tests/unit/coordinator/jinja/families")) {
    const auto parsed = ChatTemplate::Parse(ReadText(entry.path()), {});
    ASSERT_THAT(parsed, IsOk()) << entry.path();
    const std::string name = entry.path().stem().string();
    const bool reads_parts =
        name == "list_content_style" || name == "renaming_style";
    EXPECT_EQ(parsed->content_form(nullptr),
              reads_parts ? ContentForm::kParts : ContentForm::kText)
        << name;
    ++count;
  }
  EXPECT_GE(count, 17);
}

TEST_F(ChatPrompt, AThoughtReachesTemplatesUnderBothNames) {
  Write("chat_template.jinja",
        "{% for m in messages %}<{{ m.reasoning }},{{ m.reasoning_content }}>"
        "{% endfor %}");
  EXPECT_EQ(PromptOf(R"([{"role":"assistant","content":"","reasoning":"r"},
      {"role":"assistant","content":"","reasoning_content":"c"},
      {"role":"assistant","content":"","reasoning":"r",
       "reasoning_content":"c"},
      {"role":"assistant","content":"","reasoning":null},
      {"role":"user","content":"","reasoning":"u"}])"),
            "<r,r><c,c><r,c><None,><u,>");
}

TEST_F(ChatPrompt, ARequestMayBringItsTemplate) {
  Json body = {{"messages", {Turn("user", "q")}},
               {"chat_template", "{{ eos_token }}{{ messages[0].content }}"}};
  EXPECT_EQ(PromptOf(body), "<|im_end|>q");
  body["chat_template"] = "{% if %}";
  EXPECT_THAT(PromptOf(body), HasSubstr("400 chat_template: chat template, "
                                        "line 1: "));
  body["chat_template"] = "{{ 'x' * 10 ** 30 }}";
  EXPECT_THAT(PromptOf(body), HasSubstr("400 chat_template: "));
  body["chat_template"] = std::string(jinja::kMaxTemplateBytes + 1, 'x');
  EXPECT_THAT(PromptOf(body), HasSubstr("400 chat_template: "));
  // Also where the checkpoint has none.
  Write("tokenizer_config.json", R"({"eos_token": {"content": "E"}})");
  body["chat_template"] = "{{ eos_token }}{{ messages[0].content }}";
  EXPECT_EQ(PromptOf(body), "Eq");
  body["chat_template"] = nullptr;
  EXPECT_THAT(PromptOf(body), HasSubstr("no chat template"));
}

TEST_F(ChatPrompt, TheTokenizersEndIsKnown) {
  EXPECT_EQ((*CheckpointCodec::Load(dir_))->eos_id(), 4095);
  Write("tokenizer_config.json",
        R"({"eos_token": {"content": "<|im_start|>"}})");
  EXPECT_EQ((*CheckpointCodec::Load(dir_))->eos_id(), 4094);
  Write("tokenizer_config.json", R"({"eos_token": "<no such token>"})");
  EXPECT_EQ((*CheckpointCodec::Load(dir_))->eos_id(), std::nullopt);
  fs::remove(dir_ / "tokenizer_config.json");
  EXPECT_EQ((*CheckpointCodec::Load(dir_))->eos_id(), std::nullopt);
}

TEST_F(ChatPrompt, TokensThatTheModelLacksAreNamed) {
  Json tokenizer = Json::parse(ReadText(dir_ / "tokenizer.json"));
  EXPECT_EQ(TokensBeyond((*CheckpointCodec::Load(dir_))->tokenizer(), 4096),
            "");
  const auto add = [&](int id, const std::string& content) {
    Json token = tokenizer["added_tokens"][0];
    token["id"] = id;
    token["content"] = content;
    tokenizer["added_tokens"].push_back(token);
    Write("tokenizer.json", tokenizer.dump());
  };
  add(4096, "<tool_call>");
  EXPECT_EQ(TokensBeyond((*CheckpointCodec::Load(dir_))->tokenizer(), 4096),
            "4096 \"<tool_call>\"");
  for (int i = 1; i < 20; ++i) add(4096 + i, "<t" + std::to_string(i) + ">");
  EXPECT_THAT(TokensBeyond((*CheckpointCodec::Load(dir_))->tokenizer(), 4096),
              testing::AllOf(HasSubstr("4103 \"<t7>\" and 12 more"),
                             testing::Not(HasSubstr("<t8>"))));
}

}  // namespace
}  // namespace moebius
