// Methods of lists, dicts and loops, and the functions all templates see.
#include <algorithm>
#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_strings.h"
#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

using Flavor = Sequence::Flavor;

constexpr std::string_view kDictMethods[] = {"copy",  "fromkeys", "get",
                                             "items", "keys",     "values"};
constexpr std::string_view kDictMutators[] = {"clear", "pop", "popitem",
                                              "setdefault", "update"};
constexpr std::string_view kListMethods[] = {"count", "index"};
constexpr std::string_view kListMutators[] = {
    "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"};

template <size_t kSize>
bool IsAmong(const std::string_view (&names)[kSize], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

absl::StatusOr<Value> DictView(Runtime& runtime, const Dict& dict,
                               std::string_view name) {
  std::vector<Value> items;
  items.reserve(dict.entries.size());
  for (const auto& [key, value] : dict.entries) {
    if (name == "keys") {
      items.push_back(key);
    } else if (name == "values") {
      items.push_back(value);
    } else {
      ASSIGN_OR_RETURN(Value pair, NewSequence(runtime.budget, Flavor::kTuple,
                                               {key, value}));
      items.push_back(std::move(pair));
    }
  }
  return NewSequence(runtime.budget, Flavor::kView, std::move(items),
                     StrCat("dict_", name));
}

absl::StatusOr<Value> CallDictMethod(Runtime& runtime, const Value& self,
                                     std::string_view name,
                                     const ArgumentValues& arguments) {
  const Dict& dict = *self.dict();
  if (name == "get") {
    ASSIGN_OR_RETURN(auto bound,
                     BindArguments(name, arguments, {"key", "default"}, 1));
    if (!arguments.keyword.empty()) {
      return TypeError("dict.get() takes no keyword arguments");
    }
    ASSIGN_OR_RETURN(bool found, Contains(runtime, self, *bound[0]));
    if (found) return *dict.Find(*bound[0]);
    return bound[1].value_or(Value());
  }
  RETURN_IF_ERROR(BindArguments(name, arguments, {}, 0).status());
  if (name == "copy") return self;
  if (name == "fromkeys") return TypeError("dict.fromkeys is not supported");
  return DictView(runtime, dict, name);
}

absl::StatusOr<Value> CallListMethod(Runtime& runtime, const Sequence& list,
                                     std::string_view name,
                                     const ArgumentValues& arguments) {
  if (name == "copy") {
    RETURN_IF_ERROR(BindArguments(name, arguments, {}, 0).status());
    return NewSequence(runtime.budget, Flavor::kList, list.items);
  }
  ASSIGN_OR_RETURN(auto bound, BindArguments(name, arguments, {"value"}, 1));
  Int count = 0;
  for (size_t i = 0; i < list.items.size(); ++i) {
    ASSIGN_OR_RETURN(bool equal,
                     Equal(runtime.budget, list.items[i], *bound[0]));
    if (equal && name == "index") return Value::Integer(static_cast<Int>(i));
    count += equal;
  }
  if (name == "index") return TypeError("the value is not in the list");
  return Value::Integer(count);
}

absl::StatusOr<Value> CallLoopMethod(Runtime& runtime, Loop& loop,
                                     std::string_view name,
                                     const ArgumentValues& arguments) {
  const std::vector<Value>& values = arguments.positional;
  if (!arguments.keyword.empty()) {
    return TypeError(StrCat("loop.", name, " takes no keyword argument"));
  }
  if (name == "cycle") {
    if (values.empty()) return TypeError("no items for cycling given");
    return values[loop.index0 % values.size()];
  }
  bool changed = !loop.last_changed.has_value() ||
                 loop.last_changed->size() != values.size();
  for (size_t i = 0; !changed && i < values.size(); ++i) {
    ASSIGN_OR_RETURN(bool equal,
                     Equal(runtime.budget, values[i], (*loop.last_changed)[i]));
    changed = !equal;
  }
  loop.last_changed = values;
  return Value::Bool(changed);
}

absl::StatusOr<Value> Range(Runtime& runtime, const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound, BindArguments("range", arguments,
                                             {"start", "stop", "step"}, 1));
  if (!arguments.keyword.empty()) {
    return TypeError("range() takes no keyword arguments");
  }
  Int start = 0, step = 1;
  ASSIGN_OR_RETURN(Int stop, IntegerArgument("range", *bound[0]));
  if (bound[1].has_value()) {
    start = stop;
    ASSIGN_OR_RETURN(stop, IntegerArgument("stop", *bound[1]));
  }
  if (bound[2].has_value()) {
    ASSIGN_OR_RETURN(step, IntegerArgument("step", *bound[2]));
  }
  if (step == 0) return TypeError("range() arg 3 must not be zero");
  std::vector<Value> items;
  for (Int i = start; step > 0 ? i < stop : i > stop;) {
    if (items.size() == kMaxRangeItems) {
      return TypeError(
          StrCat("range() has more than ", kMaxRangeItems, " items"));
    }
    items.push_back(Value::Integer(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  std::string label = StrCat("range(", IntToText(start), ", ", IntToText(stop));
  if (step != 1) StrAppend(&label, ", ", IntToText(step));
  return NewSequence(runtime.budget, Flavor::kRange, std::move(items),
                     StrCat(label, ")"));
}

// The entries of dict(...) and namespace(...): of a mapping or of pairs, then
// the keyword arguments.
absl::StatusOr<std::vector<std::pair<Value, Value>>> EntriesOf(
    Runtime& runtime, std::string_view name, const ArgumentValues& arguments) {
  std::vector<std::pair<Value, Value>> entries;
  if (arguments.positional.size() > 1) {
    return TypeError(StrCat(name, " expected at most 1 argument"));
  }
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional[0];
    if (auto dict = from.dict()) {
      RETURN_IF_ERROR(runtime.budget.Charge(2 * dict->entries.size()));
      entries = dict->entries;
    } else {
      ASSIGN_OR_RETURN(Items items, Iterate(runtime, from));
      for (const Value& item : *items) {
        ASSIGN_OR_RETURN(Items pair, Iterate(runtime, item));
        if (pair->size() != 2) {
          return TypeError("a dict is made of pairs");
        }
        entries.emplace_back((*pair)[0], (*pair)[1]);
      }
    }
  }
  for (const auto& [key, value] : arguments.keyword) {
    entries.emplace_back(Value::String(key), value);
  }
  return entries;
}

absl::StatusOr<Value> MakeNamespace(Runtime& runtime,
                                    const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto entries, EntriesOf(runtime, "namespace", arguments));
  RETURN_IF_ERROR(runtime.budget.Charge(entries.size() + 4));
  // Through a dict: keys that come twice.
  ASSIGN_OR_RETURN(Value dict, NewDict(runtime.budget, std::move(entries)));
  for (const auto& [key, value] : dict.dict()->entries) {
    if (!key.text()) return TypeError("names in a namespace are strings");
  }
  runtime.namespaces.push_back(Namespace{dict.dict()->entries});
  return Value(&runtime.namespaces.back());
}

absl::StatusOr<Value> RaiseException(Runtime& runtime,
                                     const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound,
                   BindArguments("raise_exception", arguments, {"message"}, 1));
  ASSIGN_OR_RETURN(std::string message, ToText(runtime.budget, *bound[0]));
  runtime.raised = true;
  return absl::InvalidArgumentError(message);
}

// Python formats a time without zone: %z and %Z print nothing, %f prints
// microseconds; all else is the C library's.
absl::StatusOr<Value> StrftimeNow(Runtime& runtime,
                                  const ArgumentValues& arguments) {
  ASSIGN_OR_RETURN(auto bound,
                   BindArguments("strftime_now", arguments, {"format"}, 1));
  ASSIGN_OR_RETURN(std::string_view format,
                   StringArgument("format", *bound[0]));
  constexpr size_t kMaxFormatBytes = 256;
  if (format.size() > kMaxFormatBytes ||
      format.find('\0') != std::string_view::npos) {
    return TypeError("the time format is too long or has a zero byte");
  }
  const std::tm time = absl::ToTM(runtime.now, runtime.zone);
  const auto microseconds = absl::ToUnixMicros(runtime.now) % 1'000'000;
  std::string prepared;
  for (size_t i = 0; i < format.size(); ++i) {
    const char next =
        format[i] == '%' && i + 1 < format.size() ? format[i + 1] : '\0';
    if (next == 'f') {
      StrAppend(&prepared, absl::Dec(microseconds, absl::kZeroPad6));
    } else if (next != 'z' && next != 'Z') {
      prepared += format[i];
      if (next != '\0') prepared += next;
    }
    if (next != '\0') ++i;
  }
  prepared += '.';  // so that an empty result is not an error
  char buffer[4096];
  const size_t size =
      std::strftime(buffer, sizeof(buffer), prepared.c_str(), &time);
  if (size == 0) return TypeError("the formatted time is too long");
  std::string text(buffer, size - 1);
  if (!IsValidUtf8(text)) return TypeError("the formatted time is not UTF-8");
  return NewString(runtime.budget, std::move(text));
}

}  // namespace

MethodKind FindMethod(const Value& object, std::string_view name) {
  const auto kind = [](bool callable, bool unsafe) {
    return callable ? MethodKind::kCallable
           : unsafe ? MethodKind::kUnsafe
                    : MethodKind::kNone;
  };
  if (object.dict()) {
    return kind(IsAmong(kDictMethods, name), IsAmong(kDictMutators, name));
  }
  if (object.text()) return kind(IsStringMethod(name), false);
  if (auto sequence = object.sequence()) {
    switch (sequence->flavor) {
      case Flavor::kList:
        return kind(IsAmong(kListMethods, name) || name == "copy",
                    IsAmong(kListMutators, name));
      case Flavor::kTuple:
      case Flavor::kRange:
        return kind(IsAmong(kListMethods, name), false);
      case Flavor::kView:
      case Flavor::kGenerator:
        break;
    }
  }
  return MethodKind::kNone;
}

absl::StatusOr<Value> CallMethod(Runtime& runtime, const BoundMethod& method,
                                 const ArgumentValues& arguments) {
  RETURN_IF_ERROR(runtime.budget.Charge(1));
  const Value& self = method.receiver;
  if (auto text = self.text()) {
    return CallStringMethod(runtime, *text, method.name, arguments);
  }
  if (self.dict()) {
    return CallDictMethod(runtime, self, method.name, arguments);
  }
  if (auto sequence = self.sequence()) {
    return CallListMethod(runtime, *sequence, method.name, arguments);
  }
  if (auto loop = self.If<Loop*>()) {
    return CallLoopMethod(runtime, **loop, method.name, arguments);
  }
  return TypeError(
      StrCat("'", TypeName(self), "' has no method '", method.name, "'"));
}

absl::StatusOr<Value> CallFunction(Runtime& runtime, GlobalFunction function,
                                   const ArgumentValues& arguments) {
  RETURN_IF_ERROR(runtime.budget.Charge(1));
  switch (function) {
    case GlobalFunction::kRange:
      return Range(runtime, arguments);
    case GlobalFunction::kDict: {
      ASSIGN_OR_RETURN(auto entries, EntriesOf(runtime, "dict", arguments));
      return NewDict(runtime.budget, std::move(entries));
    }
    case GlobalFunction::kNamespace:
      return MakeNamespace(runtime, arguments);
    case GlobalFunction::kRaiseException:
      return RaiseException(runtime, arguments);
    case GlobalFunction::kStrftimeNow:
      return StrftimeNow(runtime, arguments);
  }
  return TypeError("no such function");
}

}  // namespace moebius::jinja
