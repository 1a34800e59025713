// Expressions, from the loosest binding to the tightest.
#include <algorithm>
#include <memory>
#include <utility>

#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_parser_internal.h"

namespace moebius::jinja {
namespace {

struct BinaryOperator {
  int level;  // of binding strength
  Token::Kind kind;
  std::string_view text;
  Op op;
};

constexpr int kNotLevel = 2, kComparisonLevel = 3, kNumLevels = 7;

constexpr BinaryOperator kOperators[] = {
    {0, Token::Kind::kName, "or", Op::kOr},
    {1, Token::Kind::kName, "and", Op::kAnd},
    {3, Token::Kind::kOperator, "==", Op::kEqual},
    {3, Token::Kind::kOperator, "!=", Op::kNotEqual},
    {3, Token::Kind::kOperator, "<", Op::kLess},
    {3, Token::Kind::kOperator, "<=", Op::kLessEqual},
    {3, Token::Kind::kOperator, ">", Op::kGreater},
    {3, Token::Kind::kOperator, ">=", Op::kGreaterEqual},
    {3, Token::Kind::kName, "in", Op::kIn},
    {4, Token::Kind::kOperator, "+", Op::kAdd},
    {4, Token::Kind::kOperator, "-", Op::kSubtract},
    {5, Token::Kind::kOperator, "~", Op::kConcatenate},
    {6, Token::Kind::kOperator, "*", Op::kMultiply},
    {6, Token::Kind::kOperator, "/", Op::kDivide},
    {6, Token::Kind::kOperator, "//", Op::kFloorDivide},
    {6, Token::Kind::kOperator, "%", Op::kModulo},
};

}  // namespace

std::optional<Value> Parser::ConstantNamed(std::string_view name) {
  if (name == "true" || name == "True") return Value::Bool(true);
  if (name == "false" || name == "False") return Value::Bool(false);
  if (name == "none" || name == "None") return Value();
  return std::nullopt;
}

ExpressionOr Parser::Make(int line, ExpressionNode node) const {
  auto made =
      std::make_unique<Expression>(Expression{line, 1, std::move(node)});
  ForEachOperand(*made, [&made](const Expression& operand) {
    made->height = std::max(made->height, operand.height + 1);
  });
  if (made->height <= kMaxExpressionHeight) return made;
  return ErrorAtLine(
      line, Cat("the expression's tree is higher than ", kMaxExpressionHeight));
}

template <typename... Operands>
ExpressionOr Parser::MakeOperation(int line, Op op,
                                   Operands... operands) const {
  Operation node{op, {}};
  (node.operands.push_back(std::move(operands)), ...);
  return Make(line, std::move(node));
}

ExpressionOr Parser::OneExpression(bool with_conditional) {
  Nested nested(&nesting_);
  RETURN_IF_ERROR(CheckNesting());
  const int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr expression, Operators(0));
  while (with_conditional && SkipName("if")) {
    ASSIGN_OR_RETURN(ExpressionPtr condition, Operators(0));
    ExpressionPtr otherwise;
    if (SkipName("else")) {
      ASSIGN_OR_RETURN(otherwise, OneExpression());
    }
    ASSIGN_OR_RETURN(
        expression, MakeOperation(line, Op::kConditional, std::move(condition),
                                  std::move(expression), std::move(otherwise)));
  }
  return expression;
}

ExpressionOr Parser::TupleOrExpression(bool with_conditional,
                                       bool in_parentheses) {
  const int line = Current().line;
  Operation tuple{Op::kTuple, {}};
  bool has_comma = false;
  while (Current().kind != Token::Kind::kTag && !IsOperator(")")) {
    ASSIGN_OR_RETURN(ExpressionPtr item, OneExpression(with_conditional));
    tuple.operands.push_back(std::move(item));
    if (!SkipOperator(",")) break;
    has_comma = true;
  }
  if (!has_comma && tuple.operands.size() == 1) {
    return std::move(tuple.operands[0]);
  }
  if (!has_comma && !in_parentheses) return Unexpected("an expression");
  return Make(line, std::move(tuple));
}

std::optional<Op> Parser::TakeOperator(int level) {
  if (level == kComparisonLevel && IsName("not") &&
      Is(Next(), Token::Kind::kName, "in")) {
    Advance();
    Advance();
    return Op::kNotIn;
  }
  for (const BinaryOperator& candidate : kOperators) {
    if (candidate.level == level && Skip(candidate.kind, candidate.text)) {
      return candidate.op;
    }
  }
  return std::nullopt;
}

ExpressionOr Parser::Operators(int level) {
  if (level == kNumLevels) return Prefix(/*with_filter=*/true);
  const int line = Current().line;
  if (level == kNotLevel && SkipName("not")) {
    Nested nested(&nesting_);
    RETURN_IF_ERROR(CheckNesting());
    ASSIGN_OR_RETURN(ExpressionPtr operand, Operators(kNotLevel));
    return MakeOperation(line, Op::kNot, std::move(operand));
  }
  ASSIGN_OR_RETURN(ExpressionPtr left, Operators(level + 1));
  for (int count = 0; const auto op = TakeOperator(level); ++count) {
    if (level == kComparisonLevel && count > 0) {
      return Fail("chains of comparisons are not supported");
    }
    ASSIGN_OR_RETURN(ExpressionPtr right, Operators(level + 1));
    auto* chain = std::get_if<Operation>(&left->node);
    const bool extends =
        chain != nullptr && chain->op == *op &&
        (*op == Op::kAnd || *op == Op::kOr || *op == Op::kConcatenate);
    if (extends) {
      chain->operands.push_back(std::move(right));
      ASSIGN_OR_RETURN(left, Make(line, std::move(*chain)));
    } else {
      ASSIGN_OR_RETURN(
          left, MakeOperation(line, *op, std::move(left), std::move(right)));
    }
  }
  return left;
}

ExpressionOr Parser::Prefix(bool with_filter) {
  Nested nested(&nesting_);
  RETURN_IF_ERROR(CheckNesting());
  const int line = Current().line;
  ExpressionPtr expression;
  if (SkipOperator("-")) {
    ASSIGN_OR_RETURN(expression, Prefix(/*with_filter=*/false));
    ASSIGN_OR_RETURN(expression,
                     MakeOperation(line, Op::kNegate, std::move(expression)));
  } else {
    ASSIGN_OR_RETURN(expression, Primary());
  }
  ASSIGN_OR_RETURN(expression, Postfix(std::move(expression)));
  if (!with_filter) return expression;
  return FiltersAndTests(std::move(expression));
}

ExpressionOr Parser::Primary() {
  const int line = Current().line;
  if (Current().kind == Token::Kind::kName) return NameOrConstant();
  if (Current().kind == Token::Kind::kString) {
    std::string text;
    for (; Current().kind == Token::Kind::kString; Advance()) {
      text += Current().text;
    }
    return Make(line, Literal{Value::String(std::move(text))});
  }
  if (Current().kind == Token::Kind::kNumber) {
    Value number = Current().number;
    Advance();
    return Make(line, Literal{std::move(number)});
  }
  if (SkipOperator("(")) {
    ASSIGN_OR_RETURN(ExpressionPtr inner,
                     TupleOrExpression(/*with_conditional=*/true,
                                       /*in_parentheses=*/true));
    RETURN_IF_ERROR(ExpectOperator(")"));
    return inner;
  }
  if (SkipOperator("[")) return Items(line, Op::kList, "]");
  if (SkipOperator("{")) return Items(line, Op::kDict, "}");
  return Unexpected("an expression");
}

ExpressionOr Parser::NameOrConstant() {
  const int line = Current().line;
  ASSIGN_OR_RETURN(const std::string name, TakeName());
  if (auto constant = ConstantNamed(name)) {
    return Make(line, Literal{*std::move(constant)});
  }
  if (macros_ > 0 && (name == "varargs" || name == "kwargs")) {
    return ErrorAtLine(line, Cat("'", name, "' of a macro is not supported"));
  }
  loop_mentions_ += name == "loop";
  caller_mentions_ += name == "caller";
  return Make(line, Name{Intern(name)});
}

ExpressionOr Parser::Items(int line, Op op, std::string_view close) {
  Operation node{op, {}};
  while (!SkipOperator(close)) {
    if (!node.operands.empty()) {
      RETURN_IF_ERROR(ExpectOperator(","));
      if (SkipOperator(close)) break;
    }
    ASSIGN_OR_RETURN(ExpressionPtr item, OneExpression());
    node.operands.push_back(std::move(item));
    if (op != Op::kDict) continue;
    RETURN_IF_ERROR(ExpectOperator(":"));
    ASSIGN_OR_RETURN(item, OneExpression());
    node.operands.push_back(std::move(item));
  }
  return Make(line, std::move(node));
}

ExpressionOr Parser::Postfix(ExpressionPtr expression) {
  while (true) {
    const int line = Current().line;
    if (SkipOperator(".")) {
      ASSIGN_OR_RETURN(expression, AttributeOf(std::move(expression)));
    } else if (SkipOperator("[")) {
      ASSIGN_OR_RETURN(expression, SubscriptOf(std::move(expression)));
    } else if (IsOperator("(")) {
      Call call{Call::Kind::kValue, std::move(expression), "", {}};
      ASSIGN_OR_RETURN(call.arguments, CallArguments());
      ASSIGN_OR_RETURN(expression, Make(line, std::move(call)));
    } else {
      return expression;
    }
  }
}

ExpressionOr Parser::AttributeOf(ExpressionPtr object) {
  const int line = Current().line;
  if (Current().kind == Token::Kind::kNumber) {  // x.0
    ASSIGN_OR_RETURN(ExpressionPtr key, Primary());
    return MakeOperation(line, Op::kSubscript, std::move(object),
                         std::move(key));
  }
  ASSIGN_OR_RETURN(std::string name, TakeName());
  return Make(line, Attribute{std::move(object), std::move(name)});
}

ExpressionOr Parser::SubscriptOf(ExpressionPtr object) {
  const int line = Current().line;
  ExpressionPtr parts[3];
  int num_colons = 0;
  while (!SkipOperator("]")) {
    if (num_colons < 2 && SkipOperator(":")) {
      ++num_colons;
    } else if (parts[num_colons] == nullptr) {
      ASSIGN_OR_RETURN(parts[num_colons], OneExpression());
    } else {
      return Unexpected("']'");
    }
  }
  if (num_colons > 0) {
    return MakeOperation(line, Op::kSlice, std::move(object),
                         std::move(parts[0]), std::move(parts[1]),
                         std::move(parts[2]));
  }
  if (parts[0] == nullptr) return ErrorAtLine(line, "a subscript is empty");
  return MakeOperation(line, Op::kSubscript, std::move(object),
                       std::move(parts[0]));
}

ExpressionOr Parser::FiltersAndTests(ExpressionPtr expression) {
  while (true) {
    if (SkipOperator("|")) {
      ASSIGN_OR_RETURN(expression, OneFilter(std::move(expression)));
    } else if (SkipName("is")) {
      ASSIGN_OR_RETURN(expression, OneTest(std::move(expression)));
    } else {
      return expression;
    }
  }
}

ExpressionOr Parser::OneFilter(ExpressionPtr input) {
  const int line = Current().line;
  Call node{Call::Kind::kFilter, std::move(input), "", {}};
  ASSIGN_OR_RETURN(node.name, TakeName());
  if (IsOperator("(")) {
    ASSIGN_OR_RETURN(node.arguments, CallArguments());
  }
  return Make(line, std::move(node));
}

ExpressionOr Parser::OneTest(ExpressionPtr input) {
  const int line = Current().line;
  const bool negated = SkipName("not");
  Call node{Call::Kind::kTest, std::move(input), "", {}};
  ASSIGN_OR_RETURN(node.name, TakeName());
  const Token::Kind next = Current().kind;
  if (IsName("is")) return Fail("tests cannot be chained with 'is'");
  if (IsOperator("(")) {
    ASSIGN_OR_RETURN(node.arguments, CallArguments());
  } else if ((next == Token::Kind::kName && !IsName("else") && !IsName("or") &&
              !IsName("and")) ||
             next == Token::Kind::kString || next == Token::Kind::kNumber ||
             IsOperator("[") || IsOperator("{")) {
    // One argument may stand without parentheses: x is eq 3.
    Argument& argument = node.arguments.emplace_back();
    ASSIGN_OR_RETURN(argument.value, Primary());
    ASSIGN_OR_RETURN(argument.value, Postfix(std::move(argument.value)));
  }
  ASSIGN_OR_RETURN(ExpressionPtr test, Make(line, std::move(node)));
  if (!negated) return test;
  return MakeOperation(line, Op::kNot, std::move(test));
}

// Positional ones, then *more of them, then keywords.
absl::StatusOr<std::vector<Argument>> Parser::CallArguments() {
  std::vector<Argument> arguments;
  Advance();  // "("
  while (!SkipOperator(")")) {
    if (!arguments.empty()) {
      RETURN_IF_ERROR(ExpectOperator(","));
      if (SkipOperator(")")) break;
    }
    Argument argument;
    argument.is_spread = SkipOperator("*");
    if (!argument.is_spread && Is(Next(), Token::Kind::kOperator, "=")) {
      ASSIGN_OR_RETURN(argument.name, TakeName());
      Advance();
    }
    if (!arguments.empty() && argument.name.empty() &&
        (!arguments.back().name.empty() || arguments.back().is_spread)) {
      return Fail("malformed arguments of a call");
    }
    ASSIGN_OR_RETURN(argument.value, OneExpression());
    arguments.push_back(std::move(argument));
  }
  return arguments;
}

}  // namespace moebius::jinja
