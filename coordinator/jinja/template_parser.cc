#include "coordinator/jinja/template_parser.h"

#include <algorithm>
#include <memory>

#include "common/base/status_macros.h"
#include "coordinator/jinja/template_parser_internal.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {
namespace {

std::string Describe(const Token& token) {
  switch (token.kind) {
    case Token::Kind::kData:
      return "text";
    case Token::Kind::kBlockBegin:
      return "'{%'";
    case Token::Kind::kBlockEnd:
      return "'%}'";
    case Token::Kind::kVariableBegin:
      return "'{{'";
    case Token::Kind::kVariableEnd:
      return "'}}'";
    case Token::Kind::kString:
      return "a string";
    case Token::Kind::kNumber:
      return "a number";
    case Token::Kind::kName:
    case Token::Kind::kOperator:
      return StrCat("'", token.text, "'");
    case Token::Kind::kEnd:
      return "the end of the template";
  }
  return "";
}

// a' or 'b
std::string Alternatives(std::initializer_list<std::string_view> names) {
  std::string out;
  for (std::string_view name : names) {
    StrAppend(&out, out.empty() ? "" : "' or '", name);
  }
  return out;
}

bool IsConstantName(std::string_view name) {
  return name == "true" || name == "false" || name == "none" ||
         name == "True" || name == "False" || name == "None";
}

}  // namespace

bool Parser::SkipOperator(std::string_view op) {
  if (!IsOperator(op)) return false;
  Advance();
  return true;
}

bool Parser::SkipName(std::string_view name) {
  if (!IsName(name)) return false;
  Advance();
  return true;
}

absl::Status Parser::ExpectOperator(std::string_view op) {
  if (SkipOperator(op)) return absl::OkStatus();
  return Unexpected(StrCat("'", op, "'"));
}

absl::Status Parser::ExpectName(std::string_view name) {
  if (SkipName(name)) return absl::OkStatus();
  return Unexpected(StrCat("'", name, "'"));
}

absl::Status Parser::ExpectBlockEnd() {
  if (Current().kind != Token::Kind::kBlockEnd) return Unexpected("'%}'");
  Advance();
  return absl::OkStatus();
}

absl::StatusOr<std::string> Parser::TakeName() {
  if (Current().kind != Token::Kind::kName) return Unexpected("a name");
  std::string name = Current().text;
  Advance();
  return name;
}

absl::Status Parser::Unexpected(std::string_view wanted) const {
  return ErrorAtLine(Current().line, StrCat("expected ", wanted, ", got ",
                                            Describe(Current())));
}

absl::Status Parser::CheckNesting() const {
  if (nesting_ <= kMaxNesting) return absl::OkStatus();
  return ErrorAtLine(Current().line,
                     StrCat("nested deeper than ", kMaxNesting));
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
  while (true) {
    const Token& token = Current();
    if (token.kind == Token::Kind::kEnd) {
      if (ends.size() == 0) return body;
      return ErrorAtLine(token.line, StrCat("the template ends where '",
                                            Alternatives(ends), "' is due"));
    } else if (token.kind == Token::Kind::kData) {
      body.push_back(Statement{token.line, Output{token.text}});
      Advance();
    } else if (token.kind == Token::Kind::kVariableBegin) {
      Advance();
      const int line = Current().line;
      ASSIGN_OR_RETURN(ExpressionPtr expression,
                       TupleOrExpression(/*with_conditional=*/true,
                                         /*in_parentheses=*/false));
      if (Current().kind != Token::Kind::kVariableEnd) {
        return Unexpected("'}}'");
      }
      Advance();
      body.push_back(Statement{line, Print{std::move(expression)}});
    } else if (token.kind == Token::Kind::kBlockBegin) {
      Advance();
      if (Current().kind == Token::Kind::kName &&
          std::find(ends.begin(), ends.end(), Current().text) != ends.end()) {
        return body;
      }
      RETURN_IF_ERROR(OneStatement(&body));
      RETURN_IF_ERROR(ExpectBlockEnd());
    } else {
      return Unexpected("text or a tag");
    }
  }
}

// The rest of a tag, then its body.
absl::StatusOr<Body> Parser::BlockBody(
    std::initializer_list<std::string_view> ends) {
  SkipOperator(":");
  RETURN_IF_ERROR(ExpectBlockEnd());
  return Statements(ends);
}

absl::Status Parser::OneStatement(Body* body) {
  if (Current().kind != Token::Kind::kName) return Unexpected("a tag's name");
  const std::string& tag = Current().text;
  if (tag == "print") return PrintStatement(body);
  absl::StatusOr<Statement> statement = absl::UnknownError("");
  if (tag == "if") {
    statement = IfStatement();
  } else if (tag == "for") {
    statement = ForStatement();
  } else if (tag == "set") {
    statement = SetStatement();
  } else if (tag == "with") {
    statement = WithStatement();
  } else if (tag == "macro") {
    statement = MacroStatement();
  } else if (tag == "call") {
    statement = CallStatement();
  } else if (tag == "filter") {
    statement = FilterStatement();
  } else if (tag == "generation") {
    statement = GenerationStatement();
  } else if (tag == "break" || tag == "continue") {
    statement = LoopControl();
  } else {
    return ErrorAtLine(Current().line,
                       StrCat("unknown or misplaced tag '", tag, "'"));
  }
  if (!statement.ok()) return std::move(statement).status();
  body->push_back(*std::move(statement));
  return absl::OkStatus();
}

absl::StatusOr<Statement> Parser::IfStatement() {
  const int line = Current().line;
  If node;
  do {
    Advance();  // "if" or "elif"
    ASSIGN_OR_RETURN(ExpressionPtr condition,
                     TupleOrExpression(/*with_conditional=*/false, false));
    ASSIGN_OR_RETURN(Body body, BlockBody({"elif", "else", "endif"}));
    node.branches.emplace_back(std::move(condition), std::move(body));
  } while (IsName("elif"));
  if (SkipName("else")) {
    ASSIGN_OR_RETURN(node.otherwise, BlockBody({"endif"}));
  }
  RETURN_IF_ERROR(ExpectName("endif"));
  return Statement{line, std::move(node)};
}

absl::StatusOr<Statement> Parser::ForStatement() {
  const int line = Current().line;
  For node;
  Advance();
  ASSIGN_OR_RETURN(node.target, AssignTarget());
  RETURN_IF_ERROR(ExpectName("in"));
  ASSIGN_OR_RETURN(node.iterable,
                   TupleOrExpression(/*with_conditional=*/false, false));
  if (SkipName("if")) {
    ASSIGN_OR_RETURN(node.condition, OneExpression());
  }
  if (IsName("recursive")) {
    return ErrorAtLine(line, "recursive loops are not supported");
  }
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
  RETURN_IF_ERROR(ExpectName("endfor"));
  return Statement{line, std::move(node)};
}

absl::StatusOr<Statement> Parser::SetStatement() {
  const int line = Current().line;
  Advance();
  ASSIGN_OR_RETURN(Target target, SetTarget());
  if (SkipOperator("=")) {
    ASSIGN_OR_RETURN(ExpressionPtr value,
                     TupleOrExpression(/*with_conditional=*/true, false));
    return Statement{line, Set{std::move(target), std::move(value)}};
  }
  ASSIGN_OR_RETURN(ExpressionPtr filter, FilterChain(nullptr));
  ASSIGN_OR_RETURN(Body body, BlockBody({"endset"}));
  Advance();
  return Statement{
      line, SetBlock{std::move(target), std::move(filter), std::move(body)}};
}

absl::StatusOr<Statement> Parser::WithStatement() {
  const int line = Current().line;
  With node;
  Advance();
  while (Current().kind != Token::Kind::kBlockEnd) {
    if (!node.assignments.empty()) RETURN_IF_ERROR(ExpectOperator(","));
    ASSIGN_OR_RETURN(Target target, TargetPart());
    RETURN_IF_ERROR(ExpectOperator("="));
    ASSIGN_OR_RETURN(ExpressionPtr value, OneExpression());
    node.assignments.emplace_back(std::move(target), std::move(value));
  }
  ASSIGN_OR_RETURN(node.body, BlockBody({"endwith"}));
  Advance();
  return Statement{line, std::move(node)};
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
      return ErrorAtLine(Current().line,
                         "a parameter without default follows one with");
    }
    macro->parameters.push_back(std::move(parameter));
  }
  return ExpectOperator(")");
}

absl::Status Parser::MacroBody(std::string_view end, MacroDefinition* macro) {
  // A break in the body cannot mean a loop outside of it.
  const int outer_loops = std::exchange(loops_, 0);
  macros_.emplace_back();
  auto body = BlockBody({end});
  const MacroUses uses = macros_.back();
  macros_.pop_back();
  loops_ = outer_loops;
  if (!body.ok()) return std::move(body).status();
  Advance();
  macro->uses_varargs = uses.varargs;
  macro->uses_kwargs = uses.kwargs;
  macro->uses_caller = uses.caller;
  macro->body = *std::move(body);
  return absl::OkStatus();
}

absl::StatusOr<Statement> Parser::MacroStatement() {
  const int line = Current().line;
  Advance();
  auto macro = std::make_unique<MacroDefinition>();
  ASSIGN_OR_RETURN(macro->name, TakeName());
  RETURN_IF_ERROR(Parameters(macro.get()));
  RETURN_IF_ERROR(MacroBody("endmacro", macro.get()));
  const Symbol symbol = Intern(macro->name);
  return Statement{line, DefineMacro{symbol, std::move(macro)}};
}

absl::StatusOr<Statement> Parser::CallStatement() {
  const int line = Current().line;
  Advance();
  auto caller = std::make_unique<MacroDefinition>();
  caller->name = "caller";
  if (IsOperator("(")) RETURN_IF_ERROR(Parameters(caller.get()));
  ASSIGN_OR_RETURN(ExpressionPtr call, OneExpression());
  if (!std::holds_alternative<Call>(call->node)) {
    return ErrorAtLine(line, "a call block must call a macro");
  }
  RETURN_IF_ERROR(MacroBody("endcall", caller.get()));
  return Statement{line, CallBlock{std::move(call), std::move(caller)}};
}

absl::StatusOr<Statement> Parser::FilterStatement() {
  const int line = Current().line;
  Advance();
  ASSIGN_OR_RETURN(ExpressionPtr filter, OneFilter(nullptr));
  ASSIGN_OR_RETURN(filter, FilterChain(std::move(filter)));
  ASSIGN_OR_RETURN(Body body, BlockBody({"endfilter"}));
  Advance();
  return Statement{line, FilterBlock{std::move(filter), std::move(body)}};
}

absl::StatusOr<Statement> Parser::GenerationStatement() {
  const int line = Current().line;
  Advance();
  const int outer_loops = std::exchange(loops_, 0);
  auto body = BlockBody({"endgeneration"});
  loops_ = outer_loops;
  if (!body.ok()) return std::move(body).status();
  Advance();
  return Statement{line, Scoped{*std::move(body)}};
}

absl::StatusOr<Statement> Parser::LoopControl() {
  const int line = Current().line;
  const bool is_break = IsName("break");
  if (loops_ == 0) {
    return ErrorAtLine(line,
                       StrCat("'", Current().text, "' outside of a loop"));
  }
  Advance();
  if (is_break) return Statement{line, Break{}};
  return Statement{line, Continue{}};
}

absl::Status Parser::PrintStatement(Body* body) {
  const int line = Current().line;
  Advance();
  for (bool first = true; Current().kind != Token::Kind::kBlockEnd;
       first = false) {
    if (!first) RETURN_IF_ERROR(ExpectOperator(","));
    ASSIGN_OR_RETURN(ExpressionPtr expression, OneExpression());
    body->push_back(Statement{line, Print{std::move(expression)}});
  }
  return absl::OkStatus();
}

absl::StatusOr<Target> Parser::SetTarget() {
  if (Current().kind == Token::Kind::kName &&
      Next().kind == Token::Kind::kOperator && Next().text == ".") {
    Target::NamespaceAttribute place;
    place.symbol = Intern(Current().text);
    Advance();
    Advance();
    ASSIGN_OR_RETURN(place.attribute, TakeName());
    return Target{std::move(place)};
  }
  return AssignTarget();
}

// name | name, name ... | (name, name ...), and tuples in tuples.
absl::StatusOr<Target> Parser::AssignTarget() {
  std::vector<Target> parts;
  bool is_tuple = false;
  do {
    if (Current().kind != Token::Kind::kName && !IsOperator("(")) break;
    if (IsName("in")) break;
    ASSIGN_OR_RETURN(Target part, TargetPart());
    parts.push_back(std::move(part));
    is_tuple = is_tuple || IsOperator(",");
  } while (SkipOperator(","));
  if (parts.empty()) return Unexpected("a name to assign to");
  if (!is_tuple) return std::move(parts[0]);
  return Target{std::move(parts)};
}

absl::StatusOr<Target> Parser::TargetPart() {
  Nested nested(&nesting_);
  RETURN_IF_ERROR(CheckNesting());
  if (SkipOperator("(")) {
    ASSIGN_OR_RETURN(Target target, AssignTarget());
    RETURN_IF_ERROR(ExpectOperator(")"));
    return target;
  }
  if (Current().kind == Token::Kind::kName && IsConstantName(Current().text)) {
    return ErrorAtLine(Current().line,
                       StrCat("cannot assign to '", Current().text, "'"));
  }
  ASSIGN_OR_RETURN(std::string name, TakeName());
  return Target{Intern(name)};
}

absl::StatusOr<Template> ParseTemplate(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace moebius::jinja
