#include "coordinator/jinja/content_form.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moebius {
namespace {

using jinja::Expression;
using jinja::Statement;
using Json = nlohmann::ordered_json;

// What a value may be, as bits.
using Kinds = unsigned;
constexpr Kinds kMessages = 1, kMessage = 2, kContent = 4, kPart = 8;

// Names are followed through assignments that stand in any order; a template
// needs as many passes as it hands a value on against that order.
constexpr int kMaxPasses = 16;

// Filters that give some of the items of a list, or all.
constexpr std::string_view kListFilters[] = {
    "list", "reverse", "select",  "selectattr", "reject", "rejectattr",
    "sort", "unique",  "default", "d",          "safe"};
// Filters that look into the items.
constexpr std::string_view kItemFilters[] = {"map", "selectattr", "rejectattr"};

template <size_t n>
bool Contains(const std::string_view (&names)[n], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

// The string that an expression spells out, or null.
const std::string* Spelled(const jinja::ExpressionPtr& expression) {
  if (expression == nullptr) return nullptr;
  const auto* literal = std::get_if<jinja::Literal>(&expression->node);
  if (literal == nullptr || literal->value.text() == nullptr) return nullptr;
  return &literal->value.text()->bytes;
}

class Detector {
 public:
  explicit Detector(const jinja::Template& parsed)
      : parsed_(parsed),
        kinds_(parsed.names.size()),
        macros_(parsed.names.size()) {}

  ContentForm Run() {
    const auto messages = parsed_.Find("messages");
    if (!messages.has_value()) return ContentForm::kText;
    kinds_[*messages] = kMessages;
    for (int i = 0; i < kMaxPasses && changed_; ++i) {
      changed_ = false;
      Visit(parsed_.body);
    }
    if (!looks_at_parts_) return ContentForm::kText;
    return knows_strings_ ? ContentForm::kParts : ContentForm::kPartsForAll;
  }

 private:
  void Learn(jinja::Symbol symbol, Kinds kinds) {
    if ((kinds_[symbol] | kinds) == kinds_[symbol]) return;
    kinds_[symbol] |= kinds;
    changed_ = true;
  }

  void Learn(const jinja::Target& target, Kinds kinds) {
    const auto* symbol = std::get_if<jinja::Symbol>(&target.node);
    if (symbol != nullptr) Learn(*symbol, kinds);
  }

  // ---- expressions: what they may give ----

  Kinds KindsOf(const jinja::ExpressionPtr& expression) const {
    if (expression == nullptr) return 0;
    return std::visit([this](const auto& node) { return Of(node); },
                      expression->node);
  }

  Kinds Of(const jinja::Name& name) const { return kinds_[name.symbol]; }
  Kinds Of(const jinja::Slice& slice) const { return KindsOf(slice.object); }
  Kinds Of(const jinja::Conditional& choice) const {
    return KindsOf(choice.then) | KindsOf(choice.otherwise);
  }
  Kinds Of(const jinja::Logical& logical) const {
    Kinds kinds = 0;
    for (const auto& operand : logical.operands) kinds |= KindsOf(operand);
    return kinds;
  }
  Kinds Of(const jinja::Filter& filter) const {
    const Kinds kinds = KindsOf(filter.input);
    if (filter.name == "first" || filter.name == "last") return ItemOf(kinds);
    return Contains(kListFilters, filter.name) ? kinds : 0;
  }
  Kinds Of(const jinja::Attribute& attribute) const {
    return Member(KindsOf(attribute.object), attribute.name);
  }
  Kinds Of(const jinja::Subscript& subscript) const {
    const Kinds kinds = KindsOf(subscript.object);
    const std::string* key = Spelled(subscript.key);
    return key != nullptr ? Member(kinds, *key) : ItemOf(kinds);
  }
  // message.get('content')
  Kinds Of(const jinja::Call& call) const {
    const auto* method = std::get_if<jinja::Attribute>(&call.callee->node);
    if (method == nullptr || method->name != "get") return 0;
    if (call.arguments.positional.empty()) return 0;
    const std::string* key = Spelled(call.arguments.positional[0]);
    return key == nullptr ? 0 : Member(KindsOf(method->object), *key);
  }
  template <typename Other>
  Kinds Of(const Other&) const {
    return 0;
  }

  static Kinds Member(Kinds kinds, std::string_view name) {
    return (kinds & kMessage) != 0 && name == "content" ? kContent : 0;
  }
  static Kinds ItemOf(Kinds kinds) {
    return ((kinds & kMessages) != 0 ? kMessage : 0) |
           ((kinds & kContent) != 0 ? kPart : 0);
  }

  // ---- expressions: what they do ----

  void Visit(const jinja::ExpressionPtr& expression) {
    if (expression == nullptr) return;
    std::visit([this](const auto& node) { Look(node); }, expression->node);
  }
  void Visit(const std::vector<jinja::ExpressionPtr>& expressions) {
    for (const auto& expression : expressions) Visit(expression);
  }
  void Visit(const jinja::Arguments& arguments) {
    Visit(arguments.positional);
    for (const auto& [name, value] : arguments.keyword) Visit(value);
    Visit(arguments.more_positional);
    Visit(arguments.more_keyword);
  }

  void Look(const jinja::Literal&) {}
  void Look(const jinja::Name&) {}
  void Look(const jinja::ListLiteral& list) { Visit(list.items); }
  void Look(const jinja::DictLiteral& dict) {
    for (const auto& [key, value] : dict.entries) {
      Visit(key);
      Visit(value);
    }
  }
  void Look(const jinja::Unary& unary) { Visit(unary.operand); }
  void Look(const jinja::Binary& binary) {
    Visit(binary.left);
    Visit(binary.right);
  }
  void Look(const jinja::Logical& logical) { Visit(logical.operands); }
  void Look(const jinja::Comparison& comparison) {
    Visit(comparison.first);
    for (const auto& [op, operand] : comparison.rest) Visit(operand);
  }
  void Look(const jinja::Concatenation& joined) { Visit(joined.operands); }
  void Look(const jinja::Conditional& choice) {
    Visit(choice.condition);
    Visit(choice.then);
    Visit(choice.otherwise);
  }
  void Look(const jinja::Attribute& attribute) {
    looks_at_parts_ |= (KindsOf(attribute.object) & kPart) != 0;
    Visit(attribute.object);
  }
  void Look(const jinja::Subscript& subscript) {
    if (Spelled(subscript.key) != nullptr) {
      looks_at_parts_ |= (KindsOf(subscript.object) & kPart) != 0;
    }
    Visit(subscript.object);
    Visit(subscript.key);
  }
  void Look(const jinja::Slice& slice) {
    Visit(slice.object);
    Visit(slice.start);
    Visit(slice.stop);
    Visit(slice.step);
  }
  void Look(const jinja::Call& call) {
    Visit(call.callee);
    Visit(call.arguments);
    const auto* name = std::get_if<jinja::Name>(&call.callee->node);
    if (name == nullptr || macros_[name->symbol] == nullptr) return;
    const auto& parameters = macros_[name->symbol]->parameters;
    const auto& given = call.arguments.positional;
    for (size_t i = 0; i < std::min(parameters.size(), given.size()); ++i) {
      Learn(parameters[i].symbol, KindsOf(given[i]));
    }
    for (const auto& [key, value] : call.arguments.keyword) {
      for (const jinja::Parameter& parameter : parameters) {
        if (parameter.name == key) Learn(parameter.symbol, KindsOf(value));
      }
    }
  }
  void Look(const jinja::Filter& filter) {
    looks_at_parts_ |= Contains(kItemFilters, filter.name) &&
                       (KindsOf(filter.input) & kContent) != 0;
    Visit(filter.input);
    Visit(filter.arguments);
  }
  void Look(const jinja::Test& test) {
    knows_strings_ |= test.name == "string";
    Visit(test.input);
    Visit(test.arguments);
  }

  // ---- statements ----

  void Visit(const jinja::Body& body) {
    for (const Statement& statement : body) {
      std::visit([this](const auto& node) { Look(node); }, statement.node);
    }
  }

  void Look(const jinja::Output&) {}
  void Look(const jinja::Break&) {}
  void Look(const jinja::Continue&) {}
  void Look(const jinja::Print& print) { Visit(print.expression); }
  void Look(const jinja::If& choice) {
    for (const auto& [condition, body] : choice.branches) {
      Visit(condition);
      Visit(body);
    }
    Visit(choice.otherwise);
  }
  void Look(const jinja::For& loop) {
    const Kinds kinds = KindsOf(loop.iterable);
    looks_at_parts_ |= (kinds & kContent) != 0;
    Learn(loop.target, ItemOf(kinds));
    Visit(loop.iterable);
    Visit(loop.condition);
    Visit(loop.body);
    Visit(loop.otherwise);
  }
  void Look(const jinja::Set& set) {
    Learn(set.target, KindsOf(set.value));
    Visit(set.value);
  }
  void Look(const jinja::SetBlock& block) {
    Visit(block.filter);
    Visit(block.body);
  }
  void Look(const jinja::With& with) {
    for (const auto& [target, value] : with.assignments) {
      Learn(target, KindsOf(value));
      Visit(value);
    }
    Visit(with.body);
  }
  void Look(const jinja::DefineMacro& define) {
    changed_ |= macros_[define.symbol] != define.macro.get();
    macros_[define.symbol] = define.macro.get();
    Visit(define.macro->body);
  }
  void Look(const jinja::CallBlock& block) {
    Visit(block.call);
    Visit(block.caller->body);
  }
  void Look(const jinja::FilterBlock& block) {
    Visit(block.filter);
    Visit(block.body);
  }
  void Look(const jinja::Scoped& scoped) { Visit(scoped.body); }

  const jinja::Template& parsed_;
  std::vector<Kinds> kinds_;  // by Symbol, whatever the scope
  std::vector<const jinja::MacroDefinition*> macros_;  // by Symbol
  bool changed_ = true;
  bool looks_at_parts_ = false;
  bool knows_strings_ = false;
};

Json AsParts(Json content) {
  if (content.is_array()) return content;
  return Json::array({{{"type", "text"}, {"text", std::move(content)}}});
}

Json AsText(Json content) {
  if (!content.is_array()) return content;
  std::string joined;
  for (size_t i = 0; i < content.size(); ++i) {
    if (i > 0) joined += '\n';
    joined += content[i].value("text", std::string());
  }
  return joined;
}

}  // namespace

ContentForm DetectContentForm(const jinja::Template& parsed) {
  return Detector(parsed).Run();
}

void ApplyContentForm(ContentForm form, Json* messages) {
  for (Json& message : *messages) {
    const auto content = message.find("content");
    if (content == message.end()) continue;
    const auto role = message.find("role");
    const bool is_tool = role != message.end() && *role == "tool";
    const bool parts = form == ContentForm::kPartsForAll ||
                       (form == ContentForm::kParts && !is_tool);
    *content =
        parts ? AsParts(std::move(*content)) : AsText(std::move(*content));
  }
}

}  // namespace moebius
