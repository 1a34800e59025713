// Evaluates a parsed template.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/jinja/template_ast.h"
#include "coordinator/jinja/template_runtime.h"

namespace moebius::jinja {

using Context = std::vector<std::pair<std::string, Value>>;

// Renders `parsed` with the variables of `context` and the global functions.
//
// Errors: kInvalidArgument, "line N: reason" for what the template or its
// data does wrong and for exceeded bounds; the template's own words if it
// calls raise_exception.
absl::StatusOr<std::string> RenderTemplate(const Template& parsed,
                                           const Context& context,
                                           Runtime& runtime);

// Variables of one block; names are looked up from the inside out.
struct Scope {
  Scope* parent = nullptr;
  absl::InlinedVector<std::pair<Symbol, Value>, 4> variables;
  // A macro may still look into it, so it must not be used again.
  bool captured = false;

  void Set(Symbol symbol, Value value);
  const Value* Find(Symbol symbol) const;  // here or further out
};

// A macro under its definition's scope.
struct Macro {
  const MacroDefinition* definition;
  Scope* closure;
};

// Evaluator
//
// One rendering under way. Its scopes, loops and macros live as long as it
// does, since values may refer to them.
// Threading: thread-compatible.
class Evaluator {
 public:
  Evaluator(const Template& parsed, Runtime& runtime)
      : template_(parsed), runtime_(runtime) {}
  Evaluator(const Evaluator&) = delete;

  absl::StatusOr<std::string> Run(const Context& context);

 private:
  enum class Flow { kOn, kBreak, kContinue };

  // A scope in use; given back when it goes out of use.
  class ScopeUse {
   public:
    ScopeUse(Evaluator& evaluator, Scope* parent);
    ~ScopeUse();
    ScopeUse(const ScopeUse&) = delete;
    Scope& operator*() const { return *scope_; }
    Scope* operator->() const { return scope_; }

   private:
    Evaluator& evaluator_;
    Scope* scope_;
  };

  // Statements (template_evaluator.cc).
  absl::StatusOr<Flow> RunBody(const Body& body, Scope& scope,
                               std::string* out);
  absl::StatusOr<Flow> RunStatement(const Statement& statement, Scope& scope,
                                    std::string* out);
  absl::StatusOr<Flow> RunIf(const If& node, Scope& scope, std::string* out);
  absl::StatusOr<Flow> RunFor(const For& node, Scope& scope, std::string* out);
  absl::StatusOr<bool> Admits(const For& node, const Value& item, Scope& scope);
  absl::StatusOr<Items> Admitted(const For& node, Items items, Scope& scope);
  absl::StatusOr<Flow> RunWith(const With& node, Scope& scope,
                               std::string* out);
  // A body whose output goes through `filter`, if there is one.
  absl::StatusOr<Value> RunFiltered(const Body& body,
                                    const ExpressionPtr& filter, Scope& scope,
                                    Flow* flow);
  absl::Status Assign(const Target& target, Value value, Scope& scope);
  absl::Status Append(std::string_view text, std::string* out);
  absl::Status AppendValue(const Value& value, std::string* out);
  const Macro* NewMacro(const MacroDefinition& definition, Scope& closure);

  // Expressions (template_expression_evaluator.cc).
  absl::StatusOr<Value> Evaluate(const Expression& expression, Scope& scope);
  absl::StatusOr<Value> Evaluate(const ExpressionPtr& expression,
                                 Scope& scope) {
    return Evaluate(*expression, scope);
  }
  // None for an expression that is not there.
  absl::StatusOr<Value> EvaluateOr(const ExpressionPtr& expression,
                                   Scope& scope);
  absl::StatusOr<Value> Node(const Literal& node, Scope& scope);
  absl::StatusOr<Value> Node(const Name& node, Scope& scope);
  absl::StatusOr<Value> Node(const ListLiteral& node, Scope& scope);
  absl::StatusOr<Value> Node(const DictLiteral& node, Scope& scope);
  absl::StatusOr<Value> Node(const Unary& node, Scope& scope);
  absl::StatusOr<Value> Node(const Binary& node, Scope& scope);
  absl::StatusOr<Value> Node(const Logical& node, Scope& scope);
  absl::StatusOr<Value> Node(const Comparison& node, Scope& scope);
  absl::StatusOr<Value> Node(const Concatenation& node, Scope& scope);
  absl::StatusOr<Value> Node(const Conditional& node, Scope& scope);
  absl::StatusOr<Value> Node(const Attribute& node, Scope& scope);
  absl::StatusOr<Value> Node(const Subscript& node, Scope& scope);
  absl::StatusOr<Value> Node(const Slice& node, Scope& scope);
  absl::StatusOr<Value> Node(const Call& node, Scope& scope);
  absl::StatusOr<Value> Node(const Filter& node, Scope& scope);
  absl::StatusOr<Value> Node(const Test& node, Scope& scope);
  absl::StatusOr<bool> Compare(Comparison::Op op, const Value& a,
                               const Value& b);
  absl::StatusOr<ArgumentValues> EvaluateArguments(const Arguments& arguments,
                                                   Scope& scope);
  absl::StatusOr<Value> CallValue(const Value& callee,
                                  ArgumentValues arguments);
  absl::StatusOr<Value> CallMacro(const Macro& macro, ArgumentValues arguments);
  absl::Status BindParameters(const MacroDefinition& macro,
                              ArgumentValues* arguments, Scope& scope);

  const Template& template_;
  Runtime& runtime_;
  int line_ = 1;  // of what is evaluated, or of what failed
  // What the first filter of a filter block applies to.
  std::optional<Value> filtered_;
  std::deque<Scope> scopes_;
  std::vector<Scope*> unused_scopes_;
  std::deque<Loop> loops_;
  std::deque<Macro> macros_;
};

}  // namespace moebius::jinja
