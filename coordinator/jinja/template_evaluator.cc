#include "coordinator/jinja/template_evaluator.h"

#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "common/base/status_macros.h"
#include "coordinator/jinja/template_lexer.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {
namespace {

// What a scope, a loop and a macro cost: they stay until the rendering ends.
constexpr size_t kObjectSteps = 8;

constexpr std::pair<std::string_view, GlobalFunction> kGlobals[] = {
    {"range", GlobalFunction::kRange},
    {"dict", GlobalFunction::kDict},
    {"namespace", GlobalFunction::kNamespace},
    {"raise_exception", GlobalFunction::kRaiseException},
    {"strftime_now", GlobalFunction::kStrftimeNow},
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
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent) {
    for (const auto& [name, value] : scope->variables) {
      if (name == symbol) return &value;
    }
  }
  return nullptr;
}

Evaluator::ScopeUse::ScopeUse(Evaluator& evaluator, Scope* parent)
    : evaluator_(evaluator) {
  if (evaluator.unused_scopes_.empty()) {
    scope_ = &evaluator.scopes_.emplace_back();
  } else {
    scope_ = evaluator.unused_scopes_.back();
    evaluator.unused_scopes_.pop_back();
  }
  scope_->parent = parent;
}

Evaluator::ScopeUse::~ScopeUse() {
  if (scope_->captured) return;
  scope_->variables.clear();
  evaluator_.unused_scopes_.push_back(scope_);
}

absl::StatusOr<std::string> Evaluator::Run(const Context& context) {
  ScopeUse scope(*this, nullptr);
  for (const auto& [name, function] : kGlobals) {
    if (auto symbol = template_.Find(name)) {
      scope->Set(*symbol, Value(function));
    }
  }
  for (const auto& [name, value] : context) {
    if (auto symbol = template_.Find(name)) scope->Set(*symbol, value);
  }
  std::string out;
  const auto flow = RunBody(template_.body, *scope, &out);
  if (flow.ok()) return out;
  if (runtime_.raised) return flow.status();
  return ErrorAtLine(line_, std::string(flow.status().message()));
}

absl::Status Evaluator::Append(std::string_view text, std::string* out) {
  RETURN_IF_ERROR(runtime_.budget.ChargeBytes(text.size()));
  if (text.size() > kMaxOutputBytes - out->size()) {
    return absl::InvalidArgumentError(
        StrCat("the output is longer than ", kMaxOutputBytes, " bytes"));
  }
  out->append(text);
  return absl::OkStatus();
}

absl::Status Evaluator::AppendValue(const Value& value, std::string* out) {
  if (auto text = value.text()) return Append(text->bytes, out);
  ASSIGN_OR_RETURN(std::string text, ToText(runtime_.budget, value));
  return Append(text, out);
}

const Macro* Evaluator::NewMacro(const MacroDefinition& definition,
                                 Scope& closure) {
  for (Scope* scope = &closure; scope != nullptr && !scope->captured;
       scope = scope->parent) {
    scope->captured = true;
  }
  return &macros_.emplace_back(Macro{&definition, &closure});
}

absl::StatusOr<Evaluator::Flow> Evaluator::RunBody(const Body& body,
                                                   Scope& scope,
                                                   std::string* out) {
  const EvaluationLevel level(runtime_);
  RETURN_IF_ERROR(level.Check());
  for (const Statement& statement : body) {
    RETURN_IF_ERROR(runtime_.budget.Charge(1));
    const int outer_line = std::exchange(line_, statement.line);
    ASSIGN_OR_RETURN(Flow flow, RunStatement(statement, scope, out));
    line_ = outer_line;
    if (flow != Flow::kOn) return flow;
  }
  return Flow::kOn;
}

absl::StatusOr<Evaluator::Flow> Evaluator::RunStatement(
    const Statement& statement, Scope& scope, std::string* out) {
  const auto& node = statement.node;
  if (auto output = std::get_if<Output>(&node)) {
    RETURN_IF_ERROR(Append(output->text, out));
  } else if (auto print = std::get_if<Print>(&node)) {
    ASSIGN_OR_RETURN(Value value, Evaluate(print->expression, scope));
    RETURN_IF_ERROR(AppendValue(value, out));
  } else if (auto choice = std::get_if<If>(&node)) {
    return RunIf(*choice, scope, out);
  } else if (auto loop = std::get_if<For>(&node)) {
    return RunFor(*loop, scope, out);
  } else if (auto set = std::get_if<Set>(&node)) {
    ASSIGN_OR_RETURN(Value value, Evaluate(set->value, scope));
    RETURN_IF_ERROR(Assign(set->target, std::move(value), scope));
  } else if (auto block = std::get_if<SetBlock>(&node)) {
    Flow flow = Flow::kOn;
    ASSIGN_OR_RETURN(Value value,
                     RunFiltered(block->body, block->filter, scope, &flow));
    if (flow != Flow::kOn) return flow;
    RETURN_IF_ERROR(Assign(block->target, std::move(value), scope));
  } else if (auto with = std::get_if<With>(&node)) {
    return RunWith(*with, scope, out);
  } else if (auto macro = std::get_if<DefineMacro>(&node)) {
    RETURN_IF_ERROR(runtime_.budget.Charge(kObjectSteps));
    scope.Set(macro->symbol, Value(NewMacro(*macro->macro, scope)));
  } else if (auto call = std::get_if<CallBlock>(&node)) {
    RETURN_IF_ERROR(runtime_.budget.Charge(kObjectSteps));
    const auto& callee = std::get<Call>(call->call->node);
    ASSIGN_OR_RETURN(Value function, Evaluate(callee.callee, scope));
    ASSIGN_OR_RETURN(ArgumentValues arguments,
                     EvaluateArguments(callee.arguments, scope));
    arguments.keyword.emplace_back("caller",
                                   Value(NewMacro(*call->caller, scope)));
    ASSIGN_OR_RETURN(Value value, CallValue(function, std::move(arguments)));
    RETURN_IF_ERROR(AppendValue(value, out));
  } else if (auto filter = std::get_if<FilterBlock>(&node)) {
    Flow flow = Flow::kOn;
    ASSIGN_OR_RETURN(Value value,
                     RunFiltered(filter->body, filter->filter, scope, &flow));
    if (flow != Flow::kOn) return flow;
    RETURN_IF_ERROR(AppendValue(value, out));
  } else if (auto scoped = std::get_if<Scoped>(&node)) {
    ScopeUse inner(*this, &scope);
    return RunBody(scoped->body, *inner, out);
  } else if (std::holds_alternative<Break>(node)) {
    return Flow::kBreak;
  } else {
    return Flow::kContinue;
  }
  return Flow::kOn;
}

absl::StatusOr<Evaluator::Flow> Evaluator::RunIf(const If& node, Scope& scope,
                                                 std::string* out) {
  for (const auto& [condition, body] : node.branches) {
    ASSIGN_OR_RETURN(Value holds, Evaluate(condition, scope));
    if (IsTrue(holds)) return RunBody(body, scope, out);
  }
  return RunBody(node.otherwise, scope, out);
}

absl::StatusOr<bool> Evaluator::Admits(const For& node, const Value& item,
                                       Scope& scope) {
  if (!node.condition) return true;
  ScopeUse inner(*this, &scope);
  RETURN_IF_ERROR(Assign(node.target, item, *inner));
  ASSIGN_OR_RETURN(Value holds, Evaluate(node.condition, *inner));
  return IsTrue(holds);
}

absl::StatusOr<Items> Evaluator::Admitted(const For& node, Items items,
                                          Scope& scope) {
  if (!node.condition) return items;
  auto admitted = std::make_shared<std::vector<Value>>();
  for (const Value& item : *items) {
    ASSIGN_OR_RETURN(bool admits, Admits(node, item, scope));
    if (admits) admitted->push_back(item);
  }
  return admitted;
}

absl::StatusOr<Evaluator::Flow> Evaluator::RunFor(const For& node, Scope& scope,
                                                  std::string* out) {
  RETURN_IF_ERROR(runtime_.budget.Charge(kObjectSteps));
  ASSIGN_OR_RETURN(Value iterable, Evaluate(node.iterable, scope));
  ASSIGN_OR_RETURN(Items items, Iterate(runtime_, iterable));
  // Jinja asks for the condition as it comes to an item, so that the body may
  // change its answer for later ones. With `loop` in use we need to know all
  // at once, for loop.length and loop.last.
  const bool is_lazy = !node.uses_loop;
  Loop* loop = nullptr;
  std::optional<Symbol> loop_symbol;
  if (!is_lazy) {
    ASSIGN_OR_RETURN(items, Admitted(node, std::move(items), scope));
    loop = &loops_.emplace_back();
    loop->items = items;
    loop_symbol = template_.Find("loop");
  }
  bool any = false;
  for (size_t i = 0; i < items->size(); ++i) {
    RETURN_IF_ERROR(runtime_.budget.Charge(1));
    const Value& item = (*items)[i];
    if (is_lazy) {
      ASSIGN_OR_RETURN(bool admits, Admits(node, item, scope));
      if (!admits) continue;
    }
    any = true;
    ScopeUse inner(*this, &scope);
    if (loop != nullptr) {
      loop->index0 = i;
      inner->Set(*loop_symbol, Value(loop));
    }
    RETURN_IF_ERROR(Assign(node.target, item, *inner));
    ASSIGN_OR_RETURN(Flow flow, RunBody(node.body, *inner, out));
    if (inner->captured) RETURN_IF_ERROR(runtime_.budget.Charge(kObjectSteps));
    if (flow == Flow::kBreak) break;
  }
  if (any) return Flow::kOn;
  ScopeUse inner(*this, &scope);
  return RunBody(node.otherwise, *inner, out);
}

absl::StatusOr<Evaluator::Flow> Evaluator::RunWith(const With& node,
                                                   Scope& scope,
                                                   std::string* out) {
  ScopeUse inner(*this, &scope);
  for (const auto& [target, expression] : node.assignments) {
    // Values are those of the scope outside, as Jinja has it since 2.9.
    ASSIGN_OR_RETURN(Value value, Evaluate(expression, scope));
    RETURN_IF_ERROR(Assign(target, std::move(value), *inner));
  }
  return RunBody(node.body, *inner, out);
}

absl::StatusOr<Value> Evaluator::RunFiltered(const Body& body,
                                             const ExpressionPtr& filter,
                                             Scope& scope, Flow* flow) {
  std::string text;
  {
    ScopeUse inner(*this, &scope);
    ASSIGN_OR_RETURN(*flow, RunBody(body, *inner, &text));
  }
  ASSIGN_OR_RETURN(Value value, NewString(runtime_.budget, std::move(text)));
  if (!filter) return value;
  // The chain's first filter takes its input from here.
  auto outer = std::exchange(filtered_, std::move(value));
  auto result = Evaluate(filter, scope);
  filtered_ = std::move(outer);
  return result;
}

absl::Status Evaluator::Assign(const Target& target, Value value,
                               Scope& scope) {
  if (auto symbol = std::get_if<Symbol>(&target.node)) {
    scope.Set(*symbol, std::move(value));
    return absl::OkStatus();
  }
  if (auto place = std::get_if<Target::NamespaceAttribute>(&target.node)) {
    const Value* object = scope.Find(place->symbol);
    auto space = object ? object->If<Namespace*>() : nullptr;
    if (space == nullptr) {
      return TypeError("cannot assign attribute on non-namespace object");
    }
    RETURN_IF_ERROR(runtime_.budget.Charge((*space)->attributes.size() + 1));
    (*space)->Set(place->attribute, std::move(value));
    return absl::OkStatus();
  }
  const auto& parts = std::get<std::vector<Target>>(target.node);
  ASSIGN_OR_RETURN(Items items, Iterate(runtime_, value));
  if (items->size() != parts.size()) {
    return TypeError(StrCat("cannot unpack ", items->size(), " values into ",
                            parts.size(), " names"));
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    RETURN_IF_ERROR(Assign(parts[i], (*items)[i], scope));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> RenderTemplate(const Template& parsed,
                                           const Context& context,
                                           Runtime& runtime) {
  return Evaluator(parsed, runtime).Run(context);
}

}  // namespace moebius::jinja
