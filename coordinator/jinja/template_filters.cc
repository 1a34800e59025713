// Filters: what may stand after "|". Those that are methods of strings as well
// are in template_functions.cc.
#include <algorithm>
#include <cmath>
#include <compare>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_json.h"
#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

using Flavor = Sequence::Flavor;

// ---- of text, numbers and single values ----

ValueOr String(const BuiltinCall& call) {
  if (call.self().text()) return call.self();
  ASSIGN_OR_RETURN(std::string text, call.ToText(call.self()));
  return call.New(std::move(text));
}

ValueOr Title(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(std::string text, call.ToText(call.self()));
  return call.New(TitleFilter(text));
}

// Argument i as indentation: a number of spaces, 4 if it is not given, or the
// string itself.
absl::StatusOr<std::string> Padding(const BuiltinCall& call, size_t i) {
  if (auto text = call[i].text()) return text->bytes;
  ASSIGN_OR_RETURN(Int count, call.Integer(i, 4));
  const auto size = static_cast<size_t>(std::max(Int{0}, count));
  RETURN_IF_ERROR(call.ChargeBytes(size));
  return std::string(size, ' ');
}

ValueOr Indent(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(std::string_view text, StringArgument("s", call.self()));
  ASSIGN_OR_RETURN(std::string padding, Padding(call, 0));
  const bool first = call.is_true(1), blank = call.is_true(2);
  std::string out;
  bool is_first = true, is_last = false;
  while (!is_last) {
    const size_t size = LineBytes(text);
    RETURN_IF_ERROR(call.ChargeBytes(size + padding.size()));
    if (!is_first) out += '\n';
    if (is_first ? first : blank || size > 0) out += padding;
    out += text.substr(0, size);
    is_first = false;
    is_last = size == text.size();
    text.remove_prefix(size + LineEndBytes(text, size));
  }
  return call.New(std::move(out));
}

ValueOr Default(const BuiltinCall& call) {
  const bool is_kept =
      call.is_true(1) ? IsTrue(call.self()) : !call.self().is_undefined();
  if (is_kept) return call.self();
  return call.is_given(0) ? call[0] : Value::String("");
}

// Conversions are "%s", "%d" and "%%", with a width.
ValueOr Format(const BuiltinCall& call) {
  constexpr int kMaxWidth = 1000;
  const std::vector<Value>& values = call.passed().positional;
  ASSIGN_OR_RETURN(const std::string format, call.ToText(call.self()));
  std::string out;
  size_t next = 0;
  for (size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%' || format.compare(at, 2, "%%") == 0) {
      out.push_back(format[at]);
      at += format[at] == '%';
      continue;
    }
    const size_t begin = at + 1;
    at = std::min(format.find_first_not_of("0123456789", begin), format.size());
    const std::string digits = format.substr(begin, at - begin);
    const std::string type = format.substr(at, 1);
    int width = 0;
    if (!digits.empty() &&
        (!absl::SimpleAtoi(digits, &width) || width > kMaxWidth)) {
      return TypeError("the width is too large");
    }
    if ((type != "s" && type != "d") || digits.starts_with('0')) {
      return TypeError("only %s, %d and %% are supported in a format");
    }
    if (next == values.size()) {
      return TypeError("not enough arguments for format string");
    }
    const Value& value = values[next++];
    const auto integer = AsInteger(value);
    if (type == "d" && !integer) {
      return TypeErrorOf(value, "%d format: an integer is required");
    }
    ASSIGN_OR_RETURN(
        const std::string text,
        call.ToText(type == "d" ? Value::Integer(*integer) : value));
    const auto size = static_cast<int>(CountCharacters(text));
    out.append(std::max(0, width - size), ' ').append(text);
  }
  if (next < values.size() || !call.passed().keyword.empty()) {
    return TypeError("not all arguments converted during formatting");
  }
  return call.New(std::move(out));
}

// With the parameters of Hugging Face's filter, which replaces Jinja's.
ValueOr ToJsonText(const BuiltinCall& call) {
  JsonStyle style;
  style.ensure_ascii = call.is_true(0);
  if (call.has(1)) {
    ASSIGN_OR_RETURN(style.indent, Padding(call, 1));
    style.item_separator.assign(1, ',');
  }
  if (call.has(2)) {
    ASSIGN_OR_RETURN(Items pair, Iterate(call.runtime(), call[2]));
    if (pair->size() != 2) return TypeError("separators must be a pair");
    ASSIGN_OR_RETURN(const std::string_view item,
                     StringArgument("separators", (*pair)[0]));
    ASSIGN_OR_RETURN(const std::string_view key,
                     StringArgument("separators", (*pair)[1]));
    style.item_separator = item;
    style.key_separator = key;
  }
  if (call.is_true(3)) {
    return TypeError("'sort_keys' of 'tojson' is not supported");
  }
  ASSIGN_OR_RETURN(std::string text,
                   ToJson(call.runtime().budget, call.self(), style));
  return call.New(std::move(text));
}

// int(value), of text also int(float(text)); `default` where Python raises.
ValueOr ToInteger(const BuiltinCall& call) {
  const Value& input = call.self();
  if (auto integer = AsInteger(input)) return Value::Integer(*integer);
  std::optional<double> number = AsNumber(input);
  if (input.text()) {
    const auto digits = AbslView(Strip(call.text(), std::nullopt, Side::kBoth));
    Int integer;
    double parsed;
    if (absl::SimpleAtoi(digits, &integer)) return Value::Integer(integer);
    if (absl::SimpleAtod(digits, &parsed)) number = parsed;
    if (absl::StrContains(digits, '_')) {
      return TypeError("'_' between the digits of a number is not supported");
    }
  } else if (input.is_undefined() || input.long_int()) {
    return TypeErrorOf(input, "the integer is too large");
  }
  if (number && !std::isnan(*number)) {
    if (!(std::abs(*number) < 0x1p63)) {
      return TypeError("cannot convert float to integer");
    }
    return Value::Integer(static_cast<Int>(*number));
  }
  return call.is_given(0) ? call[0] : Value::Integer(0);
}

// ---- of what can be iterated over ----

// A path like "user.name" or 0, looked up part by part. An empty path is the
// item itself.
using Path = std::vector<Value>;

absl::StatusOr<Path> ReadPath(const Value& attribute) {
  constexpr size_t kMaxPathBytes = 1024;
  if (attribute.is_none()) return Path();
  if (attribute.If<Int>()) return Path{attribute};
  ASSIGN_OR_RETURN(std::string_view path,
                   StringArgument("attribute", attribute));
  if (path.size() > kMaxPathBytes || path.find(',') != path.npos) {
    return TypeError(Cat("an attribute's path is longer than ", kMaxPathBytes,
                         " bytes or of several attributes"));
  }
  Path parts;
  for (absl::string_view part : absl::StrSplit(AbslView(path), '.')) {
    Int index;
    parts.push_back(absl::SimpleAtoi(part, &index)
                        ? Value::Integer(index)
                        : Value::String(std::string(part)));
  }
  return parts;
}

// `absent`, if not none, stands for what is not there.
ValueOr Follow(const BuiltinCall& call, const Path& path, Value item,
               const Value& absent = Value()) {
  for (const Value& part : path) {
    ASSIGN_OR_RETURN(item, GetItem(call.runtime(), item, part));
    if (item.is_undefined() && !absent.is_none()) item = absent;
  }
  return item;
}

// What items are compared by: strings in lower case, unless case matters.
absl::StatusOr<std::vector<Value>> KeysOf(const BuiltinCall& call,
                                          const std::vector<Value>& items,
                                          const Path& path,
                                          bool case_sensitive) {
  std::vector<Value> keys;
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value key, Follow(call, path, item));
    if (key.text() && !case_sensitive) {
      ASSIGN_OR_RETURN(key, call.New(ToLower(key.text()->bytes)));
    }
    keys.push_back(std::move(key));
  }
  return keys;
}

// Stable merge sort of `items` by `keys`, ascending or descending. Unlike
// std::stable_sort it can stop at keys that do not compare, and needs no
// consistent order (NaN has none).
ValueOr SortedBy(const BuiltinCall& call, const std::vector<Value>& items,
                 const std::vector<Value>& keys, bool reverse) {
  std::vector<size_t> order(items.size()), merged(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (size_t width = 1; width < order.size(); width *= 2) {
    for (size_t begin = 0; begin < order.size(); begin += 2 * width) {
      const size_t middle = std::min(begin + width, order.size());
      const size_t end = std::min(begin + 2 * width, order.size());
      size_t left = begin, right = middle;
      for (size_t to = begin; to < end; ++to) {
        bool take_right = left == middle;
        if (left < middle && right < end) {
          ASSIGN_OR_RETURN(auto compared,
                           Order(call.runtime().budget, keys[order[right]],
                                 keys[order[left]]));
          take_right = reverse ? compared > 0 : compared < 0;
        }
        merged[to] = take_right ? order[right++] : order[left++];
      }
    }
    order.swap(merged);
  }
  std::vector<Value> sorted;
  sorted.reserve(items.size());
  for (size_t i : order) sorted.push_back(items[i]);
  return call.New(Flavor::kList, std::move(sorted));
}

ValueOr LengthOf(const BuiltinCall& call) {
  const Value& input = call.self();
  const auto integer = [](size_t size) {
    return Value::Integer(static_cast<Int>(size));
  };
  if (auto text = input.text()) return integer(text->num_characters);
  if (auto dict = input.dict()) return integer(dict->entries.size());
  if (auto loop = input.If<Loop*>()) return integer((*loop)->items->size());
  if (input.is_undefined()) return integer(0);
  auto sequence = input.sequence();
  if (sequence && sequence->flavor != Flavor::kGenerator) {
    return integer(sequence->items.size());
  }
  return TypeError(Cat("object of type '", TypeName(input), "' has no len()"));
}

template <bool kLast>
ValueOr EndOf(const BuiltinCall& call) {
  if (call.self().text()) {
    return GetItem(call.runtime(), call.self(), Value::Integer(kLast ? -1 : 0));
  }
  if (kLast && call.self().sequence() &&
      call.self().sequence()->flavor == Flavor::kGenerator) {
    return TypeError("'generator' object is not reversible");
  }
  ASSIGN_OR_RETURN(Items items, Iterate(call.runtime(), call.self()));
  if (!items->empty()) return kLast ? items->back() : items->front();
  return Value::Missing(
      Cat("No ", kLast ? "last" : "first", " item, sequence was empty."));
}

ValueOr ListOf(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(Items items, Iterate(call.runtime(), call.self()));
  return call.New(Flavor::kList, *items);
}

ValueOr Join(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(const Path path, ReadPath(call[1]));
  ASSIGN_OR_RETURN(const std::string separator,
                   call.ToText(call.is_given(0) ? call[0] : Value::String("")));
  ASSIGN_OR_RETURN(Items items, Iterate(call.runtime(), call.self()));
  std::string out;
  for (size_t i = 0; i < items->size(); ++i) {
    ASSIGN_OR_RETURN(Value item, Follow(call, path, (*items)[i]));
    ASSIGN_OR_RETURN(std::string text, call.ToText(item));
    RETURN_IF_ERROR(call.ChargeBytes(separator.size()));
    if (i > 0) out += separator;
    out += text;
  }
  return call.New(std::move(out));
}

ValueOr ReverseOf(const BuiltinCall& call) {
  if (call.self().text()) {
    return GetSlice(call.runtime(), call.self(), Value(), Value(),
                    Value::Integer(-1));
  }
  const auto sequence = call.self().sequence();
  const bool is_generator = sequence && sequence->flavor == Flavor::kGenerator;
  ASSIGN_OR_RETURN(Items items, Iterate(call.runtime(), call.self()));
  return NewSequence(call.runtime().budget,
                     is_generator ? Flavor::kList : Flavor::kGenerator,
                     {items->rbegin(), items->rend()});
}

ValueOr Sort(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(const Path path, ReadPath(call[2]));
  ASSIGN_OR_RETURN(Items items, Iterate(call.runtime(), call.self()));
  ASSIGN_OR_RETURN(const auto keys,
                   KeysOf(call, *items, path, call.is_true(1)));
  return SortedBy(call, *items, keys, call.is_true(0));
}

ValueOr DictSort(const BuiltinCall& call) {
  const Dict* dict = call.self().dict();
  if (dict == nullptr) {
    return TypeErrorOf(call.self(), "dictsort takes a mapping");
  }
  ASSIGN_OR_RETURN(const auto pairs, Pairs(call.runtime(), *dict));
  ASSIGN_OR_RETURN(const auto keys, KeysOf(call, pairs, {Value::Integer(0)},
                                           /*case_sensitive=*/false));
  return SortedBy(call, pairs, keys, /*reverse=*/false);
}

ValueOr ItemsOf(const BuiltinCall& call) {
  std::vector<Value> pairs;
  if (auto dict = call.self().dict()) {
    ASSIGN_OR_RETURN(pairs, Pairs(call.runtime(), *dict));
  } else if (!call.self().is_undefined()) {
    return TypeError("Can only get item pairs from a mapping.");
  }
  return call.New(Flavor::kGenerator, std::move(pairs));
}

ValueOr Unique(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(const Path path, ReadPath(call[1]));
  ASSIGN_OR_RETURN(Items items, Iterate(call.runtime(), call.self()));
  ASSIGN_OR_RETURN(const auto keys,
                   KeysOf(call, *items, path, call.is_true(0)));
  absl::flat_hash_set<Value, KeyHash, KeyEqual> seen;
  std::vector<Value> kept;
  for (size_t i = 0; i < keys.size(); ++i) {
    RETURN_IF_ERROR(CheckHashable(keys[i]));
    RETURN_IF_ERROR(call.Charge(KeySteps(keys[i]) + 4));
    if (seen.insert(keys[i]).second) kept.push_back((*items)[i]);
  }
  return call.New(Flavor::kGenerator, std::move(kept));
}

// The arguments from `begin` on.
absl::StatusOr<ArgumentValues> Rest(const BuiltinCall& call, size_t begin) {
  const auto& [positional, keyword] = call.passed();
  RETURN_IF_ERROR(call.Charge(positional.size()));
  return ArgumentValues{{positional.begin() + begin, positional.end()},
                        keyword};
}

// What is false has nothing to map or to choose from, none included.
absl::StatusOr<Items> ItemsIfAny(const BuiltinCall& call) {
  return Iterate(call.runtime(),
                 IsTrue(call.self()) ? call.self() : Value::String(""));
}

// map('filter', ...) or map(attribute=..., default=...).
ValueOr Map(const BuiltinCall& call) {
  static constexpr Builtin kByAttribute = {
      "map", {"attribute", "default"}, 1, nullptr};
  const ArgumentValues& passed = call.passed();
  const bool by_filter = !passed.positional.empty();
  Path path;
  Value absent;
  std::string_view filter;
  ArgumentValues rest;
  if (by_filter) {
    ASSIGN_OR_RETURN(filter, StringArgument("filter", passed.positional[0]));
    ASSIGN_OR_RETURN(rest, Rest(call, 1));
  } else {
    ASSIGN_OR_RETURN(
        const auto bound,
        BuiltinCall::Bind(call.runtime(), kByAttribute, call.self(), passed));
    ASSIGN_OR_RETURN(path, ReadPath(bound[0]));
    absent = bound[1];
  }
  ASSIGN_OR_RETURN(Items items, ItemsIfAny(call));
  std::vector<Value> mapped;
  for (const Value& item : *items) {
    ASSIGN_OR_RETURN(Value value,
                     by_filter ? CallFilter(call.runtime(), filter, item, rest)
                               : Follow(call, path, item, absent));
    mapped.push_back(std::move(value));
  }
  return call.New(Flavor::kGenerator, std::move(mapped));
}

// select, reject (by the item itself), selectattr, rejectattr.
template <bool kSelect, bool kByAttribute>
ValueOr Choose(const BuiltinCall& call) {
  constexpr size_t kTest = kByAttribute ? 1 : 0;
  const ArgumentValues& passed = call.passed();
  Path path;
  if (kByAttribute) {
    if (passed.positional.empty()) {
      return TypeError("the attribute to choose by is missing");
    }
    ASSIGN_OR_RETURN(path, ReadPath(passed.positional[0]));
  }
  std::string_view test;
  ArgumentValues rest;
  if (passed.positional.size() > kTest) {
    ASSIGN_OR_RETURN(test, StringArgument("test", passed.positional[kTest]));
    ASSIGN_OR_RETURN(rest, Rest(call, kTest + 1));
  }
  ASSIGN_OR_RETURN(Items items, ItemsIfAny(call));
  std::vector<Value> chosen;
  for (const Value& item : *items) {
    ASSIGN_OR_RETURN(Value value, Follow(call, path, item));
    bool holds = IsTrue(value);
    if (!test.empty()) {
      ASSIGN_OR_RETURN(holds, CallTest(call.runtime(), test, value, rest));
    }
    if (holds == kSelect) chosen.push_back(item);
  }
  return call.New(Flavor::kGenerator, std::move(chosen));
}

ValueOr Batch(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(Int size, call.Integer(0));
  if (size < 1) return TypeError("linecount must be positive");
  ASSIGN_OR_RETURN(Items items, Iterate(call.runtime(), call.self()));
  std::vector<Value> batches;
  for (size_t begin = 0; begin < items->size();) {
    const size_t end = begin + std::min<size_t>(size, items->size() - begin);
    ASSIGN_OR_RETURN(Value batch,
                     call.New(Flavor::kList,
                              {items->begin() + begin, items->begin() + end}));
    batches.push_back(std::move(batch));
    begin = end;
  }
  return call.New(Flavor::kGenerator, std::move(batches));
}

constexpr Builtin kFilters[] = {
    {"batch", {"linecount"}, 1, Batch},
    {"count", {}, 0, LengthOf},
    {"d", {"default_value", "boolean"}, 0, Default},
    {"default", {"default_value", "boolean"}, 0, Default},
    {"dictsort", {}, 0, DictSort},
    {"first", {}, 0, EndOf<false>},
    {"format", {"..."}, 0, Format},
    {"indent", {"width", "first", "blank"}, 0, Indent},
    {"int", {"default"}, 0, ToInteger},
    {"items", {}, 0, ItemsOf},
    {"join", {"d", "attribute"}, 0, Join},
    {"last", {}, 0, EndOf<true>},
    {"length", {}, 0, LengthOf},
    {"list", {}, 0, ListOf},
    {"map", {"..."}, 0, Map},
    {"reject", {"..."}, 0, Choose<false, false>},
    {"rejectattr", {"..."}, 0, Choose<false, true>},
    {"reverse", {}, 0, ReverseOf},
    {"safe", {}, 0, String},
    {"select", {"..."}, 0, Choose<true, false>},
    {"selectattr", {"..."}, 0, Choose<true, true>},
    {"sort", {"reverse", "case_sensitive", "attribute"}, 0, Sort},
    {"string", {}, 0, String},
    {"title", {}, 0, Title},
    {"tojson",
     {"ensure_ascii", "indent", "separators", "sort_keys"},
     0,
     ToJsonText},
    {"unique", {"case_sensitive", "attribute"}, 0, Unique},
};

}  // namespace

ValueOr CallFilter(Runtime& runtime, std::string_view name, const Value& input,
                   const ArgumentValues& arguments) {
  // Filters that are methods of the input's text.
  static constexpr std::pair<std::string_view, std::string_view>
      kTextFilters[] = {{"capitalize", "capitalize"},
                        {"lower", "lower"},
                        {"replace", "replace"},
                        {"trim", "strip"},
                        {"upper", "upper"}};
  const Nested nested(&runtime.depth);  // map('map', 'map', ...)
  RETURN_IF_ERROR(runtime.CheckDepth());
  if (const auto* filter = FindNamed<Builtin>(kFilters, name)) {
    return CallBuiltin(runtime, *filter, input, arguments);
  }
  for (const auto& [filter, method] : kTextFilters) {
    if (filter != name) continue;
    ASSIGN_OR_RETURN(std::string text, ToText(runtime.budget, input));
    const Value self = Value::String(std::move(text));
    return CallBuiltin(runtime, *FindMethod(self, method), self, arguments);
  }
  return TypeError(Cat("the filter '", name, "' is not supported"));
}

}  // namespace moebius::jinja
