// The tree of a parsed template. Built by the parser, never changed after.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "coordinator/jinja/template_value.h"

namespace moebius::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

// A variable's name as an index into Template::names.
using Symbol = int;

struct Arguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> keyword;
  ExpressionPtr more_positional;  // *expr, or null
  ExpressionPtr more_keyword;     // **expr, or null
};

struct Literal {
  Value value;
};
struct Name {
  Symbol symbol;
};
struct ListLiteral {
  std::vector<ExpressionPtr> items;
  bool is_tuple;
};
struct DictLiteral {
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> entries;
};
struct Unary {
  enum class Op { kNot, kMinus, kPlus };
  Op op;
  ExpressionPtr operand;
};
struct Binary {
  enum class Op {
    kAdd,
    kSubtract,
    kMultiply,
    kDivide,
    kFloorDivide,
    kModulo,
    kPower
  };
  Op op;
  ExpressionPtr left, right;
};
// All operands of one chain of "and" (of "or").
struct Logical {
  bool is_and;
  std::vector<ExpressionPtr> operands;
};
// a < b <= c: every comparison must hold.
struct Comparison {
  enum class Op {
    kEqual,
    kNotEqual,
    kLess,
    kLessEqual,
    kGreater,
    kGreaterEqual,
    kIn,
    kNotIn
  };
  ExpressionPtr first;
  std::vector<std::pair<Op, ExpressionPtr>> rest;
};
struct Concatenation {  // a ~ b
  std::vector<ExpressionPtr> operands;
};
struct Conditional {  // then if condition else otherwise
  ExpressionPtr condition, then;
  ExpressionPtr otherwise;  // or null
};
struct Attribute {  // object.name
  ExpressionPtr object;
  std::string name;
};
struct Subscript {  // object[key]
  ExpressionPtr object, key;
};
struct Slice {  // object[start:stop:step]
  ExpressionPtr object;
  ExpressionPtr start, stop, step;  // or null
};
struct Call {
  ExpressionPtr callee;
  Arguments arguments;
};
struct Filter {
  ExpressionPtr input;  // null in blocks: the block's output
  std::string name;
  Arguments arguments;
};
struct Test {
  ExpressionPtr input;
  std::string name;
  Arguments arguments;
};

struct Expression {
  int line;
  int height;  // 1 + the highest operand's
  std::variant<Literal, Name, ListLiteral, DictLiteral, Unary, Binary, Logical,
               Comparison, Concatenation, Conditional, Attribute, Subscript,
               Slice, Call, Filter, Test>
      node;
};

struct Statement;
using Body = std::vector<Statement>;

// What is assigned to: a name, names in a tuple, or an attribute of a
// namespace.
struct Target {
  struct NamespaceAttribute {
    Symbol symbol;
    std::string attribute;
  };
  std::variant<Symbol, std::vector<Target>, NamespaceAttribute> node;
};

struct Output {  // text between tags
  std::string text;
};
struct Print {  // {{ expression }}
  ExpressionPtr expression;
};
struct If {
  std::vector<std::pair<ExpressionPtr, Body>> branches;
  Body otherwise;
};
struct For {
  Target target;
  ExpressionPtr iterable;
  ExpressionPtr condition;  // or null
  Body body, otherwise;
  bool uses_loop;  // the body mentions `loop`
};
struct Set {
  Target target;
  ExpressionPtr value;
};
struct SetBlock {
  Target target;
  ExpressionPtr filter;  // a chain of Filter whose first input is null; or null
  Body body;
};
struct With {
  std::vector<std::pair<Target, ExpressionPtr>> assignments;
  Body body;
};
struct Parameter {
  Symbol symbol;
  std::string name;
  ExpressionPtr default_value;  // or null
};
// The definition of a macro; also the body of a call block.
struct MacroDefinition {
  std::string name;
  std::vector<Parameter> parameters;
  // Whether the body uses these names; a macro that does takes any arguments.
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
  Body body;
};
struct DefineMacro {
  Symbol symbol;
  std::unique_ptr<MacroDefinition> macro;
};
struct CallBlock {  // {% call(x) macro() %}: the body is `caller`
  ExpressionPtr call;
  std::unique_ptr<MacroDefinition> caller;
};
struct FilterBlock {
  ExpressionPtr filter;
  Body body;
};
struct Scoped {  // {% generation %}: marks the model's own words, prints them
  Body body;
};
struct Break {};
struct Continue {};

struct Statement {
  int line;
  std::variant<Output, Print, If, For, Set, SetBlock, With, DefineMacro,
               CallBlock, FilterBlock, Scoped, Break, Continue>
      node;
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

}  // namespace moebius::jinja
