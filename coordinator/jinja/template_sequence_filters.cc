// Filters of lists, dicts and whatever else can be iterated over.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_filter_table.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {
namespace {

using Flavor = Sequence::Flavor;

constexpr size_t kMaxAttributePathBytes = 1024;

absl::Status CheckPath(std::string_view path) {
  if (path.size() <= kMaxAttributePathBytes) return absl::OkStatus();
  return TypeError(StrCat("an attribute's path is longer than ",
                          kMaxAttributePathBytes, " bytes"));
}

// A path like "user.name" or 0, looked up part by part. An empty path is the
// item itself.
class Getter {
 public:
  static absl::StatusOr<Getter> Make(const std::optional<Value>& attribute) {
    Getter getter;
    if (!attribute.has_value() || attribute->is_none()) return getter;
    Int index;
    if (AsInteger(*attribute, &index)) {
      getter.parts_.push_back(*attribute);
      return getter;
    }
    ASSIGN_OR_RETURN(std::string_view path,
                     StringArgument("attribute", *attribute));
    RETURN_IF_ERROR(CheckPath(path));
    for (std::string_view part : SplitAt(path, ".", -1, false)) {
      int64_t number;
      const bool is_number =
          !part.empty() &&
          std::all_of(part.begin(), part.end(), absl::ascii_isdigit) &&
          absl::SimpleAtoi(Piece(part), &number);
      getter.parts_.push_back(is_number ? Value::Integer(number)
                                        : Value::String(std::string(part)));
    }
    return getter;
  }

  void set_default(Value value) { default_ = std::move(value); }
  void set_ignore_case(bool ignore) { ignore_case_ = ignore; }

  absl::StatusOr<Value> operator()(Runtime& runtime, Value item) const {
    for (const Value& part : parts_) {
      ASSIGN_OR_RETURN(item, GetItem(runtime, item, part));
      if (item.is_undefined() && default_.has_value()) item = *default_;
    }
    if (ignore_case_ && item.text()) {
      return NewString(runtime.budget, ToLower(item.text()->bytes));
    }
    return item;
  }

 private:
  std::vector<Value> parts_;
  std::optional<Value> default_;
  bool ignore_case_ = false;
};

bool IsTrueOr(const std::optional<Value>& value, bool absent) {
  return value.has_value() ? IsTrue(*value) : absent;
}

// Stable merge sort of `items` by `keys`, ascending or descending. Unlike
// std::stable_sort it can stop at keys that do not compare, and needs no
// consistent order (NaN has none).
absl::StatusOr<std::vector<Value>> SortedBy(Runtime& runtime,
                                            const std::vector<Value>& items,
                                            const std::vector<Value>& keys,
                                            bool reverse) {
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
          const Value &a = keys[order[left]], &b = keys[order[right]];
          ASSIGN_OR_RETURN(take_right, reverse ? Less(runtime.budget, a, b)
                                               : Less(runtime.budget, b, a));
        }
        merged[to] = take_right ? order[right++] : order[left++];
      }
    }
    order.swap(merged);
  }
  std::vector<Value> sorted;
  sorted.reserve(items.size());
  for (size_t i : order) sorted.push_back(items[i]);
  return sorted;
}

absl::StatusOr<Value> LengthOf(Runtime&, const Value& input,
                               const ArgumentValues& arguments) {
  RETURN_IF_ERROR(BindArguments("length", arguments, {}, 0).status());
  ASSIGN_OR_RETURN(size_t length, Length(input));
  return Value::Integer(static_cast<Int>(length));
}

absl::StatusOr<Value> First(Runtime& runtime, const Value& input,
                            const ArgumentValues& arguments) {
  RETURN_IF_ERROR(BindArguments("first", arguments, {}, 0).status());
  if (input.text() && !input.text()->bytes.empty()) {
    return GetItem(runtime, input, Value::Integer(0));
  }
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  if (!items->empty()) return items->front();
  return Value::Missing("No first item, sequence was empty.");
}

absl::StatusOr<Value> Last(Runtime& runtime, const Value& input,
                           const ArgumentValues& arguments) {
  RETURN_IF_ERROR(BindArguments("last", arguments, {}, 0).status());
  if (input.text() && !input.text()->bytes.empty()) {
    return GetItem(runtime, input, Value::Integer(-1));
  }
  if (input.sequence() && input.sequence()->flavor == Flavor::kGenerator) {
    return TypeError("'generator' object is not reversible");
  }
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  if (!items->empty()) return items->back();
  return Value::Missing("No last item, sequence was empty.");
}

absl::StatusOr<Value> ListOf(Runtime& runtime, const Value& input,
                             const ArgumentValues& arguments) {
  RETURN_IF_ERROR(BindArguments("list", arguments, {}, 0).status());
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  return NewSequence(runtime.budget, Flavor::kList, *items);
}

absl::StatusOr<Value> Join(Runtime& runtime, const Value& input,
                           const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound,
                   BindArguments("join", arguments, {"d", "attribute"}, 0));
  ASSIGN_OR_RETURN(Getter getter, Getter::Make(bound[1]));
  std::string separator;
  if (bound[0].has_value()) {
    ASSIGN_OR_RETURN(separator, ToText(runtime.budget, *bound[0]));
  }
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  std::string out;
  for (size_t i = 0; i < items->size(); ++i) {
    ASSIGN_OR_RETURN(Value item, getter(runtime, (*items)[i]));
    ASSIGN_OR_RETURN(std::string text, ToText(runtime.budget, item));
    if (i > 0) {
      RETURN_IF_ERROR(runtime.budget.ChargeBytes(separator.size()));
      out += separator;
    }
    out += text;
  }
  return NewString(runtime.budget, std::move(out));
}

absl::StatusOr<Value> ReverseOf(Runtime& runtime, const Value& input,
                                const ArgumentValues& arguments) {
  RETURN_IF_ERROR(BindArguments("reverse", arguments, {}, 0).status());
  if (auto text = input.text()) {
    return NewString(runtime.budget, Reverse(text->bytes));
  }
  const auto sequence = input.sequence();
  const bool is_generator = sequence && sequence->flavor == Flavor::kGenerator;
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  return NewSequence(runtime.budget,
                     is_generator ? Flavor::kList : Flavor::kGenerator,
                     {items->rbegin(), items->rend()});
}

absl::StatusOr<Value> Sort(Runtime& runtime, const Value& input,
                           const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(
      auto bound, BindArguments("sort", arguments,
                                {"reverse", "case_sensitive", "attribute"}, 0));
  // "age,name" sorts by several.
  std::vector<Getter> getters;
  if (bound[2].has_value() && bound[2]->text()) {
    RETURN_IF_ERROR(CheckPath(bound[2]->text()->bytes));
    for (std::string_view path :
         SplitAt(bound[2]->text()->bytes, ",", -1, false)) {
      ASSIGN_OR_RETURN(Getter getter,
                       Getter::Make(Value::String(std::string(path))));
      getters.push_back(std::move(getter));
    }
  } else {
    ASSIGN_OR_RETURN(Getter getter, Getter::Make(bound[2]));
    getters.push_back(std::move(getter));
  }
  for (Getter& g : getters) g.set_ignore_case(!IsTrueOr(bound[1], false));
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  std::vector<Value> keys;
  for (const Value& item : *items) {
    std::vector<Value> parts;
    for (const Getter& getter : getters) {
      ASSIGN_OR_RETURN(Value part, getter(runtime, item));
      parts.push_back(std::move(part));
    }
    ASSIGN_OR_RETURN(Value key, NewSequence(runtime.budget, Flavor::kList,
                                            std::move(parts)));
    keys.push_back(std::move(key));
  }
  ASSIGN_OR_RETURN(std::vector<Value> sorted,
                   SortedBy(runtime, *items, keys, IsTrueOr(bound[0], false)));
  return NewSequence(runtime.budget, Flavor::kList, std::move(sorted));
}

absl::StatusOr<Value> Pair(Runtime& runtime, const Value& a, const Value& b) {
  return NewSequence(runtime.budget, Flavor::kTuple, {a, b});
}

absl::StatusOr<Value> DictSort(Runtime& runtime, const Value& input,
                               const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound,
                   BindArguments("dictsort", arguments,
                                 {"case_sensitive", "by", "reverse"}, 0));
  std::string_view by = "key";
  if (bound[1].has_value()) {
    ASSIGN_OR_RETURN(by, StringArgument("by", *bound[1]));
  }
  if (by != "key" && by != "value") {
    return TypeError("a dict is sorted by 'key' or by 'value'");
  }
  if (auto undefined = input.If<Undefined>()) return UndefinedError(*undefined);
  const Dict* dict = input.dict();
  if (dict == nullptr) return TypeError("dictsort takes a mapping");
  ASSIGN_OR_RETURN(Getter getter, Getter::Make(std::nullopt));
  getter.set_ignore_case(!IsTrueOr(bound[0], false));
  std::vector<Value> items, keys;
  for (const auto& [key, value] : dict->entries) {
    ASSIGN_OR_RETURN(Value item, Pair(runtime, key, value));
    items.push_back(std::move(item));
    ASSIGN_OR_RETURN(Value sort_key,
                     getter(runtime, by == "key" ? key : value));
    keys.push_back(std::move(sort_key));
  }
  ASSIGN_OR_RETURN(std::vector<Value> sorted,
                   SortedBy(runtime, items, keys, IsTrueOr(bound[2], false)));
  return NewSequence(runtime.budget, Flavor::kList, std::move(sorted));
}

absl::StatusOr<Value> ItemsOf(Runtime& runtime, const Value& input,
                              const ArgumentValues& arguments) {
  RETURN_IF_ERROR(BindArguments("items", arguments, {}, 0).status());
  std::vector<Value> pairs;
  if (auto dict = input.dict()) {
    for (const auto& [key, value] : dict->entries) {
      ASSIGN_OR_RETURN(Value pair, Pair(runtime, key, value));
      pairs.push_back(std::move(pair));
    }
  } else if (!input.is_undefined()) {
    return TypeError("Can only get item pairs from a mapping.");
  }
  return NewSequence(runtime.budget, Flavor::kGenerator, std::move(pairs));
}

absl::StatusOr<Value> Unique(Runtime& runtime, const Value& input,
                             const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(
      auto bound,
      BindArguments("unique", arguments, {"case_sensitive", "attribute"}, 0));
  ASSIGN_OR_RETURN(Getter getter, Getter::Make(bound[1]));
  getter.set_ignore_case(!IsTrueOr(bound[0], false));
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  absl::flat_hash_set<Value, KeyHash, KeyEqual> seen;
  std::vector<Value> kept;
  for (const Value& item : *items) {
    ASSIGN_OR_RETURN(Value key, getter(runtime, item));
    if (!IsHashable(key)) {
      return TypeError(StrCat("unhashable type: '", TypeName(key), "'"));
    }
    RETURN_IF_ERROR(runtime.budget.Charge(KeySteps(key) + 4));
    if (seen.insert(std::move(key)).second) kept.push_back(item);
  }
  return NewSequence(runtime.budget, Flavor::kGenerator, std::move(kept));
}

// min and max: the first of the extreme items.
template <bool kMax>
absl::StatusOr<Value> Extreme(Runtime& runtime, const Value& input,
                              const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound,
                   BindArguments(kMax ? "max" : "min", arguments,
                                 {"case_sensitive", "attribute"}, 0));
  ASSIGN_OR_RETURN(Getter getter, Getter::Make(bound[1]));
  getter.set_ignore_case(!IsTrueOr(bound[0], false));
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  if (items->empty()) {
    return Value::Missing("No aggregated item, sequence was empty.");
  }
  Value best = items->front();
  ASSIGN_OR_RETURN(Value best_key, getter(runtime, best));
  for (size_t i = 1; i < items->size(); ++i) {
    ASSIGN_OR_RETURN(Value key, getter(runtime, (*items)[i]));
    ASSIGN_OR_RETURN(bool better, kMax ? Less(runtime.budget, best_key, key)
                                       : Less(runtime.budget, key, best_key));
    if (!better) continue;
    best = (*items)[i];
    best_key = std::move(key);
  }
  return best;
}

absl::StatusOr<Value> Sum(Runtime& runtime, const Value& input,
                          const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound,
                   BindArguments("sum", arguments, {"attribute", "start"}, 0));
  ASSIGN_OR_RETURN(Getter getter, Getter::Make(bound[0]));
  Value total = bound[1].value_or(Value::Integer(0));
  if (total.text()) return TypeError("sum() can't sum strings");
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  for (const Value& item : *items) {
    ASSIGN_OR_RETURN(Value value, getter(runtime, item));
    ASSIGN_OR_RETURN(total, Add(runtime, total, value));
  }
  return total;
}

// The arguments from `begin` on.
absl::StatusOr<ArgumentValues> Rest(Runtime& runtime,
                                    const ArgumentValues& arguments,
                                    size_t begin) {
  RETURN_IF_ERROR(runtime.budget.Charge(arguments.positional.size()));
  return ArgumentValues{
      {arguments.positional.begin() + begin, arguments.positional.end()},
      arguments.keyword};
}

absl::StatusOr<Value> Map(Runtime& runtime, const Value& input,
                          const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  std::vector<Value> mapped;
  mapped.reserve(items->size());
  if (arguments.positional.empty()) {
    ASSIGN_OR_RETURN(auto bound, BindArguments("map", arguments,
                                               {"attribute", "default"}, 1));
    ASSIGN_OR_RETURN(Getter getter, Getter::Make(bound[0]));
    if (bound[1].has_value() && !bound[1]->is_none()) {
      getter.set_default(*bound[1]);
    }
    for (const Value& item : *items) {
      ASSIGN_OR_RETURN(Value value, getter(runtime, item));
      mapped.push_back(std::move(value));
    }
  } else {
    ASSIGN_OR_RETURN(std::string_view name,
                     StringArgument("filter", arguments.positional[0]));
    ASSIGN_OR_RETURN(const ArgumentValues rest, Rest(runtime, arguments, 1));
    for (const Value& item : *items) {
      ASSIGN_OR_RETURN(Value value, CallFilter(runtime, name, item, rest));
      mapped.push_back(std::move(value));
    }
  }
  return NewSequence(runtime.budget, Flavor::kGenerator, std::move(mapped));
}

// select, reject (by the item itself), selectattr, rejectattr.
template <bool kSelect, bool kByAttribute>
absl::StatusOr<Value> Choose(Runtime& runtime, const Value& input,
                             const ArgumentValues& arguments) {
  constexpr size_t kTest = kByAttribute ? 1 : 0;
  Getter getter;
  if (kByAttribute) {
    if (arguments.positional.empty()) {
      return TypeError("the attribute to choose by is missing");
    }
    ASSIGN_OR_RETURN(getter, Getter::Make(arguments.positional[0]));
  }
  std::string_view test;
  ArgumentValues rest;
  if (arguments.positional.size() > kTest) {
    ASSIGN_OR_RETURN(test, StringArgument("test", arguments.positional[kTest]));
    ASSIGN_OR_RETURN(rest, Rest(runtime, arguments, kTest + 1));
  }
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  std::vector<Value> chosen;
  for (const Value& item : *items) {
    ASSIGN_OR_RETURN(Value value, getter(runtime, item));
    bool holds = IsTrue(value);
    if (!test.empty()) {
      ASSIGN_OR_RETURN(holds, CallTest(runtime, test, value, rest));
    }
    if (holds == kSelect) chosen.push_back(item);
  }
  return NewSequence(runtime.budget, Flavor::kGenerator, std::move(chosen));
}

absl::StatusOr<Value> Batch(Runtime& runtime, const Value& input,
                            const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound, BindArguments("batch", arguments,
                                             {"linecount", "fill_with"}, 1));
  ASSIGN_OR_RETURN(long size, CountArgument("linecount", *bound[0]));
  if (size < 1) return TypeError("linecount must be positive");
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  std::vector<Value> batches;
  for (size_t begin = 0; begin < items->size();) {
    const size_t end = begin + std::min<size_t>(size, items->size() - begin);
    std::vector<Value> batch(items->begin() + begin, items->begin() + end);
    if (bound[1].has_value() && !bound[1]->is_none()) {
      RETURN_IF_ERROR(runtime.budget.Charge(size));
      batch.resize(size, *bound[1]);
    }
    ASSIGN_OR_RETURN(Value list, NewSequence(runtime.budget, Flavor::kList,
                                             std::move(batch)));
    batches.push_back(std::move(list));
    begin = end;
  }
  return NewSequence(runtime.budget, Flavor::kGenerator, std::move(batches));
}

// Into a number of lists whose sizes differ by one at most.
absl::StatusOr<Value> SliceInto(Runtime& runtime, const Value& input,
                                const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound, BindArguments("slice", arguments,
                                             {"slices", "fill_with"}, 1));
  ASSIGN_OR_RETURN(long slices, CountArgument("slices", *bound[0]));
  if (slices < 1) return TypeError("slices must be positive");
  RETURN_IF_ERROR(runtime.budget.Charge(slices));
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, input));
  const size_t count = slices;
  const size_t each = items->size() / count, longer = items->size() % count;
  std::vector<Value> lists;
  size_t begin = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t end = begin + each + (i < longer);
    std::vector<Value> list(items->begin() + begin, items->begin() + end);
    if (bound[1].has_value() && !bound[1]->is_none() && i >= longer) {
      list.push_back(*bound[1]);
    }
    ASSIGN_OR_RETURN(Value value, NewSequence(runtime.budget, Flavor::kList,
                                              std::move(list)));
    lists.push_back(std::move(value));
    begin = end;
  }
  return NewSequence(runtime.budget, Flavor::kGenerator, std::move(lists));
}

constexpr NamedFilter kSequenceFilters[] = {
    {"batch", Batch},
    {"count", LengthOf},
    {"dictsort", DictSort},
    {"first", First},
    {"items", ItemsOf},
    {"join", Join},
    {"last", Last},
    {"length", LengthOf},
    {"list", ListOf},
    {"map", Map},
    {"max", Extreme<true>},
    {"min", Extreme<false>},
    {"reject", Choose<false, false>},
    {"rejectattr", Choose<false, true>},
    {"reverse", ReverseOf},
    {"select", Choose<true, false>},
    {"selectattr", Choose<true, true>},
    {"slice", SliceInto},
    {"sort", Sort},
    {"sum", Sum},
    {"unique", Unique},
};

}  // namespace

absl::Span<const NamedFilter> SequenceFilters() { return kSequenceFilters; }

}  // namespace moebius::jinja
