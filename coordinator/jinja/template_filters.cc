// Filters of text, numbers and single values; the dispatcher of all filters.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_filter_table.h"
#include "coordinator/jinja/template_json.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {
namespace {

absl::StatusOr<Value> String(Runtime& runtime, const Value& input,
                             const ArgumentValues& arguments) {
  RETURN_IF_ERROR(BindArguments("string", arguments, {}, 0).status());
  if (input.text()) return input;
  ASSIGN_OR_RETURN(std::string text, ToText(runtime.budget, input));
  return NewString(runtime.budget, std::move(text));
}

// A filter that is one function of the input as a string.
template <std::string (*kConvert)(std::string_view)>
absl::StatusOr<Value> Mapped(Runtime& runtime, const Value& input,
                             const ArgumentValues& arguments) {
  RETURN_IF_ERROR(BindArguments("the filter", arguments, {}, 0).status());
  ASSIGN_OR_RETURN(std::string text, ToText(runtime.budget, input));
  return NewString(runtime.budget, kConvert(text));
}

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

absl::StatusOr<Value> Trim(Runtime& runtime, const Value& input,
                           const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound, BindArguments("trim", arguments, {"chars"}, 0));
  ASSIGN_OR_RETURN(std::string text, ToText(runtime.budget, input));
  std::optional<std::string_view> chars;
  if (bound[0].has_value() && !bound[0]->is_none()) {
    ASSIGN_OR_RETURN(chars, StringArgument("chars", *bound[0]));
    RETURN_IF_ERROR(
        runtime.budget.ChargeBytes(text.size() * (chars->size() / 32 + 1)));
  }
  return NewString(runtime.budget,
                   std::string(Strip(text, chars, Side::kBoth)));
}

absl::StatusOr<Value> ReplaceText(Runtime& runtime, const Value& input,
                                  const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound, BindArguments("replace", arguments,
                                             {"old", "new", "count"}, 2));
  ASSIGN_OR_RETURN(std::string text, ToText(runtime.budget, input));
  ASSIGN_OR_RETURN(std::string from, ToText(runtime.budget, *bound[0]));
  ASSIGN_OR_RETURN(std::string to, ToText(runtime.budget, *bound[1]));
  long count = -1;
  if (bound[2].has_value() && !bound[2]->is_none()) {
    ASSIGN_OR_RETURN(count, CountArgument("count", *bound[2]));
  }
  RETURN_IF_ERROR(runtime.budget.ChargeBytes(text.size()));
  RETURN_IF_ERROR(
      runtime.budget.ChargeBytes(CountOccurrences(text, from) * to.size()));
  return NewString(runtime.budget, Replace(text, from, to, count));
}

// The width of indentation, padding: spaces, or the string given.
absl::StatusOr<std::string> Padding(Runtime& runtime, const Value& width) {
  if (auto text = width.text()) return text->bytes;
  ASSIGN_OR_RETURN(long count, CountArgument("width", width));
  const auto size = static_cast<size_t>(std::max(0L, count));
  RETURN_IF_ERROR(runtime.budget.ChargeBytes(size));
  return std::string(size, ' ');
}

absl::StatusOr<Value> Indent(Runtime& runtime, const Value& input,
                             const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound, BindArguments("indent", arguments,
                                             {"width", "first", "blank"}, 0));
  ASSIGN_OR_RETURN(std::string_view text, StringArgument("s", input));
  ASSIGN_OR_RETURN(std::string padding,
                   Padding(runtime, bound[0].value_or(Value::Integer(4))));
  const bool first = bound[1].has_value() && IsTrue(*bound[1]);
  const bool blank = bound[2].has_value() && IsTrue(*bound[2]);
  const std::string ended = StrCat(text, "\n");
  RETURN_IF_ERROR(runtime.budget.Charge(CountLines(ended)));
  const auto lines = SplitLines(ended, /*keep_ends=*/false);
  RETURN_IF_ERROR(
      runtime.budget.ChargeBytes(text.size() + lines.size() * padding.size()));
  std::string out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += '\n';
    if (i == 0 ? first : blank || !lines[i].empty()) out += padding;
    out += lines[i];
  }
  return NewString(runtime.budget, std::move(out));
}

absl::StatusOr<Value> Center(Runtime& runtime, const Value& input,
                             const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound,
                   BindArguments("center", arguments, {"width"}, 0));
  ASSIGN_OR_RETURN(Value text, String(runtime, input, {}));
  return CallStringMethod(runtime, *text.text(), "center",
                          {{bound[0].value_or(Value::Integer(80))}, {}});
}

absl::StatusOr<Value> Default(Runtime&, const Value& input,
                              const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound, BindArguments("default", arguments,
                                             {"default_value", "boolean"}, 0));
  const bool also_false = bound[1].has_value() && IsTrue(*bound[1]);
  if (!input.is_undefined() && !(also_false && !IsTrue(input))) return input;
  return bound[0].value_or(Value::String(""));
}

absl::StatusOr<Value> Attr(Runtime& runtime, const Value& input,
                           const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound, BindArguments("attr", arguments, {"name"}, 1));
  ASSIGN_OR_RETURN(std::string_view name, StringArgument("name", *bound[0]));
  if (input.dict() && FindMethod(input, name) == MethodKind::kNone) {
    return Value::Missing(
        StrCat("'dict object' has no attribute '", name, "'"));
  }
  return GetAttribute(runtime, input, name);
}

absl::StatusOr<Value> Format(Runtime& runtime, const Value& input,
                             const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(std::string format, ToText(runtime.budget, input));
  if (!arguments.keyword.empty() && !arguments.positional.empty()) {
    return TypeError("format takes positional or keyword arguments, not both");
  }
  std::vector<std::pair<Value, Value>> entries;
  for (const auto& [name, value] : arguments.keyword) {
    entries.emplace_back(Value::String(name), value);
  }
  Value mapping;
  if (!entries.empty()) {
    ASSIGN_OR_RETURN(mapping, NewDict(runtime.budget, std::move(entries)));
  }
  ASSIGN_OR_RETURN(
      std::string out,
      FormatPercent(runtime, format, arguments.positional, mapping));
  return NewString(runtime.budget, std::move(out));
}

absl::StatusOr<Value> ToJsonText(Runtime& runtime, const Value& input,
                                 const ArgumentValues& arguments) {
  // The parameters of Hugging Face's filter, which replaces Jinja's.
  ASSIGN_OR_RETURN(
      auto bound,
      BindArguments("tojson", arguments,
                    {"ensure_ascii", "indent", "separators", "sort_keys"}, 0));
  JsonStyle style;
  style.ensure_ascii = bound[0].has_value() && IsTrue(*bound[0]);
  if (bound[1].has_value() && !bound[1]->is_none()) {
    ASSIGN_OR_RETURN(style.indent, Padding(runtime, *bound[1]));
    style.item_separator.assign(1, ',');
  }
  if (bound[2].has_value() && !bound[2]->is_none()) {
    ASSIGN_OR_RETURN(Items pair, Iterate(runtime, *bound[2]));
    if (pair->size() != 2) return TypeError("separators must be a pair");
    ASSIGN_OR_RETURN(std::string_view item,
                     StringArgument("separators", (*pair)[0]));
    ASSIGN_OR_RETURN(std::string_view key,
                     StringArgument("separators", (*pair)[1]));
    style.item_separator = std::string(item);
    style.key_separator = std::string(key);
  }
  style.sort_keys = bound[3].has_value() && IsTrue(*bound[3]);
  ASSIGN_OR_RETURN(std::string text, ToJson(runtime.budget, input, style));
  return NewString(runtime.budget, std::move(text));
}

// int(text, base); null where Python raises ValueError.
absl::StatusOr<std::optional<Int>> ParseInteger(std::string_view text,
                                                int base) {
  std::string_view rest = Strip(text, std::nullopt, Side::kBoth);
  bool negative = false;
  if (!rest.empty() && (rest[0] == '-' || rest[0] == '+')) {
    negative = rest[0] == '-';
    rest.remove_prefix(1);
  }
  const char mark =
      rest.size() > 2 && rest[0] == '0' ? absl::ascii_tolower(rest[1]) : '\0';
  const int marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
  if (marked != 0 && (base == marked || base == 0)) {
    base = marked;
    rest.remove_prefix(rest[2] == '_' ? 3 : 2);
  } else if (base == 0) {
    base = 10;
  }
  Int value = 0;
  bool after_digit = false;
  for (char raw : rest) {
    if (raw == '_' && after_digit) {
      after_digit = false;
      continue;
    }
    const char c = absl::ascii_tolower(raw);
    const int digit = absl::ascii_isdigit(c)   ? c - '0'
                      : absl::ascii_isalpha(c) ? c - 'a' + 10
                                               : 99;
    if (digit >= base) return std::nullopt;
    if (__builtin_mul_overflow(value, Int{base}, &value) ||
        __builtin_add_overflow(value, Int{digit}, &value)) {
      return TypeError("the integer is too large");
    }
    after_digit = true;
  }
  if (!after_digit) return std::nullopt;
  return negative ? -value : value;
}

// float(text); null where Python raises ValueError.
std::optional<double> ParseFloat(std::string_view text) {
  std::string plain(Strip(text, std::nullopt, Side::kBoth));
  for (size_t i = 0; i < plain.size();) {
    if (plain[i] != '_') {
      ++i;
      continue;
    }
    if (i == 0 || i + 1 == plain.size() || !absl::ascii_isdigit(plain[i - 1]) ||
        !absl::ascii_isdigit(plain[i + 1])) {
      return std::nullopt;
    }
    plain.erase(i, 1);
  }
  double number;
  if (!absl::SimpleAtod(plain, &number)) return std::nullopt;
  return number;
}

absl::StatusOr<std::optional<Int>> TruncateFloat(double number) {
  if (std::isnan(number)) return std::nullopt;
  if (!(std::abs(number) < 0x1p126)) {
    return TypeError("cannot convert float to integer");
  }
  return static_cast<Int>(number);
}

absl::StatusOr<Value> ToInteger(Runtime& runtime, const Value& input,
                                const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound,
                   BindArguments("int", arguments, {"default", "base"}, 0));
  ASSIGN_OR_RETURN(
      Int base, IntegerArgument("base", bound[1].value_or(Value::Integer(10))));
  Int integer;
  if (AsInteger(input, &integer)) return Value::Integer(integer);
  std::optional<Int> parsed;
  if (auto text = input.text()) {
    RETURN_IF_ERROR(runtime.budget.ChargeBytes(text->bytes.size()));
    if (base == 0 || (base >= 2 && base <= 36)) {
      ASSIGN_OR_RETURN(parsed,
                       ParseInteger(text->bytes, static_cast<int>(base)));
    }
    if (!parsed.has_value()) {
      const auto number = ParseFloat(text->bytes);
      if (number.has_value()) {
        ASSIGN_OR_RETURN(parsed, TruncateFloat(*number));
      }
    }
  } else if (auto number = input.If<double>()) {
    ASSIGN_OR_RETURN(parsed, TruncateFloat(*number));
  } else if (auto undefined = input.If<Undefined>()) {
    return UndefinedError(*undefined);
  }
  if (parsed.has_value()) return Value::Integer(*parsed);
  return bound[0].value_or(Value::Integer(0));
}

absl::StatusOr<Value> ToFloat(Runtime& runtime, const Value& input,
                              const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound,
                   BindArguments("float", arguments, {"default"}, 0));
  double number;
  if (AsNumber(input, &number)) return Value::Float(number);
  if (auto text = input.text()) {
    RETURN_IF_ERROR(runtime.budget.ChargeBytes(text->bytes.size()));
    const auto parsed = ParseFloat(text->bytes);
    if (parsed.has_value()) return Value::Float(*parsed);
  } else if (auto undefined = input.If<Undefined>()) {
    return UndefinedError(*undefined);
  }
  return bound[0].value_or(Value::Float(0.0));
}

absl::StatusOr<Value> Abs(Runtime&, const Value& input,
                          const ArgumentValues& arguments) {
  RETURN_IF_ERROR(BindArguments("abs", arguments, {}, 0).status());
  Int integer;
  if (AsInteger(input, &integer)) {
    return integer < 0 ? Negate(input) : Value::Integer(integer);
  }
  if (auto number = input.If<double>()) return Value::Float(std::abs(*number));
  if (auto undefined = input.If<Undefined>()) return UndefinedError(*undefined);
  return TypeError(
      StrCat("bad operand type for abs(): '", TypeName(input), "'"));
}

// round(): to the nearest, ties to even, of the exact binary value.
absl::StatusOr<Value> RoundCommon(const Value& input, long precision) {
  Int integer;
  if (AsInteger(input, &integer)) {
    if (precision >= 0) return Value::Integer(integer);
    if (precision < -38) return Value::Integer(0);
    Int unit = 1;
    for (long i = 0; i > precision; --i) {
      if (__builtin_mul_overflow(unit, Int{10}, &unit)) {
        return Value::Integer(0);
      }
    }
    Int rest = integer % unit;
    if (rest < 0) rest += unit;
    Int down = integer - rest;
    const bool up =
        rest > unit - rest || (rest == unit - rest && (down / unit) % 2 != 0);
    return Value::Integer(up ? down + unit : down);
  }
  const double number = *input.If<double>();
  if (!std::isfinite(number)) return Value::Float(number);
  if (precision < 0) {
    if (precision < -308) return Value::Float(std::copysign(0.0, number));
    const double unit = std::pow(10.0, static_cast<double>(-precision));
    return Value::Float(std::nearbyint(number / unit) * unit);
  }
  // A double has no digits beyond these places.
  if (precision > 330) return Value::Float(number);
  char buffer[700];
  const int size = std::snprintf(buffer, sizeof(buffer), "%.*f",
                                 static_cast<int>(precision), number);
  double rounded = number;
  if (!absl::SimpleAtod(absl::string_view(buffer, size), &rounded)) {
    return TypeError("the number cannot be rounded");
  }
  return Value::Float(rounded);
}

absl::StatusOr<Value> Round(Runtime&, const Value& input,
                            const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound, BindArguments("round", arguments,
                                             {"precision", "method"}, 0));
  ASSIGN_OR_RETURN(
      long precision,
      CountArgument("precision", bound[0].value_or(Value::Integer(0))));
  const Value method_value = bound[1].value_or(Value::String("common"));
  ASSIGN_OR_RETURN(std::string_view method,
                   StringArgument("method", method_value));
  if (method != "common" && method != "ceil" && method != "floor") {
    return TypeError("method must be common, ceil or floor");
  }
  if (auto undefined = input.If<Undefined>()) return UndefinedError(*undefined);
  double number;
  if (!AsNumber(input, &number)) {
    return TypeError(
        StrCat("type ", TypeName(input), " doesn't define a rounding method"));
  }
  if (method == "common") return RoundCommon(input, precision);
  if (precision > 308 || precision < -308 || !std::isfinite(number)) {
    return TypeError("the number cannot be rounded");
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = number * scale;
  return Value::Float(
      (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

constexpr NamedFilter kScalarFilters[] = {
    {"abs", Abs},
    {"attr", Attr},
    {"capitalize", Mapped<Capitalize>},
    {"center", Center},
    {"d", Default},
    {"default", Default},
    {"e", Mapped<EscapeHtml>},
    {"escape", Mapped<EscapeHtml>},
    {"float", ToFloat},
    {"forceescape", Mapped<EscapeHtml>},
    {"format", Format},
    {"indent", Indent},
    {"int", ToInteger},
    {"lower", Mapped<ToLower>},
    {"replace", ReplaceText},
    {"round", Round},
    {"safe", String},
    {"string", String},
    {"title", Mapped<TitleFilter>},
    {"tojson", ToJsonText},
    {"trim", Trim},
    {"upper", Mapped<ToUpper>},
};

const NamedFilter* FindFilter(std::string_view name) {
  for (const auto table :
       {absl::MakeConstSpan(kScalarFilters), SequenceFilters()}) {
    const auto at = std::find_if(
        table.begin(), table.end(),
        [name](const NamedFilter& filter) { return filter.name == name; });
    if (at != table.end()) return &*at;
  }
  return nullptr;
}

}  // namespace

bool IsFilter(std::string_view name) { return FindFilter(name) != nullptr; }

absl::StatusOr<Value> CallFilter(Runtime& runtime, std::string_view name,
                                 const Value& input,
                                 const ArgumentValues& arguments) {
  RETURN_IF_ERROR(runtime.budget.Charge(1));
  const EvaluationLevel level(runtime);  // map('map', 'map', ...)
  RETURN_IF_ERROR(level.Check());
  const NamedFilter* filter = FindFilter(name);
  if (filter == nullptr) {
    return TypeError(StrCat("no filter named '", name, "'"));
  }
  return filter->call(runtime, input, arguments);
}

}  // namespace moebius::jinja
