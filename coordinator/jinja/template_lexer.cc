#include "coordinator/jinja/template_lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

constexpr auto kNpos = std::string_view::npos;

constexpr std::array<std::string_view, 25> kOperators = {
    "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "[",
    "]",  "(",  ")",  "{",  "}",  "<",  ">", "=", ".", ":", "|", ","};

// Newlines of all systems become "\n"; one at the very end goes.
std::string NormalizeNewlines(std::string_view source) {
  std::string out =
      absl::StrReplaceAll(AbslView(source), {{"\r\n", "\n"}, {"\r", "\n"}});
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

bool IsNamePart(char c) { return absl::ascii_isalnum(c) || c == '_'; }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) RETURN_IF_ERROR(TextAndTag());
    Add(Token::Kind::kEnd);
    return std::move(tokens_);
  }

 private:
  absl::Status Fail(std::string_view reason) const {
    return ErrorAtLine(line_, reason);
  }

  std::string_view Rest() const { return source_.substr(at_); }
  bool Ahead(std::string_view what) const { return Rest().starts_with(what); }

  void Advance(size_t bytes) {
    const std::string_view passed = source_.substr(at_, bytes);
    line_ += std::count(passed.begin(), passed.end(), '\n');
    at_ += passed.size();
  }

  bool Skip(std::string_view what) {
    if (!Ahead(what)) return false;
    Advance(what.size());
    return true;
  }

  void SkipSpace() {
    const auto rest = Strip(Rest(), std::nullopt, Side::kLeft);
    Advance(Rest().size() - rest.size());
  }

  void Add(Token::Kind kind, std::string_view text = "", Value number = {}) {
    tokens_.push_back(Token{kind, line_, std::string(text), std::move(number)});
  }

  // The place of the next "{{", "{%" or "{#".
  size_t NextTag() const {
    for (size_t at = source_.find('{', at_); at != kNpos;
         at = source_.find('{', at + 1)) {
      const char second = at + 1 < source_.size() ? source_[at + 1] : '\0';
      if (second == '{' || second == '%' || second == '#') return at;
    }
    return source_.size();
  }

  // Adds the text up to the tag at `end` and passes what opens the tag. White
  // space goes that the tag takes with it.
  void TextBefore(size_t end) {
    std::string_view text = source_.substr(at_, end - at_);
    Advance(end + 2 - at_);
    if (Skip("-")) {
      text = Strip(text, std::nullopt, Side::kRight);
    } else if (source_[end + 1] != '{') {
      const size_t line_begin = text.rfind('\n') + 1;  // 0 without a newline
      if ((line_begin > 0 || at_line_start_) &&
          IsAllSpace(text.substr(line_begin))) {
        text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) Add(Token::Kind::kData, text);
  }

  absl::Status TextAndTag() {
    const size_t tag = NextTag();
    if (tag == source_.size()) {
      Add(Token::Kind::kData, Rest());
      Advance(Rest().size());
      return absl::OkStatus();
    }
    TextBefore(tag);
    if (source_[tag + 1] == '#') return Comment();
    if (source_[tag + 1] == '{') return Inside("{{", "}}");
    if (SkipWordTag("raw", /*trims=*/false)) return Raw();
    return Inside("{%", "%}");
  }

  absl::Status Raw() {
    const int begin_line = line_;
    for (size_t tag = source_.find("{%", at_); tag != kNpos;
         tag = source_.find("{%", tag + 1)) {
      Lexer probe(source_);
      probe.at_ = tag + 2;
      probe.Skip("-");
      if (!probe.SkipWordTag("endraw", /*trims=*/true)) continue;
      TextBefore(tag);
      SkipWordTag("endraw", /*trims=*/true);
      return absl::OkStatus();
    }
    return ErrorAtLine(begin_line, "missing end of raw directive");
  }

  // Passes the rest of a tag that is the one word `word`, if it is.
  bool SkipWordTag(std::string_view word, bool trims) {
    const size_t begin = at_;
    const int begin_line = line_;
    SkipSpace();
    if (Skip(word)) {
      SkipSpace();
      if (TagEnd("%}", trims)) return true;
    }
    at_ = begin;
    line_ = begin_line;
    return false;
  }

  absl::Status Comment() {
    const size_t end = source_.find("#}", at_);
    if (end == kNpos) return Fail("missing end of comment tag");
    const bool strips = end > at_ && source_[end - 1] == '-';
    Advance(end + 2 - at_);
    AfterTag(strips, /*trims=*/true);
    return absl::OkStatus();
  }

  // White space after a tag: all of it goes, or one newline, or none.
  void AfterTag(bool strips, bool trims) {
    if (strips) {
      SkipSpace();
    } else if (trims) {
      Skip("\n");
    }
    at_line_start_ = source_[at_ - 1] == '\n';
  }

  // Passes the end of a tag if it is next.
  bool TagEnd(std::string_view delimiter, bool trims) {
    const bool strips = Skip(Cat("-", delimiter));
    if (!strips && !Skip(delimiter)) return false;
    AfterTag(strips, trims);
    return true;
  }

  absl::Status Inside(std::string_view opens, std::string_view closes) {
    const int begin_line = line_;
    int num_open = 0;  // brackets; "}}" may close two dicts
    Add(Token::Kind::kTag, opens);
    while (at_ < source_.size()) {
      const int line = line_;
      if (num_open == 0 && TagEnd(closes, /*trims=*/closes == "%}")) {
        tokens_.push_back(Token{Token::Kind::kTag, line, std::string(closes)});
        return absl::OkStatus();
      }
      const char c = source_[at_];
      if (IsSpace(ReadCodePoint(source_.data() + at_).value)) {
        SkipSpace();
      } else if (absl::ascii_isdigit(c)) {
        RETURN_IF_ERROR(Number());
      } else if (IsNamePart(c)) {
        Name();
      } else if (c == '\'' || c == '"') {
        RETURN_IF_ERROR(String());
      } else {
        RETURN_IF_ERROR(Operator());
        if (c == '(' || c == '[' || c == '{') ++num_open;
        if (c == ')' || c == ']' || c == '}')
          num_open = std::max(0, num_open - 1);
      }
    }
    return ErrorAtLine(begin_line,
                       Cat("the tag is not closed by '", closes, "'"));
  }

  void Name() {
    const auto end = std::find_if_not(Rest().begin(), Rest().end(), IsNamePart);
    const size_t size = end - Rest().begin();
    Add(Token::Kind::kName, Rest().substr(0, size));
    Advance(size);
  }

  absl::Status Operator() {
    const auto found =
        std::find_if(kOperators.begin(), kOperators.end(),
                     [&](std::string_view op) { return Ahead(op); });
    if (found == kOperators.end()) {
      const int size = ReadCodePoint(source_.data() + at_).size_bytes;
      return Fail(Cat("unexpected character '", Rest().substr(0, size), "'"));
    }
    Add(Token::Kind::kOperator, *found);
    Advance(found->size());
    return absl::OkStatus();
  }

  // An integer, or a float with a fraction, an exponent or both.
  absl::Status Number() {
    const char* const begin = source_.data() + at_;
    const char* const end = source_.data() + source_.size();
    Int integer = 0;
    double number = 0;
    auto read = std::from_chars(begin, end, integer);
    const auto real = std::from_chars(begin, end, number);
    // "x.0.1" is two subscripts, "1." no float.
    const bool is_float = source_[at_ - 1] != '.' && real.ptr > read.ptr + 1;
    if (is_float) read = real;
    if ((!is_float && *begin == '0' && read.ptr > begin + 1) ||
        (read.ptr < end && IsNamePart(*read.ptr))) {
      return Fail("only plain decimal numbers are supported");
    }
    if (read.ec != std::errc()) return Fail("the number is too large");
    Add(Token::Kind::kNumber, "",
        is_float ? Value::Float(number) : Value::Integer(integer));
    Advance(read.ptr - begin);
    return absl::OkStatus();
  }

  absl::Status String() {
    const char quote = source_[at_];
    const int begin_line = line_;
    std::string text;
    Advance(1);
    while (at_ < source_.size() && source_[at_] != quote) {
      if (source_[at_] == '\\') {
        RETURN_IF_ERROR(Escape(&text));
      } else {
        text.push_back(source_[at_]);
        Advance(1);
      }
    }
    if (at_ == source_.size()) {
      return ErrorAtLine(begin_line, "the string is not closed");
    }
    Advance(1);
    tokens_.push_back(Token{Token::Kind::kString, begin_line, std::move(text)});
    return absl::OkStatus();
  }

  // Python's escapes in strings (Language Reference, "String and Bytes
  // literals"). An unknown one stands for itself, backslash included.
  absl::Status Escape(std::string* text) {
    Advance(1);
    if (at_ == source_.size()) return absl::OkStatus();
    const char c = source_[at_];
    static constexpr std::string_view kFrom = "\\'\"abfnrtv";
    static constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    if (const size_t i = kFrom.find(c); i != kNpos) {
      text->push_back(kTo[i]);
      Advance(1);
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const std::string_view digits = Rest().substr(1, c == 'x'   ? 2
                                                       : c == 'u' ? 4
                                                                  : 8);
      const char* const end = digits.data() + digits.size();
      uint32_t value = 0;
      const auto read = std::from_chars(digits.data(), end, value, 16);
      if (read.ptr != end || digits.size() < 2 || value > 0x10FFFF ||
          (value >= 0xD800 && value < 0xE000)) {
        return Fail("an escape in a string is not a Unicode character");
      }
      AppendUtf8(value, text);
      Advance(1 + digits.size());
    } else if (c == 'N' || c == '\n' || absl::ascii_isdigit(c)) {
      return Fail(Cat("the escape '\\", std::string(1, c),
                      "' in a string is not supported"));
    } else {
      text->push_back('\\');
    }
    return absl::OkStatus();
  }

  std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;  // the last tag ended with a newline
  std::vector<Token> tokens_;
};

}  // namespace

absl::Status ErrorAtLine(int line, std::string_view reason) {
  return absl::InvalidArgumentError(Cat("line ", line, ": ", reason));
}

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    return ErrorAtLine(1, Cat("the template has ", source.size(),
                              " bytes, more than ", kMaxTemplateBytes));
  }
  if (!IsValidUtf8(source)) return ErrorAtLine(1, "the template is not UTF-8");
  const std::string normalized = NormalizeNewlines(source);
  return Lexer(normalized).Run();
}

}  // namespace moebius::jinja
