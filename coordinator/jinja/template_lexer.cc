#include "coordinator/jinja/template_lexer.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_strings.h"
#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

constexpr std::array<std::string_view, 26> kOperators = {
    "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "[",
    "]",  "(",  ")",  "{",  "}",  "<",  ">", "=", ".", ":", "|", ",", ";"};

// Newlines of all systems become "\n"; one at the very end goes.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
    } else {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) RETURN_IF_ERROR(TextAndTag());
    Add(Token::Kind::kEnd);
    return std::move(tokens_);
  }

 private:
  // Reads ahead; its lines are not counted.
  Lexer ProbeAt(size_t at) const {
    Lexer probe(source_);
    probe.at_ = at;
    return probe;
  }

  absl::Status Fail(std::string_view reason) const {
    return ErrorAtLine(line_, reason);
  }

  bool Ahead(std::string_view what) const {
    return source_.substr(at_).starts_with(what);
  }

  char32_t Character() const {
    return ReadCodePoint(source_.data() + at_).value;
  }

  void Advance(size_t bytes) {
    const std::string_view passed = source_.substr(at_, bytes);
    line_ += std::count(passed.begin(), passed.end(), '\n');
    at_ += passed.size();
  }

  void SkipSpace() {
    while (at_ < source_.size()) {
      const CodePoint c = ReadCodePoint(source_.data() + at_);
      if (!IsSpace(c.value)) return;
      Advance(c.size_bytes);
    }
  }

  void Add(Token::Kind kind, std::string text = "") {
    tokens_.push_back(Token{kind, line_, std::move(text), Value()});
  }

  // "-", "+" or nothing after a delimiter that opens.
  char Sign() {
    if (!Ahead("-") && !Ahead("+")) return 0;
    return source_[at_++];
  }

  // The place of the next "{{", "{%" or "{#".
  size_t NextTag() const {
    for (size_t at = at_;; ++at) {
      at = source_.find('{', at);
      if (at == std::string_view::npos || at + 1 >= source_.size()) {
        return source_.size();
      }
      const char second = source_[at + 1];
      if (second == '{' || second == '%' || second == '#') return at;
    }
  }

  // Adds the text up to `end`, without the white space that the tag there
  // takes with it.
  void AddData(size_t end, char sign, bool is_variable) {
    const std::string_view text = source_.substr(at_, end - at_);
    std::string_view kept = text;
    if (sign == '-') {
      kept = Strip(text, std::nullopt, Side::kRight);
    } else if (sign != '+' && !is_variable) {
      const size_t newline = text.rfind('\n');
      const size_t line_begin =
          newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_begin > 0 || at_line_start_) &&
          IsAllSpace(text.substr(line_begin))) {
        kept = text.substr(0, line_begin);
      }
    }
    if (!kept.empty()) Add(Token::Kind::kData, std::string(kept));
    Advance(text.size());
  }

  absl::Status TextAndTag() {
    const size_t tag = NextTag();
    if (tag == source_.size()) {
      Add(Token::Kind::kData, std::string(source_.substr(at_)));
      Advance(source_.size() - at_);
      return absl::OkStatus();
    }
    const char kind = source_[tag + 1];
    const char after = tag + 2 < source_.size() ? source_[tag + 2] : 0;
    const char sign = after == '-' || after == '+' ? after : 0;
    AddData(tag, sign, kind == '{');
    Advance(2);
    Sign();
    if (kind == '#') return Comment();
    if (kind == '{') return Variable();
    if (const size_t raw = RawBegin(); raw != 0) {
      Advance(raw);
      return Raw();
    }
    return Block();
  }

  // Bytes of "raw %}" or "raw -%} " if they are next, else 0.
  size_t RawBegin() const {
    Lexer probe = ProbeAt(at_);
    probe.SkipSpace();
    if (!probe.Ahead("raw")) return 0;
    probe.Advance(3);
    probe.SkipSpace();
    if (probe.Ahead("%}")) {
      probe.Advance(2);
    } else if (probe.Ahead("-%}")) {
      probe.Advance(3);
      probe.SkipSpace();
    } else {
      return 0;
    }
    return probe.at_ - at_;
  }

  absl::Status Raw() {
    const int begin_line = line_;
    at_line_start_ = source_[at_ - 1] == '\n';
    for (size_t tag = source_.find("{%", at_); tag != std::string_view::npos;
         tag = source_.find("{%", tag + 1)) {
      Lexer probe = ProbeAt(tag + 2);
      const char sign = probe.Sign();
      probe.SkipSpace();
      if (!probe.Ahead("endraw")) continue;
      probe.Advance(6);
      probe.SkipSpace();
      if (!probe.TagEnd("%}")) continue;
      AddData(tag, sign, false);
      Advance(probe.at_ - at_);
      at_line_start_ = source_[at_ - 1] == '\n';
      return absl::OkStatus();
    }
    return ErrorAtLine(begin_line, "missing end of raw directive");
  }

  absl::Status Comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string_view::npos) {
      return Fail("missing end of comment tag");
    }
    const char sign = end > at_ ? source_[end - 1] : 0;
    Advance(end + 2 - at_);
    AfterTag(sign, /*trims=*/true);
    return absl::OkStatus();
  }

  // White space after a tag that ended with `sign` before its delimiter.
  void AfterTag(char sign, bool trims) {
    if (sign == '-') {
      SkipSpace();
    } else if (sign != '+' && trims && Ahead("\n")) {
      Advance(1);
    }
    at_line_start_ = source_[at_ - 1] == '\n';
  }

  // Passes the end of a tag if it is next.
  bool TagEnd(std::string_view delimiter) {
    const bool is_block = delimiter == "%}";
    char sign = 0;
    if (Ahead(StrCat("-", delimiter))) sign = '-';
    if (is_block && Ahead("+%}")) sign = '+';
    if (sign == 0 && !Ahead(delimiter)) return false;
    Advance(delimiter.size() + (sign != 0));
    AfterTag(sign, is_block);
    return true;
  }

  absl::Status Variable() {
    Add(Token::Kind::kVariableBegin);
    return Inside("}}", Token::Kind::kVariableEnd);
  }

  absl::Status Block() {
    Add(Token::Kind::kBlockBegin);
    return Inside("%}", Token::Kind::kBlockEnd);
  }

  absl::Status Inside(std::string_view delimiter, Token::Kind end_kind) {
    const int begin_line = line_;
    std::string open;  // the closing brackets that are due
    while (at_ < source_.size()) {
      if (open.empty()) {
        const int line = line_;
        if (TagEnd(delimiter)) {
          tokens_.push_back(Token{end_kind, line, "", Value()});
          return absl::OkStatus();
        }
      }
      const char32_t c = Character();
      if (IsSpace(c)) {
        SkipSpace();
      } else if (c < 0x80 && absl::ascii_isdigit(c)) {
        RETURN_IF_ERROR(Number());
      } else if (IsIdentifierStart(c)) {
        Name();
      } else if (c == '\'' || c == '"') {
        RETURN_IF_ERROR(String());
      } else {
        RETURN_IF_ERROR(Operator(&open));
      }
    }
    return ErrorAtLine(begin_line,
                       StrCat("the tag is not closed by '", delimiter, "'"));
  }

  void Name() {
    const size_t begin = at_;
    while (at_ < source_.size() && IsIdentifierPart(Character())) {
      at_ += ReadCodePoint(source_.data() + at_).size_bytes;
    }
    Add(Token::Kind::kName, std::string(source_.substr(begin, at_ - begin)));
  }

  absl::Status Operator(std::string* open) {
    const auto found =
        std::find_if(kOperators.begin(), kOperators.end(),
                     [&](std::string_view op) { return Ahead(op); });
    if (found == kOperators.end()) {
      std::string shown;
      AppendUtf8(Character(), &shown);
      return Fail(StrCat("unexpected character '", shown, "'"));
    }
    const char c = (*found)[0];
    if (c == '{' || c == '(' || c == '[') {
      if (open->size() >= kMaxNesting) {
        return Fail(StrCat("more than ", kMaxNesting, " open brackets"));
      }
      open->push_back(c == '{' ? '}' : c == '(' ? ')' : ']');
    } else if (c == '}' || c == ')' || c == ']') {
      if (open->empty()) return Fail(StrCat("unexpected '", *found, "'"));
      if (open->back() != c) {
        return Fail(StrCat("unexpected '", *found, "', expected '",
                           open->substr(open->size() - 1), "'"));
      }
      open->pop_back();
    }
    Add(Token::Kind::kOperator, std::string(*found));
    Advance(found->size());
    return absl::OkStatus();
  }

  // Digits of `base` from `at`, with single "_" between them. The end, or
  // `at` if there is none.
  size_t Digits(size_t at, int base) const {
    const auto is_digit = [&](size_t i) {
      if (i >= source_.size()) return false;
      const char c = absl::ascii_tolower(source_[i]);
      const int digit = absl::ascii_isdigit(c)   ? c - '0'
                        : absl::ascii_isalpha(c) ? c - 'a' + 10
                                                 : base;
      return digit < base;
    };
    if (!is_digit(at)) return at;
    ++at;
    while (is_digit(at) ||
           (at < source_.size() && source_[at] == '_' && is_digit(at + 1))) {
      ++at;
    }
    return at;
  }

  // The end of a float that begins here, or at_ if none does.
  size_t FloatEnd() const {
    // "x.0.1" is two subscripts.
    if (at_ > 0 && source_[at_ - 1] == '.') return at_;
    size_t end = Digits(at_, 10);
    bool is_float = false;
    if (end < source_.size() && source_[end] == '.') {
      const size_t fraction = Digits(end + 1, 10);
      if (fraction > end + 1) {
        end = fraction;
        is_float = true;
      }
    }
    if (end < source_.size() && (source_[end] | 0x20) == 'e') {
      size_t digits = end + 1;
      if (digits < source_.size() &&
          (source_[digits] == '+' || source_[digits] == '-')) {
        ++digits;
      }
      const size_t exponent = Digits(digits, 10);
      if (exponent > digits) {
        end = exponent;
        is_float = true;
      }
    }
    return is_float ? end : at_;
  }

  std::string Plain(size_t end) const {
    std::string digits(source_.substr(at_, end - at_));
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    return digits;
  }

  absl::Status Number() {
    Value value;
    size_t end = FloatEnd();
    if (end > at_) {
      double number = 0;
      if (!absl::SimpleAtod(Plain(end), &number)) {
        return Fail("malformed number");
      }
      value = Value::Float(number);
    } else {
      ASSIGN_OR_RETURN(value, Integer(&end));
    }
    tokens_.push_back(Token{Token::Kind::kNumber, line_, "", value});
    at_ = end;
    return absl::OkStatus();
  }

  absl::StatusOr<Value> Integer(size_t* end) const {
    int base = 10;
    size_t begin = at_;
    if (source_[at_] == '0' && at_ + 1 < source_.size()) {
      const char mark = absl::ascii_tolower(source_[at_ + 1]);
      const int marked = mark == 'x'   ? 16
                         : mark == 'o' ? 8
                         : mark == 'b' ? 2
                                       : 0;
      const size_t digits =
          at_ + 2 + (at_ + 2 < source_.size() && source_[at_ + 2] == '_');
      if (marked != 0 && Digits(digits, marked) > digits) {
        base = marked;
        begin = digits;
      }
    }
    *end = Digits(begin, base);
    if (base == 10 && source_[at_] == '0') {
      // A leading zero stands for itself: "07" is two tokens.
      *end = at_ + 1;
      while (*end < source_.size() && source_[*end] == '0') ++*end;
    }
    Int value = 0;
    for (size_t i = begin; i < *end; ++i) {
      if (source_[i] == '_') continue;
      const char c = absl::ascii_tolower(source_[i]);
      const int digit = absl::ascii_isdigit(c) ? c - '0' : c - 'a' + 10;
      if (__builtin_mul_overflow(value, Int{base}, &value) ||
          __builtin_add_overflow(value, Int{digit}, &value)) {
        return Fail("the number is too large");
      }
    }
    return Value::Integer(value);
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
    tokens_.push_back(
        Token{Token::Kind::kString, begin_line, std::move(text), Value()});
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
    if (const size_t i = kFrom.find(c); i != std::string_view::npos) {
      text->push_back(kTo[i]);
      Advance(1);
    } else if (c == '\n') {
      Advance(1);
    } else if (c == 'x' || c == 'u' || c == 'U') {
      return HexEscape(c == 'x' ? 2 : c == 'u' ? 4 : 8, text);
    } else if (c >= '0' && c <= '7') {
      char32_t value = 0;
      for (int i = 0; i < 3 && at_ < source_.size() && source_[at_] >= '0' &&
                      source_[at_] <= '7';
           ++i, ++at_) {
        value = value * 8 + (source_[at_] - '0');
      }
      AppendUtf8(value, text);
    } else if (c == 'N') {
      return Fail("\\N escapes are not supported");
    } else {
      text->push_back('\\');
    }
    return absl::OkStatus();
  }

  absl::Status HexEscape(int num_digits, std::string* text) {
    const std::string_view digits = source_.substr(at_ + 1, num_digits);
    uint32_t value = 0;
    if (digits.size() != static_cast<size_t>(num_digits) ||
        !std::all_of(digits.begin(), digits.end(), absl::ascii_isxdigit) ||
        !absl::SimpleHexAtoi(Piece(digits), &value)) {
      return Fail("truncated escape in a string");
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
      return Fail("an escape in a string is not a Unicode character");
    }
    AppendUtf8(value, text);
    at_ += 1 + num_digits;
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
  return absl::InvalidArgumentError(StrCat("line ", line, ": ", reason));
}

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    return ErrorAtLine(1, StrCat("the template has ", source.size(),
                                 " bytes, more than ", kMaxTemplateBytes));
  }
  if (!IsValidUtf8(source)) return ErrorAtLine(1, "the template is not UTF-8");
  const std::string normalized = NormalizeNewlines(source);
  return Lexer(normalized).Run();
}

}  // namespace moebius::jinja
