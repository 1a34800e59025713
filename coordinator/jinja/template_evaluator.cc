#include "coordinator/jinja/template_evaluator.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_lexer.h"

namespace moebius::jinja {

// Variables of one block; names are looked up from the inside out. A macro
// keeps the scopes that it was defined in.
struct Scope;
using ScopePtr = std::shared_ptr<Scope>;
struct Scope {
  explicit Scope(ScopePtr parent) : parent(std::move(parent)) {}

  ScopePtr parent;
  absl::InlinedVector<std::pair<Symbol, Value>, 4> variables;

  void Set(Symbol symbol, Value value);
  const Value* Find(Symbol symbol) const;  // here or further out
};

// A macro under its definition's scope.
struct Macro {
  const MacroDefinition* definition;
  ScopePtr closure;
};

namespace {

// Evaluator
//
// One rendering under way. Its loops and macros live as long as it does, since
// values may refer to them.
// Threading: thread-compatible.
class Evaluator {
 public:
  Evaluator(const Template& parsed, Runtime& runtime)
      : template_(parsed), runtime_(runtime) {}
  Evaluator(const Evaluator&) = delete;

  absl::StatusOr<std::string> Run(const Context& context);

 private:
  // What a loop and a macro cost: they stay until the rendering ends.
  static constexpr size_t kObjectSteps = 8;

  enum class Flow { kOn, kBreak, kContinue };
  using FlowOr = absl::StatusOr<Flow>;

  // Where a statement runs: its variables, and what it prints to.
  struct Frame {
    ScopePtr scope;
    std::string* out;

    // For a block that has variables of its own.
    Frame Inner() const { return {std::make_shared<Scope>(scope), out}; }
  };

  // Statements.
  FlowOr RunBody(const Body& body, const Frame& frame);
  FlowOr Run(const Print& node, const Frame& frame);
  FlowOr Run(const If& node, const Frame& frame);
  FlowOr Run(const For& node, const Frame& frame);
  FlowOr Run(const Set& node, const Frame& frame);
  FlowOr Run(const Block& node, const Frame& frame);
  FlowOr Run(const LoopControl& node, const Frame& frame);
  absl::StatusOr<bool> Admits(const For& node, const Value& item,
                              const ScopePtr& scope);
  absl::Status Assign(const Target& target, Value value, Scope& scope);
  absl::Status Append(std::string_view text, std::string* out);
  absl::Status AppendValue(const Value& value, std::string* out);

  // Expressions.
  ValueOr Evaluate(const Expression& expression, const ScopePtr& scope);
  ValueOr Node(const Literal& node, const ScopePtr& scope);
  ValueOr Node(const Name& node, const ScopePtr& scope);
  ValueOr Node(const Attribute& node, const ScopePtr& scope);
  ValueOr Node(const Operation& node, const ScopePtr& scope);
  ValueOr Node(const Call& node, const ScopePtr& scope);
  ValueOr Node(const MacroLiteral& node, const ScopePtr& scope);
  // Operations that do not look at all their operands.
  ValueOr Logical(const Operation& node, const ScopePtr& scope);
  ValueOr Conditional(const Operation& node, const ScopePtr& scope);
  // Any other, on the values of its operands.
  ValueOr Operated(Op op, std::vector<Value> values);
  absl::StatusOr<ArgumentValues> Evaluated(
      const std::vector<Argument>& arguments, const ScopePtr& scope);
  ValueOr CallValue(const Value& callee, ArgumentValues arguments);
  ValueOr CallMacro(const Macro& macro, ArgumentValues arguments);
  absl::Status BindParameters(const MacroDefinition& macro,
                              ArgumentValues arguments, const ScopePtr& scope);

  const Template& template_;
  Runtime& runtime_;
  int line_ = 1;  // of what is evaluated, or of what failed
  // What the first filter of a block applies to.
  Value filtered_;
  std::deque<Loop> loops_;
  std::deque<Macro> macros_;
};

}  // namespace

void Scope::Set(Symbol symbol, Value value) {
  for (auto& [name, old] : variables) {
    if (name == symbol) {
      old = std::move(value);
      return;
    }
  }
  variables.emplace_back(symbol, std::move(value));
}

const Value* Scope::Find(Symbol symbol) const {
  for (const Scope* scope = this; scope != nullptr;
       scope = scope->parent.get()) {
    for (const auto& [name, value] : scope->variables) {
      if (name == symbol) return &value;
    }
  }
  return nullptr;
}

absl::StatusOr<std::string> Evaluator::Run(const Context& context) {
  const auto scope = std::make_shared<Scope>(nullptr);
  for (const Builtin& function : Functions()) {
    if (auto symbol = template_.Find(function.name)) {
      scope->Set(*symbol, Value(&function));
    }
  }
  for (const auto& [name, value] : context) {
    if (auto symbol = template_.Find(name)) scope->Set(*symbol, value);
  }
  std::string out;
  const auto flow = RunBody(template_.body, {scope, &out});
  if (flow.ok()) return out;
  if (runtime_.raised) return flow.status();
  return ErrorAtLine(line_, StdView(flow.status().message()));
}

absl::Status Evaluator::Append(std::string_view text, std::string* out) {
  RETURN_IF_ERROR(runtime_.budget.ChargeBytes(text.size()));
  if (text.size() > kMaxOutputBytes - out->size()) {
    return absl::InvalidArgumentError(
        Cat("the output is longer than ", kMaxOutputBytes, " bytes"));
  }
  out->append(text);
  return absl::OkStatus();
}

absl::Status Evaluator::AppendValue(const Value& value, std::string* out) {
  if (auto text = value.text()) return Append(text->bytes, out);
  ASSIGN_OR_RETURN(std::string text, ToText(runtime_.budget, value));
  return Append(text, out);
}

Evaluator::FlowOr Evaluator::RunBody(const Body& body, const Frame& frame) {
  const Nested nested(&runtime_.depth);
  RETURN_IF_ERROR(runtime_.CheckDepth());
  for (const Statement& statement : body) {
    RETURN_IF_ERROR(runtime_.budget.Charge(1));
    const int outer_line = std::exchange(line_, statement.line);
    ASSIGN_OR_RETURN(
        Flow flow,
        std::visit([&](const auto& node) { return Run(node, frame); },
                   statement.node));
    line_ = outer_line;
    if (flow != Flow::kOn) return flow;
  }
  return Flow::kOn;
}

Evaluator::FlowOr Evaluator::Run(const Print& node, const Frame& frame) {
  ASSIGN_OR_RETURN(Value value, Evaluate(*node.expression, frame.scope));
  RETURN_IF_ERROR(AppendValue(value, frame.out));
  return Flow::kOn;
}

Evaluator::FlowOr Evaluator::Run(const If& node, const Frame& frame) {
  for (const auto& [condition, body] : node.branches) {
    ASSIGN_OR_RETURN(Value holds, Evaluate(*condition, frame.scope));
    if (IsTrue(holds)) return RunBody(body, frame);
  }
  return RunBody(node.otherwise, frame);
}

absl::StatusOr<bool> Evaluator::Admits(const For& node, const Value& item,
                                       const ScopePtr& scope) {
  if (!node.condition) return true;
  const auto inner = std::make_shared<Scope>(scope);
  RETURN_IF_ERROR(Assign(node.target, item, *inner));
  ASSIGN_OR_RETURN(Value holds, Evaluate(*node.condition, inner));
  return IsTrue(holds);
}

Evaluator::FlowOr Evaluator::Run(const For& node, const Frame& frame) {
  RETURN_IF_ERROR(runtime_.budget.Charge(kObjectSteps));
  ASSIGN_OR_RETURN(Value iterable, Evaluate(*node.iterable, frame.scope));
  ASSIGN_OR_RETURN(Items items, Iterate(runtime_, iterable));
  // Jinja asks for the condition as it comes to an item, so that the body may
  // change its answer for later ones. With `loop` in use we need to know all
  // at once, for loop.length and loop.last.
  Loop* loop = nullptr;
  if (node.uses_loop) {
    auto admitted = std::make_shared<std::vector<Value>>();
    for (const Value& item : *items) {
      ASSIGN_OR_RETURN(bool admits, Admits(node, item, frame.scope));
      if (admits) admitted->push_back(item);
    }
    items = std::move(admitted);
    loop = &loops_.emplace_back(Loop{items});
  }
  bool any = false;
  for (size_t i = 0; i < items->size(); ++i) {
    RETURN_IF_ERROR(runtime_.budget.Charge(1));
    const Value& item = (*items)[i];
    if (loop == nullptr) {
      ASSIGN_OR_RETURN(bool admits, Admits(node, item, frame.scope));
      if (!admits) continue;
    }
    any = true;
    const Frame inner = frame.Inner();
    if (loop != nullptr) {
      loop->index0 = i;
      inner.scope->Set(*template_.Find("loop"), Value(loop));
    }
    RETURN_IF_ERROR(Assign(node.target, item, *inner.scope));
    ASSIGN_OR_RETURN(Flow flow, RunBody(node.body, inner));
    if (flow == Flow::kBreak) break;
  }
  if (any) return Flow::kOn;
  return RunBody(node.otherwise, frame.Inner());
}

Evaluator::FlowOr Evaluator::Run(const Set& node, const Frame& frame) {
  ASSIGN_OR_RETURN(Value value, Evaluate(*node.value, frame.scope));
  RETURN_IF_ERROR(Assign(node.target, std::move(value), *frame.scope));
  return Flow::kOn;
}

Evaluator::FlowOr Evaluator::Run(const Block& node, const Frame& frame) {
  std::string text;
  Frame inner = frame.Inner();
  inner.out = &text;
  ASSIGN_OR_RETURN(Flow flow, RunBody(node.body, inner));
  if (flow != Flow::kOn) return flow;
  ASSIGN_OR_RETURN(Value value, NewString(runtime_.budget, std::move(text)));
  if (node.filters) {
    // The chain's first filter takes its input from here.
    Value outer = std::exchange(filtered_, std::move(value));
    ASSIGN_OR_RETURN(value, Evaluate(*node.filters, frame.scope));
    filtered_ = std::move(outer);
  }
  if (node.target.has_value()) {
    RETURN_IF_ERROR(Assign(*node.target, std::move(value), *frame.scope));
  } else {
    RETURN_IF_ERROR(AppendValue(value, frame.out));
  }
  return Flow::kOn;
}

Evaluator::FlowOr Evaluator::Run(const LoopControl& node, const Frame&) {
  return node.is_break ? Flow::kBreak : Flow::kContinue;
}

absl::Status Evaluator::Assign(const Target& target, Value value,
                               Scope& scope) {
  if (!target.attribute.empty()) {
    const Value* object = scope.Find(target.names[0]);
    auto space = object ? object->If<Namespace*>() : nullptr;
    if (space == nullptr) {
      return TypeError("cannot assign attribute on non-namespace object");
    }
    RETURN_IF_ERROR(runtime_.budget.Charge(1));
    (*space)->attributes[target.attribute] = std::move(value);
    return absl::OkStatus();
  }
  if (!target.unpacks) {
    scope.Set(target.names[0], std::move(value));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(Items items, Iterate(runtime_, value));
  if (items->size() != target.names.size()) {
    return TypeError(Cat("cannot unpack ", items->size(), " values into ",
                         target.names.size(), " names"));
  }
  for (size_t i = 0; i < items->size(); ++i) {
    scope.Set(target.names[i], (*items)[i]);
  }
  return absl::OkStatus();
}

// ---- expressions ----

ValueOr Evaluator::Evaluate(const Expression& expression,
                            const ScopePtr& scope) {
  RETURN_IF_ERROR(runtime_.budget.Charge(1));
  const Nested nested(&runtime_.depth);
  RETURN_IF_ERROR(runtime_.CheckDepth());
  const int outer_line = std::exchange(line_, expression.line);
  auto value = std::visit([&](const auto& node) { return Node(node, scope); },
                          expression.node);
  if (value.ok()) line_ = outer_line;
  return value;
}

ValueOr Evaluator::Node(const Literal& node, const ScopePtr&) {
  return node.value;
}

ValueOr Evaluator::Node(const Name& node, const ScopePtr& scope) {
  if (const Value* value = scope->Find(node.symbol)) return *value;
  return Value::Missing(
      Cat("'", template_.names[node.symbol], "' is undefined"));
}

ValueOr Evaluator::Node(const Attribute& node, const ScopePtr& scope) {
  ASSIGN_OR_RETURN(Value object, Evaluate(*node.object, scope));
  return GetAttribute(runtime_, object, node.name);
}

ValueOr Evaluator::Node(const Operation& node, const ScopePtr& scope) {
  if (node.op == Op::kAnd || node.op == Op::kOr) return Logical(node, scope);
  if (node.op == Op::kConditional) return Conditional(node, scope);
  std::vector<Value> values;
  values.reserve(node.operands.size());
  for (const ExpressionPtr& operand : node.operands) {
    Value value;  // none for an operand that is not there
    if (operand != nullptr) {
      ASSIGN_OR_RETURN(value, Evaluate(*operand, scope));
    }
    values.push_back(std::move(value));
  }
  return Operated(node.op, std::move(values));
}

ValueOr Evaluator::Logical(const Operation& node, const ScopePtr& scope) {
  Value value;
  for (const ExpressionPtr& operand : node.operands) {
    ASSIGN_OR_RETURN(value, Evaluate(*operand, scope));
    if (IsTrue(value) == (node.op == Op::kOr)) break;
  }
  return value;
}

ValueOr Evaluator::Conditional(const Operation& node, const ScopePtr& scope) {
  ASSIGN_OR_RETURN(Value condition, Evaluate(*node.operands[0], scope));
  if (IsTrue(condition)) return Evaluate(*node.operands[1], scope);
  if (node.operands[2]) return Evaluate(*node.operands[2], scope);
  return Value::Missing(
      "the inline if-expression evaluated to false and has no else");
}

ValueOr Evaluator::Operated(Op op, std::vector<Value> values) {
  switch (op) {
    case Op::kNot:
      return Value::Bool(!IsTrue(values[0]));
    case Op::kNegate:
      if (auto number = values[0].If<double>()) return Value::Float(-*number);
      return Operate(runtime_, Op::kSubtract, Value::Integer(0), values[0]);
    case Op::kConcatenate: {
      std::string out;
      for (const Value& value : values) {
        RETURN_IF_ERROR(AppendValue(value, &out));
      }
      return NewString(runtime_.budget, std::move(out));
    }
    case Op::kList:
      return NewSequence(runtime_.budget, Sequence::Flavor::kList,
                         std::move(values));
    case Op::kTuple:
      return NewSequence(runtime_.budget, Sequence::Flavor::kTuple,
                         std::move(values));
    case Op::kDict: {
      std::vector<std::pair<Value, Value>> entries;
      for (size_t i = 0; i < values.size(); i += 2) {
        entries.emplace_back(std::move(values[i]), std::move(values[i + 1]));
      }
      return NewDict(runtime_.budget, std::move(entries));
    }
    case Op::kSubscript:
      return GetItem(runtime_, values[0], values[1]);
    case Op::kSlice:
      return GetSlice(runtime_, values[0], values[1], values[2], values[3]);
    default:
      return Operate(runtime_, op, values[0], values[1]);
  }
}

ValueOr Evaluator::Node(const Call& node, const ScopePtr& scope) {
  Value object = filtered_;
  if (node.object) {
    ASSIGN_OR_RETURN(object, Evaluate(*node.object, scope));
  }
  ASSIGN_OR_RETURN(ArgumentValues arguments, Evaluated(node.arguments, scope));
  switch (node.kind) {
    case Call::Kind::kValue:
      return CallValue(object, std::move(arguments));
    case Call::Kind::kFilter:
      return CallFilter(runtime_, node.name, object, arguments);
    case Call::Kind::kTest:
      break;
  }
  ASSIGN_OR_RETURN(bool holds,
                   CallTest(runtime_, node.name, object, arguments));
  return Value::Bool(holds);
}

ValueOr Evaluator::Node(const MacroLiteral& node, const ScopePtr& scope) {
  RETURN_IF_ERROR(runtime_.budget.Charge(kObjectSteps));
  const Macro& macro =
      macros_.emplace_back(Macro{node.definition.get(), scope});
  return Value(&macro);
}

absl::StatusOr<ArgumentValues> Evaluator::Evaluated(
    const std::vector<Argument>& arguments, const ScopePtr& scope) {
  ArgumentValues values;
  for (const Argument& argument : arguments) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*argument.value, scope));
    if (!argument.name.empty()) {
      values.keyword.emplace_back(argument.name, std::move(value));
    } else if (!argument.is_spread) {
      values.positional.push_back(std::move(value));
    } else {
      ASSIGN_OR_RETURN(Items items, Iterate(runtime_, value));
      RETURN_IF_ERROR(runtime_.budget.Charge(items->size()));
      values.positional.insert(values.positional.end(), items->begin(),
                               items->end());
    }
  }
  return values;
}

ValueOr Evaluator::CallValue(const Value& callee, ArgumentValues arguments) {
  if (auto macro = callee.If<const Macro*>()) {
    return CallMacro(**macro, std::move(arguments));
  }
  if (auto function = callee.If<const Builtin*>()) {
    return CallBuiltin(runtime_, **function, Value(), arguments);
  }
  if (auto method = callee.method()) {
    return CallBuiltin(runtime_, method->builtin, method->receiver, arguments);
  }
  return TypeErrorOf(callee,
                     Cat("'", TypeName(callee), "' object is not callable"));
}

absl::Status Evaluator::BindParameters(const MacroDefinition& macro,
                                       ArgumentValues arguments,
                                       const ScopePtr& scope) {
  const std::vector<Value>& positional = arguments.positional;
  auto& keyword = arguments.keyword;
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
  if (macro.uses_caller) {
    scope->Set(*template_.Find("caller"),
               take("caller").value_or(Value::Missing("No caller defined")));
  }
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    if (i < positional.size()) {
      scope->Set(parameter.symbol, positional[i]);
    } else if (auto given = take(parameter.name)) {
      scope->Set(parameter.symbol, *std::move(given));
    } else if (parameter.default_value) {
      // In the macro's own scope: it may name the parameters before it.
      ASSIGN_OR_RETURN(Value value, Evaluate(*parameter.default_value, scope));
      scope->Set(parameter.symbol, std::move(value));
    } else {
      scope->Set(parameter.symbol,
                 Value::Missing(
                     Cat("parameter '", parameter.name, "' was not provided")));
    }
  }
  if (keyword.empty() && positional.size() <= macro.parameters.size()) {
    return absl::OkStatus();
  }
  return TypeError(
      Cat("macro '", macro.name, "' takes not more than ",
          macro.parameters.size(), " arguments",
          keyword.empty() ? "" : Cat(", and no '", keyword[0].first, "'")));
}

ValueOr Evaluator::CallMacro(const Macro& macro, ArgumentValues arguments) {
  const Nested nested(&runtime_.depth);
  RETURN_IF_ERROR(runtime_.CheckDepth());
  const auto scope = std::make_shared<Scope>(macro.closure);
  RETURN_IF_ERROR(
      BindParameters(*macro.definition, std::move(arguments), scope));
  std::string out;
  RETURN_IF_ERROR(RunBody(macro.definition->body, {scope, &out}).status());
  return NewString(runtime_.budget, std::move(out));
}

absl::StatusOr<std::string> RenderTemplate(const Template& parsed,
                                           const Context& context,
                                           Runtime& runtime) {
  return Evaluator(parsed, runtime).Run(context);
}

}  // namespace moebius::jinja
