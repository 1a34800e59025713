// Methods, the functions that all templates see, and tests.
#include <ctime>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

using Flavor = Sequence::Flavor;

// ---- methods of strings, with Python's signatures ----
//
// Places within the string, as find() and others take, are not supported, and
// neither is split() at white space.

constexpr size_t kNowhere = std::string_view::npos;

template <std::string (*kConvert)(std::string_view)>
ValueOr Mapped(const BuiltinCall& call) {
  return call.New(kConvert(call.text()));
}

template <Side kSide>
ValueOr StripSide(const BuiltinCall& call) {
  std::optional<std::string_view> chars;
  if (call.has(0)) {
    ASSIGN_OR_RETURN(chars, call.Text(0));
    RETURN_IF_ERROR(
        call.ChargeBytes(call.text().size() * (chars->size() / 32)));
  }
  return call.New(std::string(Strip(call.text(), chars, kSide)));
}

absl::Status AddText(const BuiltinCall& call, std::string_view text,
                     std::vector<Value>* list) {
  ASSIGN_OR_RETURN(Value value, call.New(std::string(text)));
  list->push_back(std::move(value));
  return absl::OkStatus();
}

ValueOr Split(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(std::string_view separator, call.Text(0));
  ASSIGN_OR_RETURN(const Int max_splits, call.Integer(1, -1));
  if (separator.empty()) return TypeError("empty separator");
  std::vector<Value> parts;
  size_t begin = 0;
  while (max_splits < 0 || parts.size() < static_cast<size_t>(max_splits)) {
    const size_t at = FindFirst(call.text(), separator, begin);
    if (at == kNowhere) break;
    RETURN_IF_ERROR(
        AddText(call, call.text().substr(begin, at - begin), &parts));
    begin = at + separator.size();
  }
  RETURN_IF_ERROR(AddText(call, call.text().substr(begin), &parts));
  return call.New(Flavor::kList, std::move(parts));
}

ValueOr Lines(const BuiltinCall& call) {
  std::vector<Value> lines;
  for (std::string_view rest = call.text(); !rest.empty();) {
    const size_t size = LineBytes(rest);
    RETURN_IF_ERROR(AddText(call, rest.substr(0, size), &lines));
    rest.remove_prefix(size + LineEndBytes(rest, size));
  }
  return call.New(Flavor::kList, std::move(lines));
}

template <bool kLast>
ValueOr Find(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(std::string_view wanted, call.Text(0));
  const size_t at =
      kLast ? FindLast(call.text(), wanted) : FindFirst(call.text(), wanted);
  if (at == kNowhere) return Value::Integer(-1);
  return Value::Integer(
      static_cast<Int>(CountCharacters(call.text().substr(0, at))));
}

// startswith, endswith: with a string, or with any in a tuple.
template <bool kStart>
ValueOr HasAffix(const BuiltinCall& call) {
  std::vector<Value> wanted = {call[0]};
  const Sequence* tuple = wanted[0].sequence();
  if (tuple && tuple->flavor == Flavor::kTuple) {
    RETURN_IF_ERROR(call.Charge(tuple->items.size()));
    wanted = std::vector<Value>(tuple->items);
  }
  for (const Value& value : wanted) {
    ASSIGN_OR_RETURN(std::string_view affix, StringArgument("prefix", value));
    if (kStart ? call.text().starts_with(affix)
               : call.text().ends_with(affix)) {
      return Value::Bool(true);
    }
  }
  return Value::Bool(false);
}

ValueOr ReplaceIn(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(std::string_view from, call.Text(0));
  ASSIGN_OR_RETURN(std::string_view to, call.Text(1));
  ASSIGN_OR_RETURN(const Int count, call.Integer(2, -1));
  if (from.empty()) return TypeError("replacing '' is not supported");
  const size_t num_places = CountOccurrences(call.text(), from);
  RETURN_IF_ERROR(call.ChargeBytes(num_places * to.size()));
  return call.New(Replace(call.text(), from, to, count));
}

ValueOr JoinWith(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(Items items, Iterate(call.runtime(), call[0]));
  std::string out;
  for (size_t i = 0; i < items->size(); ++i) {
    ASSIGN_OR_RETURN(std::string_view item,
                     StringArgument("item", (*items)[i]));
    RETURN_IF_ERROR(call.ChargeBytes(item.size() + call.text().size()));
    if (i > 0) out += call.text();
    out += item;
  }
  return call.New(std::move(out));
}

constexpr Builtin kStringMethods[] = {
    {"capitalize", {}, 0, Mapped<Capitalize>},
    {"endswith", {"suffix"}, 1, HasAffix<false>},
    {"find", {"sub"}, 1, Find<false>},
    {"join", {"iterable"}, 1, JoinWith},
    {"lower", {}, 0, Mapped<ToLower>},
    {"lstrip", {"chars"}, 0, StripSide<Side::kLeft>},
    {"replace", {"old", "new", "count"}, 2, ReplaceIn},
    {"rfind", {"sub"}, 1, Find<true>},
    {"rstrip", {"chars"}, 0, StripSide<Side::kRight>},
    {"split", {"sep", "maxsplit"}, 1, Split},
    {"splitlines", {}, 0, Lines},
    {"startswith", {"prefix"}, 1, HasAffix<true>},
    {"strip", {"chars"}, 0, StripSide<Side::kBoth>},
    {"title", {}, 0, Mapped<TitleWords>},
    {"upper", {}, 0, Mapped<ToUpper>},
};

// ---- methods of dicts ----

ValueOr Get(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(bool found, Contains(call.runtime(), call.self(), call[0]));
  return found ? *call.self().dict()->Find(call[0]) : call[1];
}

ValueOr ItemsOf(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(std::vector<Value> pairs,
                   Pairs(call.runtime(), *call.self().dict()));
  return call.New(Flavor::kView, std::move(pairs));
}

template <bool kKeys>
ValueOr ViewOf(const BuiltinCall& call) {
  std::vector<Value> items;
  for (const auto& [key, value] : call.self().dict()->entries) {
    items.push_back(kKeys ? key : value);
  }
  return call.New(Flavor::kView, std::move(items));
}

// ---- functions ----

ValueOr Range(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(const Int first, call.Integer(0));
  ASSIGN_OR_RETURN(const Int stop, call.Integer(1, first));
  ASSIGN_OR_RETURN(const Int step, call.Integer(2, 1));
  if (step == 0) return TypeError("range() arg 3 must not be zero");
  std::vector<Value> items;
  for (Int i = call.has(1) ? first : 0; step > 0 ? i < stop : i > stop;) {
    if (items.size() == kMaxRangeItems) {
      return TypeError(Cat("range() has more than ", kMaxRangeItems, " items"));
    }
    items.push_back(Value::Integer(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return call.New(Flavor::kRange, std::move(items));
}

ValueOr MakeDict(const BuiltinCall& call) {
  if (!call.passed().positional.empty()) {
    return TypeError("dict() of other than named values is not supported");
  }
  std::vector<std::pair<Value, Value>> entries;
  for (const auto& [key, value] : call.passed().keyword) {
    entries.emplace_back(Value::String(key), value);
  }
  return NewDict(call.runtime().budget, std::move(entries));
}

ValueOr MakeNamespace(const BuiltinCall& call) {
  if (!call.passed().positional.empty()) {
    return TypeError("namespace() of other than named values is not supported");
  }
  RETURN_IF_ERROR(call.Charge(4 * call.passed().keyword.size() + 4));
  Namespace& made = call.runtime().namespaces.emplace_back();
  for (const auto& [name, value] : call.passed().keyword) {
    made.attributes[name] = value;
  }
  return Value(&made);
}

ValueOr RaiseException(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(std::string message, call.ToText(call[0]));
  call.runtime().raised = true;
  return absl::InvalidArgumentError(message);
}

ValueOr StrftimeNow(const BuiltinCall& call) {
  ASSIGN_OR_RETURN(std::string_view format, call.Text(0));
  constexpr size_t kMaxFormatBytes = 256;
  if (format.size() > kMaxFormatBytes ||
      format.find('\0') != std::string_view::npos) {
    return TypeError("the time format is too long or has a zero byte");
  }
  // Python's own; all else is the C library's.
  for (const std::string_view directive : {"%f", "%z", "%Z"}) {
    if (format.find(directive) == std::string_view::npos) continue;
    return TypeError(Cat("'", directive, "' in a time is not supported"));
  }
  const std::tm time = absl::ToTM(call.runtime().now, call.runtime().zone);
  const std::string ended = Cat(format, ".");  // so that it is not empty
  char buffer[4096];
  const size_t size =
      std::strftime(buffer, sizeof(buffer), ended.c_str(), &time);
  if (size == 0) return TypeError("the formatted time is too long");
  std::string text(buffer, size - 1);
  if (!IsValidUtf8(text)) return TypeError("the formatted time is not UTF-8");
  return call.New(std::move(text));
}

constexpr Builtin kDictMethods[] = {
    {"get", {"key", "default"}, 1, Get},
    {"items", {}, 0, ItemsOf},
    {"keys", {}, 0, ViewOf<true>},
    {"values", {}, 0, ViewOf<false>},
};

constexpr Builtin kFunctions[] = {
    {"dict", {"..."}, 0, MakeDict},
    {"namespace", {"..."}, 0, MakeNamespace},
    {"raise_exception", {"message"}, 1, RaiseException},
    {"range", {"start", "stop", "step"}, 1, Range},
    {"strftime_now", {"format"}, 1, StrftimeNow},
};

// ---- what may stand after "is" ----

// A test of the value's kind alone.
struct KindTest {
  std::string_view name;
  bool (*holds)(const Value& value);
};

constexpr KindTest kKindTests[] = {
    {"boolean", [](const Value& v) { return v.If<bool>() != nullptr; }},
    {"callable",
     [](const Value& v) { return v.is_callable() || v.is_undefined(); }},
    {"defined", [](const Value& v) { return !v.is_undefined(); }},
    {"false", [](const Value& v) { return v.If<bool>() && !*v.If<bool>(); }},
    {"float", [](const Value& v) { return v.If<double>() != nullptr; }},
    {"integer", [](const Value& v) { return v.If<Int>() || v.long_int(); }},
    {"iterable",
     [](const Value& v) {
       return v.text() || v.sequence() || v.dict() || v.is_undefined() ||
              v.If<Loop*>();
     }},
    {"mapping", [](const Value& v) { return v.dict() != nullptr; }},
    {"none", [](const Value& v) { return v.is_none(); }},
    {"number",
     [](const Value& v) {
       return v.If<bool>() || v.If<Int>() || v.long_int() || v.If<double>();
     }},
    {"sequence",
     [](const Value& v) {
       if (auto sequence = v.sequence()) return sequence->has_items();
       return v.text() || v.dict() || v.is_undefined();
     }},
    {"string", [](const Value& v) { return v.text() != nullptr; }},
    {"true", [](const Value& v) { return v.If<bool>() && *v.If<bool>(); }},
    {"undefined", [](const Value& v) { return v.is_undefined(); }},
};

// A test against one other value.
struct PairTest {
  std::string_view name;
  Op op;
};

constexpr PairTest kPairTests[] = {
    {"!=", Op::kNotEqual},     {"<", Op::kLess},
    {"<=", Op::kLessEqual},    {"==", Op::kEqual},
    {">", Op::kGreater},       {">=", Op::kGreaterEqual},
    {"eq", Op::kEqual},        {"equalto", Op::kEqual},
    {"ge", Op::kGreaterEqual}, {"greaterthan", Op::kGreater},
    {"gt", Op::kGreater},      {"in", Op::kIn},
    {"le", Op::kLessEqual},    {"lessthan", Op::kLess},
    {"lt", Op::kLess},         {"ne", Op::kNotEqual},
};

}  // namespace

const Builtin* FindMethod(const Value& object, std::string_view name) {
  if (object.text()) return FindNamed<Builtin>(kStringMethods, name);
  if (object.dict()) return FindNamed<Builtin>(kDictMethods, name);
  return nullptr;
}

absl::Span<const Builtin> Functions() { return kFunctions; }

absl::StatusOr<bool> CallTest(Runtime& runtime, std::string_view name,
                              const Value& input,
                              const ArgumentValues& arguments) {
  RETURN_IF_ERROR(runtime.budget.Charge(1));
  const KindTest* kind_test = FindNamed<KindTest>(kKindTests, name);
  const PairTest* pair_test = FindNamed<PairTest>(kPairTests, name);
  const bool is_parity = name == "even" || name == "odd";
  if (!kind_test && !pair_test && !is_parity) {
    return TypeError(Cat("the test '", name, "' is not supported"));
  }
  const size_t num_arguments = pair_test != nullptr ? 1 : 0;
  if (arguments.positional.size() != num_arguments ||
      !arguments.keyword.empty()) {
    return TypeError(
        Cat("the test '", name, "' takes ", num_arguments, " arguments"));
  }
  if (kind_test != nullptr) return kind_test->holds(input);
  if (is_parity) {
    ASSIGN_OR_RETURN(Value rest,
                     Operate(runtime, Op::kModulo, input, Value::Integer(2)));
    return IsTrue(rest) == (name == "odd");
  }
  ASSIGN_OR_RETURN(Value holds, Operate(runtime, pair_test->op, input,
                                        arguments.positional[0]));
  return IsTrue(holds);
}

}  // namespace moebius::jinja
