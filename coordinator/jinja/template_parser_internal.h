// The parser's state and productions; only its own two sources include this.
#pragma once

#include <initializer_list>
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

// Recursive descent over the tokens; the grammar is that of Jinja 3.1
// (jinja.palletsprojects.com, Template Designer Documentation), checked
// against it by tests. Each production leaves the first token that it does
// not take.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<Template> Run();

 private:
  // Names in a macro's body that decide what arguments it takes.
  struct MacroUses {
    bool varargs = false, kwargs = false, caller = false;
  };

  // Counts one level of nesting for as long as it lives.
  class Nested {
   public:
    explicit Nested(int* depth) : depth_(depth) { ++*depth_; }
    ~Nested() { --*depth_; }
    Nested(const Nested&) = delete;

   private:
    int* depth_;
  };

  const Token& Current() const { return tokens_[at_]; }
  const Token& Next() const {
    return tokens_[std::min(at_ + 1, tokens_.size() - 1)];
  }
  void Advance() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  bool IsOperator(std::string_view op) const {
    return Current().kind == Token::Kind::kOperator && Current().text == op;
  }
  bool IsName(std::string_view name) const {
    return Current().kind == Token::Kind::kName && Current().text == name;
  }
  bool SkipOperator(std::string_view op);
  bool SkipName(std::string_view name);
  absl::Status ExpectOperator(std::string_view op);
  absl::Status ExpectName(std::string_view name);
  absl::Status ExpectBlockEnd();
  absl::StatusOr<std::string> TakeName();
  absl::Status Unexpected(std::string_view wanted) const;
  absl::Status CheckNesting() const;
  Symbol Intern(const std::string& name);

  // Statements (template_parser.cc).
  absl::StatusOr<Body> Statements(std::initializer_list<std::string_view> ends);
  absl::StatusOr<Body> BlockBody(std::initializer_list<std::string_view> ends);
  absl::Status OneStatement(Body* body);
  absl::StatusOr<Statement> IfStatement();
  absl::StatusOr<Statement> ForStatement();
  absl::StatusOr<Statement> SetStatement();
  absl::StatusOr<Statement> WithStatement();
  absl::StatusOr<Statement> MacroStatement();
  absl::StatusOr<Statement> CallStatement();
  absl::StatusOr<Statement> FilterStatement();
  absl::StatusOr<Statement> GenerationStatement();
  absl::StatusOr<Statement> LoopControl();
  absl::Status PrintStatement(Body* body);
  absl::Status Parameters(MacroDefinition* macro);
  absl::Status MacroBody(std::string_view end, MacroDefinition* macro);
  absl::StatusOr<Target> AssignTarget();
  absl::StatusOr<Target> SetTarget();
  absl::StatusOr<Target> TargetPart();

  // Expressions (template_expression_parser.cc).
  absl::StatusOr<ExpressionPtr> OneExpression(bool with_conditional = true);
  absl::StatusOr<ExpressionPtr> TupleOrExpression(bool with_conditional,
                                                  bool in_parentheses);
  absl::StatusOr<ExpressionPtr> Or();
  absl::StatusOr<ExpressionPtr> And();
  absl::StatusOr<ExpressionPtr> Not();
  absl::StatusOr<ExpressionPtr> Compare();
  std::optional<Comparison::Op> TakeComparison();
  absl::StatusOr<ExpressionPtr> Sum();
  absl::StatusOr<ExpressionPtr> Concat();
  absl::StatusOr<ExpressionPtr> Product();
  absl::StatusOr<ExpressionPtr> Power();
  absl::StatusOr<ExpressionPtr> Prefix(bool with_filter);
  absl::StatusOr<ExpressionPtr> Primary();
  absl::StatusOr<ExpressionPtr> ListOf();
  absl::StatusOr<ExpressionPtr> DictOf();
  absl::StatusOr<ExpressionPtr> Postfix(ExpressionPtr expression);
  absl::StatusOr<ExpressionPtr> FiltersAndTests(ExpressionPtr expression);
  absl::StatusOr<ExpressionPtr> SubscriptOf(ExpressionPtr object);
  absl::StatusOr<ExpressionPtr> FilterChain(ExpressionPtr input);
  absl::StatusOr<ExpressionPtr> OneFilter(ExpressionPtr input);
  absl::StatusOr<ExpressionPtr> OneTest(ExpressionPtr input);
  absl::StatusOr<Arguments> CallArguments();
  absl::StatusOr<std::string> DottedName();

  // Makes a node; errors if the tree gets too high.
  template <typename Node>
  absl::StatusOr<ExpressionPtr> Make(int line, Node node, int height);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;          // loops that a break here may mean
  int loop_mentions_ = 0;  // uses of the name `loop` so far
  std::vector<MacroUses> macros_;
  std::vector<std::string> names_;
  absl::flat_hash_map<std::string, Symbol> symbols_;
};

}  // namespace moebius::jinja
