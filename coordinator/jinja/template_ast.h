// Parses a template into a tree, which never changes after.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/jinja/template_value.h"

namespace moebius::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

// A variable's name as an index into Template::names.
using Symbol = int;

struct Literal {
  Value value;
};
struct Name {
  Symbol symbol;
};
struct Attribute {  // object.name
  ExpressionPtr object;
  std::string name;
};

// What is done with operands.
enum class Op {
  // Two operands.
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
  kSubscript,  // object, key
  // One operand.
  kNot,
  kNegate,
  // Any number of them.
  kAnd,
  kOr,
  kConcatenate,
  kList,
  kTuple,
  kDict,  // key, value, key, value ...
  // A fixed number, of which some may be null.
  kConditional,  // condition, then, otherwise or null
  kSlice,        // object, then start, stop, step or null
};
struct Operation {
  Op op;
  std::vector<ExpressionPtr> operands;
};

struct Argument {
  std::string name;  // empty: by position
  ExpressionPtr value;
  bool is_spread = false;  // *value
};
// A call, and what else takes arguments.
struct Call {
  enum class Kind {
    kValue,   // object(arguments)
    kFilter,  // object|name(arguments)
    kTest,    // object is name(arguments)
  };
  Kind kind;
  ExpressionPtr object;  // null for a filter of a block: the block's output
  std::string name;      // of a filter or a test
  std::vector<Argument> arguments;
};

struct MacroDefinition;
struct MacroLiteral {  // of {% macro %}, of the body of {% call %}
  std::shared_ptr<const MacroDefinition> definition;
};

using ExpressionNode =
    std::variant<Literal, Name, Attribute, Operation, Call, MacroLiteral>;
struct Expression {
  int line;
  int height;  // 1 + the highest operand's
  ExpressionNode node;
};

// Calls visit(operand) for each that is there, in order.
template <typename Visit>
void ForEachOperand(const Expression& expression, Visit visit) {
  const auto look = [&](const ExpressionPtr& operand) {
    if (operand != nullptr) visit(*operand);
  };
  if (auto attribute = std::get_if<Attribute>(&expression.node)) {
    look(attribute->object);
  } else if (auto operation = std::get_if<Operation>(&expression.node)) {
    for (const ExpressionPtr& operand : operation->operands) look(operand);
  } else if (auto call = std::get_if<Call>(&expression.node)) {
    look(call->object);
    for (const Argument& argument : call->arguments) look(argument.value);
  }
}

struct Statement;
using Body = std::vector<Statement>;

// What is assigned to: a name, several that take the items of one value, or
// an attribute of a namespace.
struct Target {
  std::vector<Symbol> names;
  bool unpacks = false;
  std::string attribute;  // of names[0], if it is not empty
};

struct Print {  // {{ expression }}, text between tags, {% call %}
  ExpressionPtr expression;
};
struct If {
  struct Branch {
    ExpressionPtr condition;
    Body body;
  };
  std::vector<Branch> branches;
  Body otherwise;
};
struct For {
  Target target;
  ExpressionPtr iterable;
  ExpressionPtr condition;  // or null
  Body body, otherwise;
  bool uses_loop;  // the body mentions `loop`
};
struct Set {  // also {% macro %}
  Target target;
  ExpressionPtr value;
};
// {% set x %}, {% filter %}, {% generation %}: what the body prints goes
// through the filters and is assigned or printed.
struct Block {
  std::optional<Target> target;
  ExpressionPtr filters;  // a chain whose first has no object; or null
  Body body;
};
struct LoopControl {
  bool is_break;  // else continue
};

using StatementNode = std::variant<Print, If, For, Set, Block, LoopControl>;
struct Statement {
  int line;
  StatementNode node;
};

struct Parameter {
  Symbol symbol;
  std::string name;
  ExpressionPtr default_value;  // or null
};
struct MacroDefinition {
  std::string name;
  std::vector<Parameter> parameters;
  bool uses_caller = false;  // a macro that does may be given one
  Body body;
};

struct Template {
  std::vector<std::string> names;  // by Symbol
  Body body;

  // The symbol of `name` if the template mentions it.
  std::optional<Symbol> Find(std::string_view name) const {
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] == name) return static_cast<Symbol>(i);
    }
    return std::nullopt;
  }
};

// Understands Jinja's expressions and its statements for, if, set, macro,
// call, filter, raw, break, continue, and Hugging Face's generation, as far as
// published templates use them. All else is refused by name.
//
// Errors: kInvalidArgument "line N: reason".
absl::StatusOr<Template> ParseTemplate(std::string_view source);

}  // namespace moebius::jinja
