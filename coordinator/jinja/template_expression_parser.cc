// Expressions, from the loosest binding to the tightest.
#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "common/base/status_macros.h"
#include "coordinator/jinja/template_parser_internal.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {
namespace {

int Height(const ExpressionPtr& expression) {
  return expression ? expression->height : 0;
}

int Height(const std::vector<ExpressionPtr>& expressions) {
  int height = 0;
  for (const auto& e : expressions) height = std::max(height, Height(e));
  return height;
}

int Height(const Arguments& arguments) {
  int height =
      std::max({Height(arguments.positional), Height(arguments.more_positional),
                Height(arguments.more_keyword)});
  for (const auto& [name, value] : arguments.keyword) {
    height = std::max(height, Height(value));
  }
  return height;
}

}  // namespace

template <typename Node>
absl::StatusOr<ExpressionPtr> Parser::Make(int line, Node node, int height) {
  if (height >= kMaxExpressionHeight) {
    return ErrorAtLine(line, StrCat("the expression's tree is higher "
                                    "than ",
                                    kMaxExpressionHeight));
  }
  return std::make_unique<Expression>(
      Expression{line, height + 1, std::move(node)});
}

absl::StatusOr<ExpressionPtr> Parser::OneExpression(bool with_conditional) {
  Nested nested(&nesting_);
  RETURN_IF_ERROR(CheckNesting());
  if (!with_conditional) return Or();
  const int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr expression, Or());
  while (SkipName("if")) {
    ASSIGN_OR_RETURN(ExpressionPtr condition, Or());
    ExpressionPtr otherwise;
    if (SkipName("else")) {
      ASSIGN_OR_RETURN(otherwise, OneExpression());
    }
    const int height =
        std::max({Height(condition), Height(expression), Height(otherwise)});
    ASSIGN_OR_RETURN(expression, Make(line,
                                      Conditional{std::move(condition),
                                                  std::move(expression),
                                                  std::move(otherwise)},
                                      height));
  }
  return expression;
}

// Expressions with commas between them are a tuple, also without parentheses.
absl::StatusOr<ExpressionPtr> Parser::TupleOrExpression(bool with_conditional,
                                                        bool in_parentheses) {
  const int line = Current().line;
  const auto at_end = [&] {
    const auto kind = Current().kind;
    return kind == Token::Kind::kVariableEnd ||
           kind == Token::Kind::kBlockEnd || IsOperator(")");
  };
  std::vector<ExpressionPtr> items;
  bool is_tuple = false;
  while (!at_end()) {
    ASSIGN_OR_RETURN(ExpressionPtr item, OneExpression(with_conditional));
    items.push_back(std::move(item));
    if (!SkipOperator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && items.size() == 1) return std::move(items[0]);
  if (!is_tuple && !in_parentheses) return Unexpected("an expression");
  const int height = Height(items);
  return Make(line, ListLiteral{std::move(items), /*is_tuple=*/true}, height);
}

absl::StatusOr<ExpressionPtr> Parser::Or() {
  const int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr first, And());
  if (!IsName("or")) return first;
  std::vector<ExpressionPtr> operands;
  operands.push_back(std::move(first));
  while (SkipName("or")) {
    ASSIGN_OR_RETURN(ExpressionPtr next, And());
    operands.push_back(std::move(next));
  }
  const int height = Height(operands);
  return Make(line, Logical{/*is_and=*/false, std::move(operands)}, height);
}

absl::StatusOr<ExpressionPtr> Parser::And() {
  const int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr first, Not());
  if (!IsName("and")) return first;
  std::vector<ExpressionPtr> operands;
  operands.push_back(std::move(first));
  while (SkipName("and")) {
    ASSIGN_OR_RETURN(ExpressionPtr next, Not());
    operands.push_back(std::move(next));
  }
  const int height = Height(operands);
  return Make(line, Logical{/*is_and=*/true, std::move(operands)}, height);
}

absl::StatusOr<ExpressionPtr> Parser::Not() {
  const int line = Current().line;
  if (!SkipName("not")) return Compare();
  Nested nested(&nesting_);
  RETURN_IF_ERROR(CheckNesting());
  ASSIGN_OR_RETURN(ExpressionPtr operand, Not());
  const int height = Height(operand);
  return Make(line, Unary{Unary::Op::kNot, std::move(operand)}, height);
}

std::optional<Comparison::Op> Parser::TakeComparison() {
  using Op = Comparison::Op;
  static constexpr std::array<std::pair<std::string_view, Op>, 6> kOps = {{
      {"==", Op::kEqual},
      {"!=", Op::kNotEqual},
      {"<", Op::kLess},
      {"<=", Op::kLessEqual},
      {">", Op::kGreater},
      {">=", Op::kGreaterEqual},
  }};
  for (const auto& [text, op] : kOps) {
    if (SkipOperator(text)) return op;
  }
  if (SkipName("in")) return Op::kIn;
  if (IsName("not") && Next().kind == Token::Kind::kName &&
      Next().text == "in") {
    Advance();
    Advance();
    return Op::kNotIn;
  }
  return std::nullopt;
}

absl::StatusOr<ExpressionPtr> Parser::Compare() {
  const int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr first, Sum());
  std::vector<std::pair<Comparison::Op, ExpressionPtr>> rest;
  int height = Height(first);
  while (auto op = TakeComparison()) {
    ASSIGN_OR_RETURN(ExpressionPtr next, Sum());
    height = std::max(height, Height(next));
    rest.emplace_back(*op, std::move(next));
  }
  if (rest.empty()) return first;
  return Make(line, Comparison{std::move(first), std::move(rest)}, height);
}

absl::StatusOr<ExpressionPtr> Parser::Sum() {
  const int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr left, Concat());
  while (IsOperator("+") || IsOperator("-")) {
    const auto op = IsOperator("+") ? Binary::Op::kAdd : Binary::Op::kSubtract;
    Advance();
    ASSIGN_OR_RETURN(ExpressionPtr right, Concat());
    const int height = std::max(Height(left), Height(right));
    ASSIGN_OR_RETURN(
        left,
        Make(line, Binary{op, std::move(left), std::move(right)}, height));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> Parser::Concat() {
  const int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr first, Product());
  if (!IsOperator("~")) return first;
  std::vector<ExpressionPtr> operands;
  operands.push_back(std::move(first));
  while (SkipOperator("~")) {
    ASSIGN_OR_RETURN(ExpressionPtr next, Product());
    operands.push_back(std::move(next));
  }
  const int height = Height(operands);
  return Make(line, Concatenation{std::move(operands)}, height);
}

absl::StatusOr<ExpressionPtr> Parser::Product() {
  using Op = Binary::Op;
  static constexpr std::array<std::pair<std::string_view, Op>, 4> kOps = {{
      {"*", Op::kMultiply},
      {"/", Op::kDivide},
      {"//", Op::kFloorDivide},
      {"%", Op::kModulo},
  }};
  const int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr left, Power());
  while (true) {
    const auto op = std::find_if(kOps.begin(), kOps.end(), [&](const auto& o) {
      return IsOperator(o.first);
    });
    if (op == kOps.end()) return left;
    Advance();
    ASSIGN_OR_RETURN(ExpressionPtr right, Power());
    const int height = std::max(Height(left), Height(right));
    ASSIGN_OR_RETURN(
        left, Make(line, Binary{op->second, std::move(left), std::move(right)},
                   height));
  }
}

// Jinja's power binds to the left, unlike Python's.
absl::StatusOr<ExpressionPtr> Parser::Power() {
  const int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr left, Prefix(/*with_filter=*/true));
  while (SkipOperator("**")) {
    ASSIGN_OR_RETURN(ExpressionPtr right, Prefix(/*with_filter=*/true));
    const int height = std::max(Height(left), Height(right));
    ASSIGN_OR_RETURN(left, Make(line,
                                Binary{Binary::Op::kPower, std::move(left),
                                       std::move(right)},
                                height));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> Parser::Prefix(bool with_filter) {
  Nested nested(&nesting_);
  RETURN_IF_ERROR(CheckNesting());
  const int line = Current().line;
  ExpressionPtr expression;
  if (IsOperator("-") || IsOperator("+")) {
    const auto op = IsOperator("-") ? Unary::Op::kMinus : Unary::Op::kPlus;
    Advance();
    ASSIGN_OR_RETURN(ExpressionPtr operand, Prefix(/*with_filter=*/false));
    const int height = Height(operand);
    ASSIGN_OR_RETURN(expression,
                     Make(line, Unary{op, std::move(operand)}, height));
  } else {
    ASSIGN_OR_RETURN(expression, Primary());
  }
  ASSIGN_OR_RETURN(expression, Postfix(std::move(expression)));
  if (!with_filter) return expression;
  return FiltersAndTests(std::move(expression));
}

absl::StatusOr<ExpressionPtr> Parser::Primary() {
  const Token& token = Current();
  const int line = token.line;
  if (token.kind == Token::Kind::kName) {
    const std::string& name = token.text;
    Advance();
    if (name == "true" || name == "True") {
      return Make(line, Literal{Value::Bool(true)}, 0);
    }
    if (name == "false" || name == "False") {
      return Make(line, Literal{Value::Bool(false)}, 0);
    }
    if (name == "none" || name == "None") {
      return Make(line, Literal{Value()}, 0);
    }
    // A macro inside a macro may use the outer one's; Jinja counts that too.
    for (MacroUses& uses : macros_) {
      uses.varargs = uses.varargs || name == "varargs";
      uses.kwargs = uses.kwargs || name == "kwargs";
      uses.caller = uses.caller || name == "caller";
    }
    if (name == "loop") ++loop_mentions_;
    return Make(line, Name{Intern(name)}, 0);
  }
  if (token.kind == Token::Kind::kString) {
    std::string text;
    while (Current().kind == Token::Kind::kString) {
      text += Current().text;
      Advance();
    }
    return Make(line, Literal{Value::String(std::move(text))}, 0);
  }
  if (token.kind == Token::Kind::kNumber) {
    Value number = token.number;
    Advance();
    return Make(line, Literal{std::move(number)}, 0);
  }
  if (SkipOperator("(")) {
    ASSIGN_OR_RETURN(ExpressionPtr inner, TupleOrExpression(true, true));
    RETURN_IF_ERROR(ExpectOperator(")"));
    return inner;
  }
  if (IsOperator("[")) return ListOf();
  if (IsOperator("{")) return DictOf();
  return Unexpected("an expression");
}

absl::StatusOr<ExpressionPtr> Parser::ListOf() {
  const int line = Current().line;
  Advance();
  std::vector<ExpressionPtr> items;
  while (!IsOperator("]")) {
    ASSIGN_OR_RETURN(ExpressionPtr item, OneExpression());
    items.push_back(std::move(item));
    if (!IsOperator("]")) RETURN_IF_ERROR(ExpectOperator(","));
  }
  Advance();
  const int height = Height(items);
  return Make(line, ListLiteral{std::move(items), /*is_tuple=*/false}, height);
}

absl::StatusOr<ExpressionPtr> Parser::DictOf() {
  const int line = Current().line;
  Advance();
  DictLiteral node;
  int height = 0;
  while (!IsOperator("}")) {
    ASSIGN_OR_RETURN(ExpressionPtr key, OneExpression());
    RETURN_IF_ERROR(ExpectOperator(":"));
    ASSIGN_OR_RETURN(ExpressionPtr value, OneExpression());
    height = std::max({height, Height(key), Height(value)});
    node.entries.emplace_back(std::move(key), std::move(value));
    if (!IsOperator("}")) RETURN_IF_ERROR(ExpectOperator(","));
  }
  Advance();
  return Make(line, std::move(node), height);
}

absl::StatusOr<ExpressionPtr> Parser::Postfix(ExpressionPtr expression) {
  while (true) {
    const int line = Current().line;
    if (IsOperator(".") || IsOperator("[")) {
      ASSIGN_OR_RETURN(expression, SubscriptOf(std::move(expression)));
    } else if (IsOperator("(")) {
      ASSIGN_OR_RETURN(Arguments arguments, CallArguments());
      const int height = std::max(Height(expression), Height(arguments));
      ASSIGN_OR_RETURN(
          expression,
          Make(line, Call{std::move(expression), std::move(arguments)},
               height));
    } else {
      return expression;
    }
  }
}

absl::StatusOr<ExpressionPtr> Parser::FiltersAndTests(
    ExpressionPtr expression) {
  while (true) {
    if (IsOperator("|")) {
      ASSIGN_OR_RETURN(expression, FilterChain(std::move(expression)));
    } else if (IsName("is")) {
      ASSIGN_OR_RETURN(expression, OneTest(std::move(expression)));
    } else if (IsOperator("(")) {
      const int line = Current().line;
      ASSIGN_OR_RETURN(Arguments arguments, CallArguments());
      const int height = std::max(Height(expression), Height(arguments));
      ASSIGN_OR_RETURN(
          expression,
          Make(line, Call{std::move(expression), std::move(arguments)},
               height));
    } else {
      return expression;
    }
  }
}

absl::StatusOr<ExpressionPtr> Parser::SubscriptOf(ExpressionPtr object) {
  const int line = Current().line;
  int height = Height(object);
  if (SkipOperator(".")) {
    if (Current().kind == Token::Kind::kNumber) {
      Value index = Current().number;
      if (index.If<double>()) return Unexpected("a name or an index");
      Advance();
      ASSIGN_OR_RETURN(ExpressionPtr key, Make(line, Literal{index}, 0));
      return Make(line, Subscript{std::move(object), std::move(key)}, height);
    }
    ASSIGN_OR_RETURN(std::string name, TakeName());
    return Make(line, Attribute{std::move(object), std::move(name)}, height);
  }
  Advance();  // "["
  ExpressionPtr parts[3];
  int num_colons = 0;
  while (!IsOperator("]")) {
    if (SkipOperator(":")) {
      if (++num_colons > 2) return Unexpected("']'");
      continue;
    }
    if (parts[num_colons]) return Unexpected("']'");
    ASSIGN_OR_RETURN(parts[num_colons], OneExpression());
    height = std::max(height, Height(parts[num_colons]));
  }
  if (num_colons == 0 && !parts[0]) return Unexpected("an expression");
  Advance();
  if (num_colons == 0) {
    return Make(line, Subscript{std::move(object), std::move(parts[0])},
                height);
  }
  return Make(line,
              Slice{std::move(object), std::move(parts[0]), std::move(parts[1]),
                    std::move(parts[2])},
              height);
}

absl::StatusOr<std::string> Parser::DottedName() {
  ASSIGN_OR_RETURN(std::string name, TakeName());
  while (SkipOperator(".")) {
    ASSIGN_OR_RETURN(std::string part, TakeName());
    StrAppend(&name, ".", part);
  }
  return name;
}

// The filters that follow, on `input`; `input` itself if there are none.
absl::StatusOr<ExpressionPtr> Parser::FilterChain(ExpressionPtr input) {
  while (SkipOperator("|")) {
    ASSIGN_OR_RETURN(input, OneFilter(std::move(input)));
  }
  return input;
}

absl::StatusOr<ExpressionPtr> Parser::OneFilter(ExpressionPtr input) {
  const int line = Current().line;
  Filter node;
  ASSIGN_OR_RETURN(node.name, DottedName());
  if (IsOperator("(")) {
    ASSIGN_OR_RETURN(node.arguments, CallArguments());
  }
  const int height = std::max(Height(input), Height(node.arguments));
  node.input = std::move(input);
  return Make(line, std::move(node), height);
}

absl::StatusOr<ExpressionPtr> Parser::OneTest(ExpressionPtr input) {
  const int line = Current().line;
  Advance();  // "is"
  const bool negated = SkipName("not");
  Test node;
  ASSIGN_OR_RETURN(node.name, DottedName());
  const Token& next = Current();
  if (IsOperator("(")) {
    ASSIGN_OR_RETURN(node.arguments, CallArguments());
  } else if ((next.kind == Token::Kind::kName && !IsName("else") &&
              !IsName("or") && !IsName("and")) ||
             next.kind == Token::Kind::kString ||
             next.kind == Token::Kind::kNumber || IsOperator("[") ||
             IsOperator("{")) {
    // One argument may stand without parentheses: x is divisibleby 3.
    if (IsName("is")) {
      return ErrorAtLine(next.line, "tests cannot be chained with 'is'");
    }
    ASSIGN_OR_RETURN(ExpressionPtr argument, Primary());
    ASSIGN_OR_RETURN(argument, Postfix(std::move(argument)));
    node.arguments.positional.push_back(std::move(argument));
  }
  int height = std::max(Height(input), Height(node.arguments));
  node.input = std::move(input);
  ASSIGN_OR_RETURN(ExpressionPtr test, Make(line, std::move(node), height));
  if (!negated) return test;
  height = Height(test);
  return Make(line, Unary{Unary::Op::kNot, std::move(test)}, height);
}

absl::StatusOr<Arguments> Parser::CallArguments() {
  const int line = Current().line;
  const auto malformed = [line] {
    return ErrorAtLine(line, "malformed arguments of a call");
  };
  Arguments arguments;
  Advance();  // "("
  while (!IsOperator(")")) {
    if (SkipOperator("*")) {
      if (arguments.more_positional || arguments.more_keyword) {
        return malformed();
      }
      ASSIGN_OR_RETURN(arguments.more_positional, OneExpression());
    } else if (SkipOperator("**")) {
      if (arguments.more_keyword) return malformed();
      ASSIGN_OR_RETURN(arguments.more_keyword, OneExpression());
    } else if (Current().kind == Token::Kind::kName &&
               Next().kind == Token::Kind::kOperator && Next().text == "=") {
      if (arguments.more_keyword) return malformed();
      std::string name = Current().text;
      Advance();
      Advance();
      ASSIGN_OR_RETURN(ExpressionPtr value, OneExpression());
      arguments.keyword.emplace_back(std::move(name), std::move(value));
    } else {
      if (arguments.more_positional || arguments.more_keyword ||
          !arguments.keyword.empty()) {
        return malformed();
      }
      ASSIGN_OR_RETURN(ExpressionPtr value, OneExpression());
      arguments.positional.push_back(std::move(value));
    }
    if (!IsOperator(")")) RETURN_IF_ERROR(ExpectOperator(","));
  }
  Advance();
  return arguments;
}

}  // namespace moebius::jinja
