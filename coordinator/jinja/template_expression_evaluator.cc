// The evaluator's expressions and calls.
#include <algorithm>
#include <string>
#include <utility>

#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_evaluator.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {

absl::StatusOr<Value> Evaluator::Evaluate(const Expression& expression,
                                          Scope& scope) {
  RETURN_IF_ERROR(runtime_.budget.Charge(1));
  const EvaluationLevel level(runtime_);
  RETURN_IF_ERROR(level.Check());
  const int outer_line = std::exchange(line_, expression.line);
  auto value = std::visit([&](const auto& node) { return Node(node, scope); },
                          expression.node);
  if (value.ok()) line_ = outer_line;
  return value;
}

absl::StatusOr<Value> Evaluator::EvaluateOr(const ExpressionPtr& expression,
                                            Scope& scope) {
  if (!expression) return Value();
  return Evaluate(*expression, scope);
}

absl::StatusOr<Value> Evaluator::Node(const Literal& node, Scope&) {
  return node.value;
}

absl::StatusOr<Value> Evaluator::Node(const Name& node, Scope& scope) {
  if (const Value* value = scope.Find(node.symbol)) return *value;
  return Value::Missing(
      StrCat("'", template_.names[node.symbol], "' is undefined"));
}

absl::StatusOr<Value> Evaluator::Node(const ListLiteral& node, Scope& scope) {
  std::vector<Value> items;
  items.reserve(node.items.size());
  for (const ExpressionPtr& item : node.items) {
    ASSIGN_OR_RETURN(Value value, Evaluate(item, scope));
    items.push_back(std::move(value));
  }
  return NewSequence(
      runtime_.budget,
      node.is_tuple ? Sequence::Flavor::kTuple : Sequence::Flavor::kList,
      std::move(items));
}

absl::StatusOr<Value> Evaluator::Node(const DictLiteral& node, Scope& scope) {
  std::vector<std::pair<Value, Value>> entries;
  entries.reserve(node.entries.size());
  for (const auto& [key_node, value_node] : node.entries) {
    ASSIGN_OR_RETURN(Value key, Evaluate(key_node, scope));
    ASSIGN_OR_RETURN(Value value, Evaluate(value_node, scope));
    entries.emplace_back(std::move(key), std::move(value));
  }
  return NewDict(runtime_.budget, std::move(entries));
}

absl::StatusOr<Value> Evaluator::Node(const Unary& node, Scope& scope) {
  ASSIGN_OR_RETURN(Value operand, Evaluate(node.operand, scope));
  switch (node.op) {
    case Unary::Op::kNot:
      return Value::Bool(!IsTrue(operand));
    case Unary::Op::kMinus:
      return Negate(operand);
    case Unary::Op::kPlus:
      return operand.If<double>() ? operand
                                  : Subtract(operand, Value::Integer(0));
  }
  return Value();
}

absl::StatusOr<Value> Evaluator::Node(const Binary& node, Scope& scope) {
  ASSIGN_OR_RETURN(Value left, Evaluate(node.left, scope));
  ASSIGN_OR_RETURN(Value right, Evaluate(node.right, scope));
  switch (node.op) {
    case Binary::Op::kAdd:
      return Add(runtime_, left, right);
    case Binary::Op::kSubtract:
      return Subtract(left, right);
    case Binary::Op::kMultiply:
      return Multiply(runtime_, left, right);
    case Binary::Op::kDivide:
      return Divide(left, right);
    case Binary::Op::kFloorDivide:
      return FloorDivide(left, right);
    case Binary::Op::kModulo:
      return Modulo(runtime_, left, right);
    case Binary::Op::kPower:
      return Power(left, right);
  }
  return Value();
}

absl::StatusOr<Value> Evaluator::Node(const Logical& node, Scope& scope) {
  Value value;
  for (const ExpressionPtr& operand : node.operands) {
    ASSIGN_OR_RETURN(value, Evaluate(operand, scope));
    if (IsTrue(value) != node.is_and) break;
  }
  return value;
}

absl::StatusOr<bool> Evaluator::Compare(Comparison::Op op, const Value& a,
                                        const Value& b) {
  switch (op) {
    case Comparison::Op::kEqual:
      return Equal(runtime_.budget, a, b);
    case Comparison::Op::kNotEqual: {
      ASSIGN_OR_RETURN(bool equal, Equal(runtime_.budget, a, b));
      return !equal;
    }
    case Comparison::Op::kLess:
      return Less(runtime_.budget, a, b);
    case Comparison::Op::kLessEqual:
      return LessOrEqual(runtime_.budget, a, b);
    case Comparison::Op::kGreater:
      return Less(runtime_.budget, b, a);
    case Comparison::Op::kGreaterEqual:
      return LessOrEqual(runtime_.budget, b, a);
    case Comparison::Op::kIn:
      return Contains(runtime_, b, a);
    case Comparison::Op::kNotIn: {
      ASSIGN_OR_RETURN(bool contains, Contains(runtime_, b, a));
      return !contains;
    }
  }
  return false;
}

absl::StatusOr<Value> Evaluator::Node(const Comparison& node, Scope& scope) {
  ASSIGN_OR_RETURN(Value left, Evaluate(node.first, scope));
  for (const auto& [op, operand] : node.rest) {
    ASSIGN_OR_RETURN(Value right, Evaluate(operand, scope));
    ASSIGN_OR_RETURN(bool holds, Compare(op, left, right));
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

absl::StatusOr<Value> Evaluator::Node(const Concatenation& node, Scope& scope) {
  std::string out;
  for (const ExpressionPtr& operand : node.operands) {
    ASSIGN_OR_RETURN(Value value, Evaluate(operand, scope));
    RETURN_IF_ERROR(AppendValue(value, &out));
  }
  return NewString(runtime_.budget, std::move(out));
}

absl::StatusOr<Value> Evaluator::Node(const Conditional& node, Scope& scope) {
  ASSIGN_OR_RETURN(Value condition, Evaluate(node.condition, scope));
  if (IsTrue(condition)) return Evaluate(node.then, scope);
  if (node.otherwise) return Evaluate(node.otherwise, scope);
  return Value::Missing(
      "the inline if-expression evaluated to false and has no else");
}

absl::StatusOr<Value> Evaluator::Node(const Attribute& node, Scope& scope) {
  ASSIGN_OR_RETURN(Value object, Evaluate(node.object, scope));
  return GetAttribute(runtime_, object, node.name);
}

absl::StatusOr<Value> Evaluator::Node(const Subscript& node, Scope& scope) {
  ASSIGN_OR_RETURN(Value object, Evaluate(node.object, scope));
  ASSIGN_OR_RETURN(Value key, Evaluate(node.key, scope));
  return GetItem(runtime_, object, key);
}

absl::StatusOr<Value> Evaluator::Node(const Slice& node, Scope& scope) {
  ASSIGN_OR_RETURN(Value object, Evaluate(node.object, scope));
  ASSIGN_OR_RETURN(Value start, EvaluateOr(node.start, scope));
  ASSIGN_OR_RETURN(Value stop, EvaluateOr(node.stop, scope));
  ASSIGN_OR_RETURN(Value step, EvaluateOr(node.step, scope));
  return GetSlice(runtime_, object, start, stop, step);
}

absl::StatusOr<Value> Evaluator::Node(const Call& node, Scope& scope) {
  ASSIGN_OR_RETURN(Value callee, Evaluate(node.callee, scope));
  ASSIGN_OR_RETURN(ArgumentValues arguments,
                   EvaluateArguments(node.arguments, scope));
  return CallValue(callee, std::move(arguments));
}

absl::StatusOr<Value> Evaluator::Node(const Filter& node, Scope& scope) {
  Value input;
  if (node.input) {
    ASSIGN_OR_RETURN(input, Evaluate(node.input, scope));
  } else if (filtered_.has_value()) {
    input = *filtered_;
  }
  ASSIGN_OR_RETURN(ArgumentValues arguments,
                   EvaluateArguments(node.arguments, scope));
  return CallFilter(runtime_, node.name, input, arguments);
}

absl::StatusOr<Value> Evaluator::Node(const Test& node, Scope& scope) {
  ASSIGN_OR_RETURN(Value input, Evaluate(node.input, scope));
  ASSIGN_OR_RETURN(ArgumentValues arguments,
                   EvaluateArguments(node.arguments, scope));
  ASSIGN_OR_RETURN(bool holds, CallTest(runtime_, node.name, input, arguments));
  return Value::Bool(holds);
}

absl::StatusOr<ArgumentValues> Evaluator::EvaluateArguments(
    const Arguments& arguments, Scope& scope) {
  ArgumentValues values;
  values.positional.reserve(arguments.positional.size());
  for (const ExpressionPtr& argument : arguments.positional) {
    ASSIGN_OR_RETURN(Value value, Evaluate(argument, scope));
    values.positional.push_back(std::move(value));
  }
  for (const auto& [name, argument] : arguments.keyword) {
    ASSIGN_OR_RETURN(Value value, Evaluate(argument, scope));
    values.keyword.emplace_back(name, std::move(value));
  }
  if (arguments.more_positional) {
    ASSIGN_OR_RETURN(Value more, Evaluate(arguments.more_positional, scope));
    ASSIGN_OR_RETURN(Items items, Iterate(runtime_, more));
    RETURN_IF_ERROR(runtime_.budget.Charge(items->size()));
    values.positional.insert(values.positional.end(), items->begin(),
                             items->end());
  }
  if (arguments.more_keyword) {
    ASSIGN_OR_RETURN(Value more, Evaluate(arguments.more_keyword, scope));
    const Dict* dict = more.dict();
    if (dict == nullptr) return TypeError("arguments after ** are no mapping");
    RETURN_IF_ERROR(runtime_.budget.Charge(2 * dict->entries.size()));
    for (const auto& [key, value] : dict->entries) {
      if (!key.text()) return TypeError("keywords must be strings");
      values.keyword.emplace_back(key.text()->bytes, value);
    }
  }
  return values;
}

absl::StatusOr<Value> Evaluator::CallValue(const Value& callee,
                                           ArgumentValues arguments) {
  if (auto macro = callee.If<const Macro*>()) {
    return CallMacro(**macro, std::move(arguments));
  }
  if (auto function = callee.If<GlobalFunction>()) {
    return CallFunction(runtime_, *function, arguments);
  }
  if (auto method = callee.method()) {
    return CallMethod(runtime_, *method, arguments);
  }
  if (auto undefined = callee.If<Undefined>()) {
    return UndefinedError(*undefined);
  }
  return TypeError(StrCat("'", TypeName(callee), "' object is not callable"));
}

absl::Status Evaluator::BindParameters(const MacroDefinition& macro,
                                       ArgumentValues* arguments,
                                       Scope& scope) {
  auto& keyword = arguments->keyword;
  const auto take = [&keyword](std::string_view name) -> std::optional<Value> {
    const auto at =
        std::find_if(keyword.begin(), keyword.end(),
                     [name](const auto& pair) { return pair.first == name; });
    if (at == keyword.end()) return std::nullopt;
    Value value = std::move(at->second);
    keyword.erase(at);
    return value;
  };
  RETURN_IF_ERROR(runtime_.budget.Charge((macro.parameters.size() + 1) *
                                         (keyword.size() + 1)));
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    if (i < arguments->positional.size()) {
      scope.Set(parameter.symbol, arguments->positional[i]);
    } else if (auto given = take(parameter.name)) {
      scope.Set(parameter.symbol, *std::move(given));
    } else if (parameter.default_value) {
      // In the macro's own scope: it may name the parameters before it.
      ASSIGN_OR_RETURN(Value value, Evaluate(parameter.default_value, scope));
      scope.Set(parameter.symbol, std::move(value));
    } else {
      scope.Set(parameter.symbol,
                Value::Missing(StrCat("parameter '", parameter.name,
                                      "' was not provided")));
    }
  }
  const auto set = [&](std::string_view name, Value value) {
    if (auto symbol = template_.Find(name)) {
      scope.Set(*symbol, std::move(value));
    }
  };
  if (macro.uses_caller) {
    auto caller = take("caller");
    const bool is_parameter =
        std::any_of(macro.parameters.begin(), macro.parameters.end(),
                    [](const Parameter& p) { return p.name == "caller"; });
    if (!is_parameter) {
      set("caller", caller.has_value() ? *std::move(caller)
                                       : Value::Missing("No caller defined"));
    }
  }
  if (macro.uses_kwargs) {
    std::vector<std::pair<Value, Value>> rest;
    for (auto& [name, value] : keyword) {
      rest.emplace_back(Value::String(name), std::move(value));
    }
    ASSIGN_OR_RETURN(Value kwargs, NewDict(runtime_.budget, std::move(rest)));
    set("kwargs", std::move(kwargs));
  } else if (!keyword.empty()) {
    return TypeError(StrCat("macro '", macro.name,
                            "' takes no keyword argument '", keyword[0].first,
                            "'"));
  }
  auto& positional = arguments->positional;
  const size_t num_bound = std::min(positional.size(), macro.parameters.size());
  if (macro.uses_varargs) {
    ASSIGN_OR_RETURN(
        Value varargs,
        NewSequence(runtime_.budget, Sequence::Flavor::kTuple,
                    {positional.begin() + num_bound, positional.end()}));
    set("varargs", std::move(varargs));
  } else if (positional.size() > num_bound) {
    return TypeError(StrCat("macro '", macro.name, "' takes not more than ",
                            num_bound, " arguments"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Value> Evaluator::CallMacro(const Macro& macro,
                                           ArgumentValues arguments) {
  const EvaluationLevel level(runtime_);
  RETURN_IF_ERROR(level.Check());
  ScopeUse scope(*this, macro.closure);
  RETURN_IF_ERROR(BindParameters(*macro.definition, &arguments, *scope));
  std::string out;
  RETURN_IF_ERROR(RunBody(macro.definition->body, *scope, &out).status());
  if (scope->captured) RETURN_IF_ERROR(runtime_.budget.Charge(8));
  return NewString(runtime_.budget, std::move(out));
}

}  // namespace moebius::jinja
