#include <algorithm>
#include <memory>

#include "absl/strings/str_join.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_parser_internal.h"

namespace moebius::jinja {
namespace {

std::string Describe(const Token& token) {
  if (token.kind == Token::Kind::kData) return "text";
  if (token.kind == Token::Kind::kNumber) return "a number";
  if (token.kind == Token::Kind::kEnd) return "the end of the template";
  return Cat("'", token.text, "'");
}

}  // namespace

bool Parser::Skip(Token::Kind kind, std::string_view text) {
  if (!Is(Current(), kind, text)) return false;
  Advance();
  return true;
}

absl::Status Parser::Expect(Token::Kind kind, std::string_view text) {
  if (Skip(kind, text)) return absl::OkStatus();
  return Unexpected(Cat("'", text, "'"));
}

absl::StatusOr<std::string> Parser::TakeName() {
  if (Current().kind != Token::Kind::kName) return Unexpected("a name");
  std::string name = Current().text;
  Advance();
  return name;
}

absl::Status Parser::Unexpected(std::string_view wanted) const {
  return Fail(Cat("expected ", wanted, ", got ", Describe(Current())));
}

absl::Status Parser::CheckNesting() const {
  if (nesting_ <= kMaxNesting) return absl::OkStatus();
  return Fail(Cat("nested deeper than ", kMaxNesting));
}

Symbol Parser::Intern(const std::string& name) {
  const auto [at, is_new] =
      symbols_.emplace(name, static_cast<Symbol>(names_.size()));
  if (is_new) names_.push_back(name);
  return at->second;
}

absl::StatusOr<Template> Parser::Run() {
  ASSIGN_OR_RETURN(Body body, Statements({}));
  return Template{std::move(names_), std::move(body)};
}

// Up to a tag named in `ends`, whose name is the token left; without ends, up
// to the end of the template.
absl::StatusOr<Body> Parser::Statements(
    std::initializer_list<std::string_view> ends) {
  Nested nested(&nesting_);
  RETURN_IF_ERROR(CheckNesting());
  Body body;
  while (Current().kind != Token::Kind::kEnd) {
    const int line = Current().line;
    if (Current().kind == Token::Kind::kData) {
      ASSIGN_OR_RETURN(ExpressionPtr text,
                       Make(line, Literal{Value::String(Current().text)}));
      body.push_back(Statement{line, Print{std::move(text)}});
      Advance();
    } else if (Skip(Token::Kind::kTag, "{{")) {
      ASSIGN_OR_RETURN(ExpressionPtr expression, TupleOrExpression());
      RETURN_IF_ERROR(Expect(Token::Kind::kTag, "}}"));
      body.push_back(Statement{line, Print{std::move(expression)}});
    } else {
      RETURN_IF_ERROR(Expect(Token::Kind::kTag, "{%"));
      if (std::any_of(ends.begin(), ends.end(),
                      [this](std::string_view end) { return IsName(end); })) {
        return body;
      }
      ASSIGN_OR_RETURN(StatementNode node, OneStatement());
      body.push_back(Statement{line, std::move(node)});
      RETURN_IF_ERROR(Expect(Token::Kind::kTag, "%}"));
    }
  }
  if (ends.size() == 0) return body;
  return Fail(Cat("the template ends where '",
                  absl::StrJoin(ends, "' or '",
                                [](std::string* out, std::string_view end) {
                                  out->append(end);
                                }),
                  "' is due"));
}

// The rest of a tag, then its body.
absl::StatusOr<Body> Parser::BlockBody(
    std::initializer_list<std::string_view> ends) {
  SkipOperator(":");
  RETURN_IF_ERROR(Expect(Token::Kind::kTag, "%}"));
  return Statements(ends);
}

NodeOr Parser::OneStatement() {
  using Production = NodeOr (Parser::*)();
  static constexpr std::pair<std::string_view, Production> kTags[] = {
      {"if", &Parser::IfStatement},
      {"for", &Parser::ForStatement},
      {"set", &Parser::SetStatement},
      {"macro", &Parser::MacroStatement},
      {"call", &Parser::CallStatement},
      {"filter", &Parser::FilterStatement},
      {"generation", &Parser::GenerationStatement},
      {"break", &Parser::LoopStatement},
      {"continue", &Parser::LoopStatement},
  };
  if (Current().kind != Token::Kind::kName) return Unexpected("a tag's name");
  for (const auto& [tag, production] : kTags) {
    if (SkipName(tag)) return (this->*production)();
  }
  return Fail(
      Cat("the tag '", Current().text, "' is misplaced or not supported"));
}

NodeOr Parser::IfStatement() {
  If node;
  do {
    If::Branch branch;
    ASSIGN_OR_RETURN(branch.condition,
                     TupleOrExpression(/*with_conditional=*/false));
    ASSIGN_OR_RETURN(branch.body, BlockBody({"elif", "else", "endif"}));
    node.branches.push_back(std::move(branch));
  } while (SkipName("elif"));
  if (SkipName("else")) {
    ASSIGN_OR_RETURN(node.otherwise, BlockBody({"endif"}));
  }
  RETURN_IF_ERROR(Expect(Token::Kind::kName, "endif"));
  return node;
}

NodeOr Parser::ForStatement() {
  For node;
  ASSIGN_OR_RETURN(node.target, AssignTarget());
  RETURN_IF_ERROR(Expect(Token::Kind::kName, "in"));
  ASSIGN_OR_RETURN(node.iterable,
                   TupleOrExpression(/*with_conditional=*/false));
  if (SkipName("if")) {
    ASSIGN_OR_RETURN(node.condition, OneExpression());
  }
  if (IsName("recursive")) return Fail("recursive loops are not supported");
  const int mentions = loop_mentions_;
  ++loops_;
  auto body = BlockBody({"else", "endfor"});
  --loops_;
  node.uses_loop = loop_mentions_ != mentions;
  if (!body.ok()) return std::move(body).status();
  node.body = *std::move(body);
  if (SkipName("else")) {
    ASSIGN_OR_RETURN(node.otherwise, BlockBody({"endfor"}));
  }
  RETURN_IF_ERROR(Expect(Token::Kind::kName, "endfor"));
  return node;
}

NodeOr Parser::SetStatement() {
  Target target;
  if (Is(Next(), Token::Kind::kOperator, ".")) {
    ASSIGN_OR_RETURN(const std::string name, TakeName());
    target.names.push_back(Intern(name));
    Advance();
    ASSIGN_OR_RETURN(target.attribute, TakeName());
  } else {
    ASSIGN_OR_RETURN(target, AssignTarget());
  }
  if (SkipOperator("=")) {
    ASSIGN_OR_RETURN(ExpressionPtr value, TupleOrExpression());
    return Set{std::move(target), std::move(value)};
  }
  Block node{std::move(target), nullptr, {}};
  while (SkipOperator("|")) {
    ASSIGN_OR_RETURN(node.filters, OneFilter(std::move(node.filters)));
  }
  ASSIGN_OR_RETURN(node.body, BlockBody({"endset"}));
  Advance();
  return node;
}

absl::Status Parser::Parameters(MacroDefinition* macro) {
  RETURN_IF_ERROR(ExpectOperator("("));
  while (!IsOperator(")")) {
    if (!macro->parameters.empty()) RETURN_IF_ERROR(ExpectOperator(","));
    Parameter parameter;
    ASSIGN_OR_RETURN(parameter.name, TakeName());
    parameter.symbol = Intern(parameter.name);
    if (SkipOperator("=")) {
      ASSIGN_OR_RETURN(parameter.default_value, OneExpression());
    } else if (!macro->parameters.empty() &&
               macro->parameters.back().default_value) {
      return Fail("a parameter without default follows one with");
    }
    macro->parameters.push_back(std::move(parameter));
  }
  return ExpectOperator(")");
}

absl::StatusOr<Body> Parser::ClosedBody(std::string_view end) {
  const int outer_loops = std::exchange(loops_, 0);
  auto body = BlockBody({end});
  loops_ = outer_loops;
  if (body.ok()) Advance();
  return body;
}

ExpressionOr Parser::MacroBody(std::shared_ptr<MacroDefinition> macro,
                               std::string_view end) {
  const int line = Current().line, mentions = caller_mentions_;
  ++macros_;
  auto body = ClosedBody(end);
  --macros_;
  if (!body.ok()) return std::move(body).status();
  macro->uses_caller = caller_mentions_ != mentions;
  macro->body = *std::move(body);
  return Make(line, MacroLiteral{std::move(macro)});
}

NodeOr Parser::MacroStatement() {
  auto macro = std::make_shared<MacroDefinition>();
  ASSIGN_OR_RETURN(macro->name, TakeName());
  Target target{.names = {Intern(macro->name)}};
  RETURN_IF_ERROR(Parameters(macro.get()));
  ASSIGN_OR_RETURN(ExpressionPtr value,
                   MacroBody(std::move(macro), "endmacro"));
  return Set{std::move(target), std::move(value)};
}

// A call that is given the body as `caller`.
NodeOr Parser::CallStatement() {
  auto macro = std::make_shared<MacroDefinition>();
  macro->name = "caller";
  if (IsOperator("(")) RETURN_IF_ERROR(Parameters(macro.get()));
  ASSIGN_OR_RETURN(ExpressionPtr expression, OneExpression());
  auto* call = std::get_if<Call>(&expression->node);
  if (call == nullptr || call->kind != Call::Kind::kValue) {
    return Fail("a call block must call a macro");
  }
  ASSIGN_OR_RETURN(ExpressionPtr body, MacroBody(std::move(macro), "endcall"));
  call->arguments.push_back(Argument{"caller", std::move(body)});
  return Print{std::move(expression)};
}

NodeOr Parser::FilterStatement() {
  Block node;
  do {
    ASSIGN_OR_RETURN(node.filters, OneFilter(std::move(node.filters)));
  } while (SkipOperator("|"));
  ASSIGN_OR_RETURN(node.body, BlockBody({"endfilter"}));
  Advance();
  return node;
}

NodeOr Parser::GenerationStatement() {
  Block node;
  ASSIGN_OR_RETURN(node.body, ClosedBody("endgeneration"));
  return node;
}

NodeOr Parser::LoopStatement() {
  const std::string& tag = tokens_[at_ - 1].text;
  if (loops_ > 0) return LoopControl{/*is_break=*/tag == "break"};
  return Fail(Cat("'", tag, "' outside of a loop"));
}

// name | name, name ... | (name, name ...)
absl::StatusOr<Target> Parser::AssignTarget() {
  Target target;
  const bool in_parentheses = SkipOperator("(");
  do {
    if (!target.names.empty() &&
        (Current().kind != Token::Kind::kName || IsName("in"))) {
      break;
    }
    ASSIGN_OR_RETURN(const std::string name, TakeName());
    if (ConstantNamed(name)) return Fail(Cat("cannot assign to '", name, "'"));
    target.names.push_back(Intern(name));
    target.unpacks = target.unpacks || IsOperator(",");
  } while (SkipOperator(","));
  if (in_parentheses) RETURN_IF_ERROR(ExpectOperator(")"));
  return target;
}

absl::StatusOr<Template> ParseTemplate(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace moebius::jinja
