// Tests: what may stand after "is".
#include <algorithm>
#include <cmath>
#include <string>

#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {
namespace {

using Flavor = Sequence::Flavor;

bool IsSameObject(const Value& a, const Value& b) {
  if (a.rep().index() != b.rep().index()) return false;
  if (a.text()) return a.text()->bytes == b.text()->bytes;
  if (a.sequence()) return a.sequence() == b.sequence();
  if (a.dict()) return a.dict() == b.dict();
  return KeyEqual()(a, b);
}

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
    {"escaped", [](const Value&) { return false; }},
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
       if (auto sequence = v.sequence()) {
         return sequence->flavor != Flavor::kView &&
                sequence->flavor != Flavor::kGenerator;
       }
       return v.text() || v.dict() || v.is_undefined();
     }},
    {"string", [](const Value& v) { return v.text() != nullptr; }},
    {"true", [](const Value& v) { return v.If<bool>() && *v.If<bool>(); }},
    {"undefined", [](const Value& v) { return v.is_undefined(); }},
};

const KindTest* FindKindTest(std::string_view name) {
  const auto at =
      std::find_if(std::begin(kKindTests), std::end(kKindTests),
                   [name](const KindTest& test) { return test.name == name; });
  return at == std::end(kKindTests) ? nullptr : at;
}

// A test against one other value.
struct PairTest {
  std::string_view name;
  absl::StatusOr<bool> (*holds)(Runtime& runtime, const Value& value,
                                const Value& other);
};

absl::StatusOr<bool> IsEqual(Runtime& r, const Value& a, const Value& b) {
  return Equal(r.budget, a, b);
}
absl::StatusOr<bool> IsUnequal(Runtime& r, const Value& a, const Value& b) {
  ASSIGN_OR_RETURN(bool equal, Equal(r.budget, a, b));
  return !equal;
}
absl::StatusOr<bool> IsLess(Runtime& r, const Value& a, const Value& b) {
  return Less(r.budget, a, b);
}
absl::StatusOr<bool> IsGreater(Runtime& r, const Value& a, const Value& b) {
  return Less(r.budget, b, a);
}
absl::StatusOr<bool> IsLessOrEqual(Runtime& r, const Value& a, const Value& b) {
  return LessOrEqual(r.budget, a, b);
}
absl::StatusOr<bool> IsGreaterOrEqual(Runtime& r, const Value& a,
                                      const Value& b) {
  return LessOrEqual(r.budget, b, a);
}
absl::StatusOr<bool> IsIn(Runtime& r, const Value& a, const Value& b) {
  return Contains(r, b, a);
}
absl::StatusOr<bool> IsSameAs(Runtime& r, const Value& a, const Value& b) {
  RETURN_IF_ERROR(r.budget.Charge(KeySteps(a)));
  return IsSameObject(a, b);
}
absl::StatusOr<bool> IsDivisible(Runtime& r, const Value& a, const Value& b) {
  ASSIGN_OR_RETURN(Value rest, Modulo(r, a, b));
  return Equal(r.budget, rest, Value::Integer(0));
}

constexpr PairTest kPairTests[] = {
    {"!=", IsUnequal},
    {"<", IsLess},
    {"<=", IsLessOrEqual},
    {"==", IsEqual},
    {">", IsGreater},
    {">=", IsGreaterOrEqual},
    {"divisibleby", IsDivisible},
    {"eq", IsEqual},
    {"equalto", IsEqual},
    {"ge", IsGreaterOrEqual},
    {"greaterthan", IsGreater},
    {"gt", IsGreater},
    {"in", IsIn},
    {"le", IsLessOrEqual},
    {"lessthan", IsLess},
    {"lt", IsLess},
    {"ne", IsUnequal},
    {"sameas", IsSameAs},
};

const PairTest* FindPairTest(std::string_view name) {
  const auto at =
      std::find_if(std::begin(kPairTests), std::end(kPairTests),
                   [name](const PairTest& test) { return test.name == name; });
  return at == std::end(kPairTests) ? nullptr : at;
}

// Tests that look into the value.
constexpr std::string_view kContentTests[] = {"even",  "odd",    "lower",
                                              "upper", "filter", "test"};

bool IsTest(std::string_view name) {
  return FindKindTest(name) || FindPairTest(name) ||
         std::find(std::begin(kContentTests), std::end(kContentTests), name) !=
             std::end(kContentTests);
}

absl::StatusOr<bool> ContentTest(Runtime& runtime, std::string_view name,
                                 const Value& input) {
  if (name == "even" || name == "odd") {
    ASSIGN_OR_RETURN(Value rest, Modulo(runtime, input, Value::Integer(2)));
    return Equal(runtime.budget, rest, Value::Integer(name == "odd"));
  }
  if (name == "lower" || name == "upper") {
    ASSIGN_OR_RETURN(std::string text, ToText(runtime.budget, input));
    return name == "lower" ? IsAllLower(text) : IsAllUpper(text);
  }
  ASSIGN_OR_RETURN(std::string_view wanted, StringArgument("name", input));
  return name == "filter" ? IsFilter(wanted) : IsTest(wanted);
}

}  // namespace

absl::StatusOr<bool> CallTest(Runtime& runtime, std::string_view name,
                              const Value& input,
                              const ArgumentValues& arguments) {
  RETURN_IF_ERROR(runtime.budget.Charge(1));
  if (const PairTest* test = FindPairTest(name)) {
    if (arguments.positional.size() != 1 || !arguments.keyword.empty()) {
      return TypeError(StrCat("the test '", name, "' takes one argument"));
    }
    return test->holds(runtime, input, arguments.positional[0]);
  }
  if (!IsTest(name)) {
    return TypeError(StrCat("no test named '", name, "'"));
  }
  if (!arguments.positional.empty() || !arguments.keyword.empty()) {
    return TypeError(StrCat("the test '", name, "' takes no arguments"));
  }
  if (const KindTest* test = FindKindTest(name)) return test->holds(input);
  return ContentTest(runtime, name, input);
}

}  // namespace moebius::jinja
