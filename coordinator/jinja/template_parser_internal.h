// The parser's state and productions; only its own two sources include this.
#pragma once

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/jinja/template_ast.h"
#include "coordinator/jinja/template_lexer.h"

namespace moebius::jinja {

using ExpressionOr = absl::StatusOr<ExpressionPtr>;
using NodeOr = absl::StatusOr<StatementNode>;

// Recursive descent over the tokens; the grammar is that of Jinja 3.1
// (jinja.palletsprojects.com, Template Designer Documentation), checked
// against it by tests. Each production leaves the first token that it does
// not take.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<Template> Run();

 private:
  const Token& Current() const { return tokens_[at_]; }
  const Token& Next() const {
    return tokens_[std::min(at_ + 1, tokens_.size() - 1)];
  }
  void Advance() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  static bool Is(const Token& token, Token::Kind kind, std::string_view text) {
    return token.kind == kind && token.text == text;
  }
  bool IsOperator(std::string_view op) const {
    return Is(Current(), Token::Kind::kOperator, op);
  }
  bool IsName(std::string_view name) const {
    return Is(Current(), Token::Kind::kName, name);
  }
  bool Skip(Token::Kind kind, std::string_view text);
  bool SkipOperator(std::string_view op) {
    return Skip(Token::Kind::kOperator, op);
  }
  bool SkipName(std::string_view name) {
    return Skip(Token::Kind::kName, name);
  }
  absl::Status Expect(Token::Kind kind, std::string_view text);
  absl::Status ExpectOperator(std::string_view op) {
    return Expect(Token::Kind::kOperator, op);
  }
  absl::StatusOr<std::string> TakeName();
  absl::Status Fail(std::string_view reason) const {
    return ErrorAtLine(Current().line, reason);
  }
  absl::Status Unexpected(std::string_view wanted) const;
  absl::Status CheckNesting() const;
  Symbol Intern(const std::string& name);

  // Statements (template_parser.cc). Each production begins behind its tag's
  // name.
  absl::StatusOr<Body> Statements(std::initializer_list<std::string_view> ends);
  absl::StatusOr<Body> BlockBody(std::initializer_list<std::string_view> ends);
  NodeOr OneStatement();
  NodeOr IfStatement();
  NodeOr ForStatement();
  NodeOr SetStatement();
  NodeOr MacroStatement();
  NodeOr CallStatement();
  NodeOr FilterStatement();
  NodeOr GenerationStatement();
  NodeOr LoopStatement();
  absl::Status Parameters(MacroDefinition* macro);
  // A body that a break or continue cannot leave.
  absl::StatusOr<Body> ClosedBody(std::string_view end);
  ExpressionOr MacroBody(std::shared_ptr<MacroDefinition> macro,
                         std::string_view end);
  absl::StatusOr<Target> AssignTarget();

  // Expressions (template_expression_parser.cc).
  ExpressionOr OneExpression(bool with_conditional = true);
  // Expressions with commas between them are a tuple, also without
  // parentheses.
  ExpressionOr TupleOrExpression(bool with_conditional = true,
                                 bool in_parentheses = false);
  // Operators that bind with strength `level` or tighter, 0 the loosest.
  ExpressionOr Operators(int level);
  std::optional<Op> TakeOperator(int level);
  ExpressionOr Prefix(bool with_filter);
  ExpressionOr Primary();
  static std::optional<Value> ConstantNamed(std::string_view name);
  ExpressionOr NameOrConstant();
  // Of a list or a dict, up to `close`.
  ExpressionOr Items(int line, Op op, std::string_view close);
  ExpressionOr Postfix(ExpressionPtr expression);
  ExpressionOr FiltersAndTests(ExpressionPtr expression);
  ExpressionOr AttributeOf(ExpressionPtr object);
  ExpressionOr SubscriptOf(ExpressionPtr object);
  ExpressionOr OneFilter(ExpressionPtr input);
  ExpressionOr OneTest(ExpressionPtr input);
  absl::StatusOr<std::vector<Argument>> CallArguments();

  // Makes a node; errors if the tree gets too high.
  ExpressionOr Make(int line, ExpressionNode node) const;
  template <typename... Operands>
  ExpressionOr MakeOperation(int line, Op op, Operands... operands) const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;            // loops that a break here may mean
  int loop_mentions_ = 0;    // uses of the name `loop` so far
  int caller_mentions_ = 0;  // of the name `caller`
  int macros_ = 0;           // macros that we are inside of
  std::vector<std::string> names_;
  absl::flat_hash_map<std::string, Symbol> symbols_;
};

}  // namespace moebius::jinja
