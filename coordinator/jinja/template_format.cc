#include "coordinator/jinja/template_format.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {
namespace {

// One "%..." of a format string.
struct Conversion {
  std::string key;  // of "%(key)s"
  bool has_key = false;
  bool left = false, zero = false, plus = false, space = false;
  int width = 0;
  int precision = -1;
  char type = 0;
};

absl::Status Incomplete() { return TypeError("incomplete format"); }

class PercentFormatter {
 public:
  PercentFormatter(Runtime& runtime, std::string_view format,
                   const std::vector<Value>& values, const Value& mapping)
      : runtime_(runtime),
        format_(format),
        values_(values),
        mapping_(mapping) {}

  absl::StatusOr<std::string> Run() {
    RETURN_IF_ERROR(runtime_.budget.ChargeBytes(format_.size()));
    std::string out;
    while (at_ < format_.size()) {
      const size_t percent = std::min(format_.find('%', at_), format_.size());
      out.append(format_.substr(at_, percent - at_));
      at_ = percent;
      if (at_ == format_.size()) break;
      ++at_;
      ASSIGN_OR_RETURN(Conversion conversion, Read());
      if (conversion.type == '%') {
        out.push_back('%');
        continue;
      }
      ASSIGN_OR_RETURN(Value value, ValueOf(conversion));
      ASSIGN_OR_RETURN(std::string body, Convert(conversion, value));
      Pad(conversion, body, &out);
    }
    if (!used_key_ && next_ < values_.size() && !mapping_.dict()) {
      return TypeError("not all arguments converted during formatting");
    }
    return out;
  }

 private:
  absl::StatusOr<int> ReadNumber() {
    int number = 0;
    while (at_ < format_.size() && absl::ascii_isdigit(format_[at_])) {
      number = number * 10 + (format_[at_++] - '0');
      if (number > kMaxFormatWidth) return TypeError("the width is too large");
    }
    return number;
  }

  absl::StatusOr<Conversion> Read() {
    Conversion conversion;
    if (at_ < format_.size() && format_[at_] == '(') {
      const size_t end = format_.find(')', at_);
      if (end == std::string_view::npos) return Incomplete();
      conversion.has_key = true;
      conversion.key = std::string(format_.substr(at_ + 1, end - at_ - 1));
      at_ = end + 1;
    }
    for (; at_ < format_.size(); ++at_) {
      const char c = format_[at_];
      if (c == '-') {
        conversion.left = true;
      } else if (c == '0') {
        conversion.zero = true;
      } else if (c == '+') {
        conversion.plus = true;
      } else if (c == ' ') {
        conversion.space = true;
      } else {
        break;
      }
    }
    ASSIGN_OR_RETURN(conversion.width, ReadNumber());
    if (at_ < format_.size() && format_[at_] == '.') {
      ++at_;
      ASSIGN_OR_RETURN(conversion.precision, ReadNumber());
    }
    if (at_ == format_.size()) return Incomplete();
    conversion.type = format_[at_++];
    return conversion;
  }

  absl::StatusOr<Value> ValueOf(const Conversion& conversion) {
    if (conversion.has_key) {
      used_key_ = true;
      const Dict* dict = mapping_.dict();
      if (dict == nullptr) return TypeError("format requires a mapping");
      const Value* value = dict->Find(Value::String(conversion.key));
      if (value != nullptr) return *value;
      return TypeError(StrCat("no key '", conversion.key, "' to format"));
    }
    if (next_ < values_.size()) return values_[next_++];
    return TypeError("not enough arguments for format string");
  }

  absl::StatusOr<std::string> Convert(const Conversion& conversion,
                                      const Value& value) {
    switch (conversion.type) {
      case 's':
      case 'r': {
        ASSIGN_OR_RETURN(std::string text,
                         conversion.type == 's'
                             ? ToText(runtime_.budget, value)
                             : ToRepr(runtime_.budget, value));
        if (conversion.precision >= 0) {
          text.resize(ByteOffset(text, conversion.precision));
        }
        return text;
      }
      case 'd':
      case 'i':
      case 'u':
        return Decimal(conversion, value);
      case 'x':
      case 'X':
        return Hexadecimal(conversion, value);
      case 'f':
      case 'F':
      case 'e':
      case 'E':
      case 'g':
      case 'G':
        return Real(conversion, value);
      default:
        return TypeError("unsupported format character");
    }
  }

  std::string Signed(const Conversion& conversion, bool negative,
                     std::string_view digits) const {
    const std::string_view sign = negative           ? "-"
                                  : conversion.plus  ? "+"
                                  : conversion.space ? " "
                                                     : "";
    return StrCat(sign, digits);
  }

  absl::StatusOr<std::string> Decimal(const Conversion& conversion,
                                      const Value& value) {
    Int integer;
    if (auto number = value.If<double>()) {
      if (!(std::abs(*number) < 0x1p126)) {
        return TypeError("the number is too large to format");
      }
      integer = static_cast<Int>(*number);
    } else if (!AsInteger(value, &integer)) {
      return TypeError(
          StrCat("%d format: a number is required, not ", TypeName(value)));
    }
    std::string digits = IntToText(integer);
    if (integer < 0) digits.erase(0, 1);
    if (conversion.precision > static_cast<int>(digits.size())) {
      digits.insert(0, conversion.precision - digits.size(), '0');
    }
    return Signed(conversion, integer < 0, digits);
  }

  absl::StatusOr<std::string> Hexadecimal(const Conversion& conversion,
                                          const Value& value) {
    Int integer;
    if (!AsInteger(value, &integer)) {
      return TypeError(
          StrCat("%x format: an integer is required, not ", TypeName(value)));
    }
    auto rest = static_cast<unsigned __int128>(integer);
    if (integer < 0) rest = -rest;
    const char* kDigits =
        conversion.type == 'x' ? "0123456789abcdef" : "0123456789ABCDEF";
    std::string digits;
    do {
      digits.push_back(kDigits[static_cast<int>(rest % 16)]);
      rest /= 16;
    } while (rest != 0);
    std::reverse(digits.begin(), digits.end());
    return Signed(conversion, integer < 0, digits);
  }

  absl::StatusOr<std::string> Real(const Conversion& conversion,
                                   const Value& value) {
    double number;
    if (!AsNumber(value, &number)) {
      return TypeError(StrCat("must be real number, not ", TypeName(value)));
    }
    const std::string format =
        StrCat("%.*", std::string_view(&conversion.type, 1));
    const int precision = conversion.precision >= 0 ? conversion.precision : 6;
    const double magnitude = std::abs(number);
    char buffer[kMaxFormatWidth + 400];  // 309 digits before the point
    const int size = std::snprintf(buffer, sizeof(buffer), format.c_str(),
                                   precision, magnitude);
    return Signed(conversion, std::signbit(number) && !std::isnan(number),
                  std::string_view(buffer, size));
  }

  static void Pad(const Conversion& conversion, std::string_view body,
                  std::string* out) {
    const auto size = static_cast<int>(CountCharacters(body));
    const int padding = std::max(0, conversion.width - size);
    const bool is_number = conversion.type != 's' && conversion.type != 'r';
    if (conversion.left) {
      out->append(body).append(padding, ' ');
    } else if (conversion.zero && is_number) {
      const size_t sign =
          !body.empty() && !absl::ascii_isalnum(body[0]) ? 1 : 0;
      out->append(body.substr(0, sign)).append(padding, '0');
      out->append(body.substr(sign));
    } else {
      out->append(padding, ' ').append(body);
    }
  }

  Runtime& runtime_;
  std::string_view format_;
  const std::vector<Value>& values_;
  const Value& mapping_;
  size_t at_ = 0;
  size_t next_ = 0;
  bool used_key_ = false;
};

}  // namespace

absl::StatusOr<std::string> FormatPercent(Runtime& runtime,
                                          std::string_view format,
                                          const std::vector<Value>& values,
                                          const Value& mapping) {
  return PercentFormatter(runtime, format, values, mapping).Run();
}

absl::StatusOr<std::string> FormatBraces(Runtime& runtime,
                                         std::string_view format,
                                         const ArgumentValues& arguments) {
  RETURN_IF_ERROR(runtime.budget.ChargeBytes(format.size()));
  std::string out;
  size_t next = 0;
  for (size_t at = 0; at < format.size(); ++at) {
    const char c = format[at];
    if (c != '{' && c != '}') {
      out.push_back(c);
      continue;
    }
    if (at + 1 < format.size() && format[at + 1] == c) {
      out.push_back(c);
      ++at;
      continue;
    }
    const size_t end = format.find('}', at);
    if (c == '}' || end == std::string_view::npos) {
      return TypeError("unbalanced brace in format string");
    }
    const std::string field(format.substr(at + 1, end - at - 1));
    at = end;
    const Value* value = nullptr;
    size_t index = next;
    if (field.empty()) ++next;
    if (field.empty() || absl::SimpleAtoi(field, &index)) {
      if (index < arguments.positional.size()) {
        value = &arguments.positional[index];
      }
    } else {
      for (const auto& [name, argument] : arguments.keyword) {
        if (name == field) value = &argument;
      }
    }
    if (value == nullptr) {
      return TypeError(StrCat("format field '{", field, "}' has no argument"));
    }
    ASSIGN_OR_RETURN(std::string text, ToText(runtime.budget, *value));
    out.append(text);
  }
  return out;
}

}  // namespace moebius::jinja
