// The translation of split patterns from Oniguruma's syntax (doc/RE of its
// source, Ruby) to PCRE2's (pcre2pattern). See pretokenizer.h.
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

constexpr std::string_view kWhiteSpaceItems =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a})"
    R"(\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// General categories, which both libraries spell alike.
constexpr std::string_view kCategories[] = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd",
    "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm",
    "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Cn", "Co",
};

bool IsCategory(std::string_view name) {
  for (const std::string_view category : kCategories) {
    if (name == category) return true;
  }
  return false;
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        RETURN_IF_ERROR(Escape(/*in_class=*/false));
      } else if (c == '[') {
        RETURN_IF_ERROR(Class());
      } else if (c == '(') {
        RETURN_IF_ERROR(Group());
      } else if (c == '{') {
        RETURN_IF_ERROR(Interval());
      } else if (c == '^' || c == '$') {
        return Refuse("an anchor");
      } else {
        Copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  absl::Status Refuse(std::string_view what) const {
    return absl::InvalidArgumentError(Cat(
        "offset ", at_, ": ", what,
        " is not supported; supported are literals, ., classes, \\s \\S \\d "
        "\\D \\p{..} \\P{..} \\r \\n \\t \\f \\v \\uHHHH \\x{H..} and escaped "
        "punctuation, |, quantifiers, (..) (?:..) (?i:..) (?>..) and "
        "look-around"));
  }

  std::string_view Rest() const { return pattern_.substr(at_); }

  void Copy(size_t count) {
    out_.append(pattern_, at_, count);
    at_ += count;
  }

  void Replace(size_t count, std::string_view with) {
    out_.append(with);
    at_ += count;
  }

  absl::Status Group() {
    static constexpr std::string_view kOpeners[] = {
        "(?:", "(?i:", "(?>", "(?=", "(?!", "(?<=", "(?<!"};
    for (const std::string_view opener : kOpeners) {
      if (Rest().starts_with(opener)) {
        Copy(opener.size());
        return absl::OkStatus();
      }
    }
    if (Rest().starts_with("(?") || Rest().starts_with("(*")) {
      return Refuse("this kind of group");
    }
    Copy(1);
    return absl::OkStatus();
  }

  // {n}, {n,}, {n,m}. {,m} differs, as does a + behind it (Oniguruma repeats,
  // PCRE2 makes it possessive). A brace that is no interval is left to PCRE2,
  // which takes it as a literal like Oniguruma.
  absl::Status Interval() {
    size_t end = at_ + 1;
    const auto digits = [&] {
      const size_t start = end;
      while (end < pattern_.size() && absl::ascii_isdigit(pattern_[end])) {
        ++end;
      }
      return end - start;
    };
    if (Rest().starts_with("{,")) return Refuse("{,m}");
    if (digits() == 0) {
      Copy(1);
      return absl::OkStatus();
    }
    if (end < pattern_.size() && pattern_[end] == ',') {
      ++end;
      digits();
    }
    if (end >= pattern_.size() || pattern_[end] != '}') {
      Copy(1);
      return absl::OkStatus();
    }
    ++end;
    if (end < pattern_.size() && pattern_[end] == '+') {
      return Refuse("+ behind an interval");
    }
    Copy(end - at_);
    return absl::OkStatus();
  }

  absl::Status Class() {
    Copy(1);
    if (Rest().starts_with("^")) Copy(1);
    if (Rest().starts_with("]")) return Refuse("] first in a class");
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == ']') {
        Copy(1);
        return absl::OkStatus();
      }
      if (c == '[') return Refuse("[ in a class");
      if (Rest().starts_with("&&")) return Refuse("&& in a class");
      if (c == '\\') {
        RETURN_IF_ERROR(Escape(/*in_class=*/true));
      } else {
        Copy(1);
      }
    }
    return Refuse("a class without end");
  }

  absl::Status Escape(bool in_class) {
    if (at_ + 1 >= pattern_.size()) return Refuse("\\ at the end");
    const char c = pattern_[at_ + 1];
    switch (c) {
      case 's':
        if (in_class && BesideRange()) return Refuse("a range with \\s");
        Replace(2, in_class ? std::string(kWhiteSpaceItems)
                            : Cat("[", kWhiteSpaceItems, "]"));
        return absl::OkStatus();
      case 'S':
        if (in_class) return Refuse("\\S in a class");
        Replace(2, Cat("[^", kWhiteSpaceItems, "]"));
        return absl::OkStatus();
      case 'v':
        Replace(2, "\\x{b}");
        return absl::OkStatus();
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
        Copy(2);
        return absl::OkStatus();
      case 'p':
      case 'P':
        return Property();
      case 'u':
        return Unicode();
      case 'x':
        return Hexadecimal();
      default:
        if (!absl::ascii_ispunct(c)) {
          return Refuse(Cat("\\", std::string_view(&c, 1)));
        }
        Copy(2);
        return absl::OkStatus();
    }
  }

  // In a class, at an escape of two characters: whether a - beside it would
  // make a range with it.
  bool BesideRange() const {
    const bool after = pattern_.substr(at_ + 2).starts_with("-") &&
                       !pattern_.substr(at_ + 3).starts_with("]");
    const char before[] = {pattern_[at_ - 1],
                           at_ < 2 ? '[' : pattern_[at_ - 2]};
    return after || (before[0] == '-' && before[1] != '[' && before[1] != '^' &&
                     before[1] != '\\');
  }

  absl::Status Property() {
    const size_t close = Rest().find('}');
    if (close == std::string_view::npos || Rest().size() < 3 ||
        Rest()[2] != '{') {
      return Refuse("\\p without {name}");
    }
    std::string_view name = Rest().substr(3, close - 3);
    const bool negated = name.starts_with("^");
    if (negated) name.remove_prefix(1);
    for (const char letter : name) {
      if (!absl::ascii_isalpha(letter) && letter != '_') {
        return Refuse("this property name");
      }
    }
    if (name.empty()) return Refuse("a property without name");
    Replace(close + 1, Cat(Rest().substr(0, 3), negated ? "^" : "",
                           IsCategory(name) ? "" : "sc:", name, "}"));
    return absl::OkStatus();
  }

  absl::Status Unicode() {
    static constexpr size_t kDigits = 4;
    const std::string_view digits = Rest().substr(2, kDigits);
    if (digits.size() != kDigits) return Refuse("\\u without 4 digits");
    for (const char digit : digits) {
      if (!absl::ascii_isxdigit(digit)) return Refuse("\\u without 4 digits");
    }
    Replace(2 + kDigits, Cat("\\x{", digits, "}"));
    return absl::OkStatus();
  }

  absl::Status Hexadecimal() {
    const size_t close = Rest().find('}');
    if (close == std::string_view::npos || Rest()[2] != '{') {
      return Refuse("\\x without {digits}");
    }
    for (const char digit : Rest().substr(3, close - 3)) {
      if (!absl::ascii_isxdigit(digit)) return Refuse("\\x without {digits}");
    }
    Copy(close + 1);
    return absl::OkStatus();
  }

  std::string_view pattern_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslateSplitPattern(std::string_view pattern) {
  if (pattern.size() > kMaxSplitPatternBytes) {
    return absl::InvalidArgumentError(Cat("the pattern has ", pattern.size(),
                                          " bytes, more than ",
                                          kMaxSplitPatternBytes));
  }
  if (!IsValidUtf8(pattern)) {
    return absl::InvalidArgumentError("the pattern is not valid UTF-8");
  }
  return Translator(pattern).Run();
}

}  // namespace moebius
