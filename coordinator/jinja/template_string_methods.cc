// Methods of strings, with Python's signatures.
#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_format.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {
namespace {

using Flavor = Sequence::Flavor;
constexpr size_t kNowhere = std::string_view::npos;

// A method under way: its object, its name, its arguments.
struct MethodCall {
  Runtime& runtime;
  const Text& self;
  std::string_view name;
  const ArgumentValues& arguments;

  absl::StatusOr<std::vector<std::optional<Value>>> Bind(
      std::initializer_list<std::string_view> names,
      size_t num_required) const {
    return BindArguments(name, arguments, names, num_required);
  }
  absl::StatusOr<Value> Made(std::string text) const {
    return NewString(runtime.budget, std::move(text));
  }
  absl::Status ChargeScan() const {
    return runtime.budget.ChargeBytes(self.bytes.size());
  }
};

using Handler = absl::StatusOr<Value> (*)(const MethodCall& call);

template <std::string (*kConvert)(std::string_view)>
absl::StatusOr<Value> Mapped(const MethodCall& call) {
  RETURN_IF_ERROR(call.Bind({}, 0).status());
  return call.Made(kConvert(call.self.bytes));
}

template <bool (*kHolds)(std::string_view)>
absl::StatusOr<Value> Holds(const MethodCall& call) {
  RETURN_IF_ERROR(call.Bind({}, 0).status());
  RETURN_IF_ERROR(call.ChargeScan());
  return Value::Bool(kHolds(call.self.bytes));
}

bool IsAsciiText(std::string_view text) {
  return CountCharacters(text) == text.size();
}

template <Side kSide>
absl::StatusOr<Value> StripSide(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"chars"}, 0));
  RETURN_IF_ERROR(call.ChargeScan());
  std::optional<std::string_view> chars;
  if (bound[0].has_value() && !bound[0]->is_none()) {
    ASSIGN_OR_RETURN(chars, StringArgument("chars", *bound[0]));
    RETURN_IF_ERROR(call.runtime.budget.ChargeBytes(call.self.bytes.size() *
                                                    (chars->size() / 32 + 1)));
  }
  return call.Made(std::string(Strip(call.self.bytes, chars, kSide)));
}

absl::StatusOr<Value> Strings(const MethodCall& call,
                              const std::vector<std::string_view>& parts,
                              Flavor flavor) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (std::string_view part : parts) {
    ASSIGN_OR_RETURN(Value item, call.Made(std::string(part)));
    items.push_back(std::move(item));
  }
  return NewSequence(call.runtime.budget, flavor, std::move(items));
}

template <bool kFromRight>
absl::StatusOr<Value> Split(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"sep", "maxsplit"}, 0));
  ASSIGN_OR_RETURN(
      long max_splits,
      CountArgument("maxsplit", bound[1].value_or(Value::Integer(-1))));
  RETURN_IF_ERROR(call.ChargeScan());
  if (!bound[0].has_value() || bound[0]->is_none()) {
    RETURN_IF_ERROR(call.runtime.budget.Charge(CountWords(call.self.bytes)));
    return Strings(call, SplitSpace(call.self.bytes, max_splits, kFromRight),
                   Flavor::kList);
  }
  ASSIGN_OR_RETURN(std::string_view separator,
                   StringArgument("sep", *bound[0]));
  if (separator.empty()) return TypeError("empty separator");
  RETURN_IF_ERROR(
      call.runtime.budget.Charge(CountOccurrences(call.self.bytes, separator)));
  return Strings(call,
                 SplitAt(call.self.bytes, separator, max_splits, kFromRight),
                 Flavor::kList);
}

absl::StatusOr<Value> Lines(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"keepends"}, 0));
  RETURN_IF_ERROR(call.ChargeScan());
  RETURN_IF_ERROR(call.runtime.budget.Charge(CountLines(call.self.bytes)));
  const bool keep = bound[0].has_value() && IsTrue(*bound[0]);
  return Strings(call, SplitLines(call.self.bytes, keep), Flavor::kList);
}

template <bool kFromRight>
absl::StatusOr<Value> Partition(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"sep"}, 1));
  RETURN_IF_ERROR(call.ChargeScan());
  ASSIGN_OR_RETURN(std::string_view separator,
                   StringArgument("sep", *bound[0]));
  if (separator.empty()) return TypeError("empty separator");
  const std::string_view text = call.self.bytes;
  const size_t at =
      kFromRight ? FindLast(text, separator) : FindFirst(text, separator);
  if (at == kNowhere) {
    return kFromRight ? Strings(call, {"", "", text}, Flavor::kTuple)
                      : Strings(call, {text, "", ""}, Flavor::kTuple);
  }
  return Strings(
      call, {text.substr(0, at), separator, text.substr(at + separator.size())},
      Flavor::kTuple);
}

// The part of the text between the places `start` and `end`, with the place
// where it begins. Null if start is beyond the text.
struct Range {
  std::string_view text;
  size_t first;  // in characters
};
absl::StatusOr<std::optional<Range>> RangeOf(const MethodCall& call,
                                             const std::optional<Value>& start,
                                             const std::optional<Value>& end) {
  const auto size = static_cast<long>(call.self.num_characters);
  long first = 0, last = size;
  if (start.has_value() && !start->is_none()) {
    ASSIGN_OR_RETURN(first, CountArgument("start", *start));
  }
  if (end.has_value() && !end->is_none()) {
    ASSIGN_OR_RETURN(last, CountArgument("end", *end));
  }
  if (first < 0) first = std::max(0L, first + size);
  if (last < 0) last = std::max(0L, last + size);
  last = std::min(last, size);
  if (first > last) return std::nullopt;
  RETURN_IF_ERROR(call.ChargeScan());
  const std::string_view text = call.self.bytes;
  const size_t begin = ByteOffset(text, first);
  return Range{text.substr(begin, ByteOffset(text, last) - begin),
               static_cast<size_t>(first)};
}

template <bool kFromRight, bool kMustBeThere>
absl::StatusOr<Value> Find(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"sub", "start", "end"}, 1));
  ASSIGN_OR_RETURN(std::string_view wanted, StringArgument("sub", *bound[0]));
  ASSIGN_OR_RETURN(auto range, RangeOf(call, bound[1], bound[2]));
  if (range.has_value()) {
    const size_t at = kFromRight ? FindLast(range->text, wanted)
                                 : FindFirst(range->text, wanted);
    if (at != kNowhere) {
      return Value::Integer(static_cast<Int>(
          range->first + CountCharacters(range->text.substr(0, at))));
    }
  }
  if (kMustBeThere) return TypeError("substring not found");
  return Value::Integer(-1);
}

absl::StatusOr<Value> Count(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"sub", "start", "end"}, 1));
  ASSIGN_OR_RETURN(std::string_view wanted, StringArgument("sub", *bound[0]));
  ASSIGN_OR_RETURN(auto range, RangeOf(call, bound[1], bound[2]));
  if (!range.has_value()) return Value::Integer(0);
  return Value::Integer(
      static_cast<Int>(CountOccurrences(range->text, wanted)));
}

template <bool kStart>
absl::StatusOr<Value> Affix(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"prefix", "start", "end"}, 1));
  ASSIGN_OR_RETURN(auto range, RangeOf(call, bound[1], bound[2]));
  std::vector<Value> wanted = {*bound[0]};
  if (auto tuple = bound[0]->sequence();
      tuple && tuple->flavor == Flavor::kTuple) {
    wanted = tuple->items;
  }
  bool found = false;
  for (const Value& value : wanted) {
    ASSIGN_OR_RETURN(std::string_view affix, StringArgument("prefix", value));
    RETURN_IF_ERROR(call.runtime.budget.ChargeBytes(affix.size()));
    found =
        found || (range.has_value() && (kStart ? range->text.starts_with(affix)
                                               : range->text.ends_with(affix)));
  }
  return Value::Bool(found);
}

template <bool kStart>
absl::StatusOr<Value> RemoveAffix(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"prefix"}, 1));
  ASSIGN_OR_RETURN(std::string_view affix, StringArgument("prefix", *bound[0]));
  std::string_view text = call.self.bytes;
  if (kStart && text.starts_with(affix)) text.remove_prefix(affix.size());
  if (!kStart && text.ends_with(affix)) text.remove_suffix(affix.size());
  return call.Made(std::string(text));
}

absl::StatusOr<Value> ReplaceIn(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"old", "new", "count"}, 2));
  ASSIGN_OR_RETURN(std::string_view from, StringArgument("old", *bound[0]));
  ASSIGN_OR_RETURN(std::string_view to, StringArgument("new", *bound[1]));
  ASSIGN_OR_RETURN(
      long count,
      CountArgument("count", bound[2].value_or(Value::Integer(-1))));
  const std::string& text = call.self.bytes;
  RETURN_IF_ERROR(call.ChargeScan());
  RETURN_IF_ERROR(call.runtime.budget.ChargeBytes(CountOccurrences(text, from) *
                                                  to.size()));
  return call.Made(Replace(text, from, to, count));
}

absl::StatusOr<Value> JoinWith(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"iterable"}, 1));
  ASSIGN_OR_RETURN(Items items, Iterate(call.runtime, *bound[0]));
  std::string out;
  for (size_t i = 0; i < items->size(); ++i) {
    ASSIGN_OR_RETURN(std::string_view item,
                     StringArgument("item", (*items)[i]));
    RETURN_IF_ERROR(
        call.runtime.budget.ChargeBytes(item.size() + call.self.bytes.size()));
    if (i > 0) out += call.self.bytes;
    out += item;
  }
  return call.Made(std::move(out));
}

// The fill characters that padding to `width` takes.
absl::StatusOr<size_t> Missing(const MethodCall& call, const Value& width) {
  ASSIGN_OR_RETURN(long wanted, CountArgument("width", width));
  const auto size = static_cast<long>(call.self.num_characters);
  const auto missing = static_cast<size_t>(std::max(0L, wanted - size));
  RETURN_IF_ERROR(call.runtime.budget.ChargeBytes(
      std::min(missing, std::numeric_limits<size_t>::max() / 4) * 4));
  return missing;
}

enum class Align { kLeft, kRight, kCenter };

template <Align kAlign>
absl::StatusOr<Value> Justify(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"width", "fillchar"}, 1));
  ASSIGN_OR_RETURN(size_t missing, Missing(call, *bound[0]));
  const Value fill_value = bound[1].value_or(Value::String(" "));
  ASSIGN_OR_RETURN(std::string_view fill,
                   StringArgument("fillchar", fill_value));
  if (CountCharacters(fill) != 1) {
    return TypeError("the fill character must be one character long");
  }
  // The odd character of an uneven centring goes where CPython puts it.
  const size_t width = call.self.num_characters + missing;
  const size_t left = kAlign == Align::kLeft ? 0
                      : kAlign == Align::kRight
                          ? missing
                          : missing / 2 + (missing & width & 1);
  std::string out;
  for (size_t i = 0; i < left; ++i) out += fill;
  out += call.self.bytes;
  for (size_t i = left; i < missing; ++i) out += fill;
  return call.Made(std::move(out));
}

absl::StatusOr<Value> ZeroFill(const MethodCall& call) {
  ASSIGN_OR_RETURN(auto bound, call.Bind({"width"}, 1));
  ASSIGN_OR_RETURN(size_t missing, Missing(call, *bound[0]));
  const std::string& text = call.self.bytes;
  const bool is_signed = !text.empty() && (text[0] == '-' || text[0] == '+');
  return call.Made(StrCat(text.substr(0, is_signed), std::string(missing, '0'),
                          text.substr(is_signed)));
}

absl::StatusOr<Value> FormatText(const MethodCall& call) {
  ASSIGN_OR_RETURN(std::string text,
                   FormatBraces(call.runtime, call.self.bytes, call.arguments));
  return call.Made(std::move(text));
}

absl::StatusOr<Value> NotSupported(const MethodCall& call) {
  return TypeError(
      StrCat("the string method '", call.name, "' is not supported"));
}

constexpr std::pair<std::string_view, Handler> kMethods[] = {
    {"capitalize", Mapped<Capitalize>},
    {"casefold", Mapped<ToLower>},
    {"center", Justify<Align::kCenter>},
    {"count", Count},
    {"encode", NotSupported},
    {"endswith", Affix<false>},
    {"expandtabs", NotSupported},
    {"find", Find<false, false>},
    {"format", FormatText},
    {"format_map", NotSupported},
    {"index", Find<false, true>},
    {"isalnum", Holds<IsAllAlphanumeric>},
    {"isalpha", Holds<IsAllAlpha>},
    {"isascii", Holds<IsAsciiText>},
    {"isdecimal", Holds<IsAllDigits>},
    {"isdigit", Holds<IsAllDigits>},
    {"isidentifier", NotSupported},
    {"islower", Holds<IsAllLower>},
    {"isnumeric", Holds<IsAllNumeric>},
    {"isprintable", NotSupported},
    {"isspace", Holds<IsAllSpace>},
    {"istitle", NotSupported},
    {"isupper", Holds<IsAllUpper>},
    {"join", JoinWith},
    {"ljust", Justify<Align::kLeft>},
    {"lower", Mapped<ToLower>},
    {"lstrip", StripSide<Side::kLeft>},
    {"maketrans", NotSupported},
    {"partition", Partition<false>},
    {"removeprefix", RemoveAffix<true>},
    {"removesuffix", RemoveAffix<false>},
    {"replace", ReplaceIn},
    {"rfind", Find<true, false>},
    {"rindex", Find<true, true>},
    {"rjust", Justify<Align::kRight>},
    {"rpartition", Partition<true>},
    {"rsplit", Split<true>},
    {"rstrip", StripSide<Side::kRight>},
    {"split", Split<false>},
    {"splitlines", Lines},
    {"startswith", Affix<true>},
    {"strip", StripSide<Side::kBoth>},
    {"swapcase", Mapped<SwapCase>},
    {"title", Mapped<TitleWords>},
    {"translate", NotSupported},
    {"upper", Mapped<ToUpper>},
    {"zfill", ZeroFill},
};

const std::pair<std::string_view, Handler>* FindMethodNamed(
    std::string_view name) {
  const auto at =
      std::find_if(std::begin(kMethods), std::end(kMethods),
                   [name](const auto& method) { return method.first == name; });
  return at == std::end(kMethods) ? nullptr : at;
}

}  // namespace

bool IsStringMethod(std::string_view name) {
  return FindMethodNamed(name) != nullptr;
}

absl::StatusOr<Value> CallStringMethod(Runtime& runtime, const Text& self,
                                       std::string_view name,
                                       const ArgumentValues& arguments) {
  RETURN_IF_ERROR(runtime.budget.Charge(1));
  const auto method = FindMethodNamed(name);
  if (method == nullptr) {
    return TypeError(StrCat("strings have no method '", name, "'"));
  }
  return method->second(MethodCall{runtime, self, name, arguments});
}

}  // namespace moebius::jinja
