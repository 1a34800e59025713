#include "coordinator/jinja/content_form.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moebius {
namespace {

using jinja::ExpressionPtr;
using jinja::Op;
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
const std::string* Spelled(const ExpressionPtr& expression) {
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
    if (target.unpacks || !target.attribute.empty()) return;
    Learn(target.names[0], kinds);
  }

  // ---- expressions: what they may give ----

  Kinds KindsOf(const ExpressionPtr& expression) const {
    if (expression == nullptr) return 0;
    return std::visit([this](const auto& node) { return Of(node); },
                      expression->node);
  }

  Kinds Of(const jinja::Literal&) const { return 0; }
  Kinds Of(const jinja::MacroLiteral&) const { return 0; }
  Kinds Of(const jinja::Name& name) const { return kinds_[name.symbol]; }
  Kinds Of(const jinja::Attribute& attribute) const {
    return Member(KindsOf(attribute.object), attribute.name);
  }
  Kinds Of(const jinja::Operation& operation) const {
    const auto& operands = operation.operands;
    switch (operation.op) {
      case Op::kAnd:
      case Op::kOr: {
        Kinds kinds = 0;
        for (const auto& operand : operands) kinds |= KindsOf(operand);
        return kinds;
      }
      case Op::kConditional:
        return KindsOf(operands[1]) | KindsOf(operands[2]);
      case Op::kSlice:
        return KindsOf(operands[0]);
      case Op::kSubscript: {
        const std::string* key = Spelled(operands[1]);
        const Kinds kinds = KindsOf(operands[0]);
        return key != nullptr ? Member(kinds, *key) : ItemOf(kinds);
      }
      default:
        return 0;
    }
  }
  Kinds Of(const jinja::Call& call) const {
    const Kinds kinds = KindsOf(call.object);
    if (call.kind == jinja::Call::Kind::kFilter) {
      if (call.name == "first" || call.name == "last") return ItemOf(kinds);
      return Contains(kListFilters, call.name) ? kinds : 0;
    }
    // message.get('content')
    const auto* method = std::get_if<jinja::Attribute>(&call.object->node);
    if (call.kind == jinja::Call::Kind::kTest || method == nullptr ||
        method->name != "get" || call.arguments.empty()) {
      return 0;
    }
    const std::string* key = Spelled(call.arguments[0].value);
    return key == nullptr ? 0 : Member(KindsOf(method->object), *key);
  }

  static Kinds Member(Kinds kinds, std::string_view name) {
    return (kinds & kMessage) != 0 && name == "content" ? kContent : 0;
  }
  static Kinds ItemOf(Kinds kinds) {
    return ((kinds & kMessages) != 0 ? kMessage : 0) |
           ((kinds & kContent) != 0 ? kPart : 0);
  }

  // ---- expressions: what they do ----

  void Visit(const ExpressionPtr& expression) {
    if (expression != nullptr) Visit(*expression);
  }
  void Visit(const jinja::Expression& expression) {
    std::visit([this](const auto& node) { Look(node); }, expression.node);
    ForEachOperand(expression, [this](const auto& e) { Visit(e); });
  }

  void Look(const jinja::Literal&) {}
  void Look(const jinja::MacroLiteral& macro) { Visit(macro.definition->body); }
  void Look(const jinja::Name&) {}
  void Look(const jinja::Attribute& attribute) {
    looks_at_parts_ |= (KindsOf(attribute.object) & kPart) != 0;
  }
  void Look(const jinja::Operation& operation) {
    looks_at_parts_ |= operation.op == Op::kSubscript &&
                       Spelled(operation.operands[1]) != nullptr &&
                       (KindsOf(operation.operands[0]) & kPart) != 0;
  }
  void Look(const jinja::Call& call) {
    if (call.kind == jinja::Call::Kind::kFilter) {
      looks_at_parts_ |= Contains(kItemFilters, call.name) &&
                         (KindsOf(call.object) & kContent) != 0;
    } else if (call.kind == jinja::Call::Kind::kTest) {
      knows_strings_ |= call.name == "string";
    } else if (const auto* name =
                   std::get_if<jinja::Name>(&call.object->node)) {
      const auto* macro = macros_[name->symbol];
      if (macro != nullptr) LearnParameters(*macro, call.arguments);
    }
  }
  void LearnParameters(const jinja::MacroDefinition& macro,
                       const std::vector<jinja::Argument>& arguments) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      const jinja::Argument& argument = arguments[i];
      for (size_t j = 0; j < macro.parameters.size(); ++j) {
        const jinja::Parameter& parameter = macro.parameters[j];
        if (argument.name.empty() ? i == j : argument.name == parameter.name) {
          Learn(parameter.symbol, KindsOf(argument.value));
        }
      }
    }
  }

  // ---- statements ----

  void Visit(const jinja::Body& body) {
    for (const Statement& statement : body) {
      std::visit([this](const auto& node) { Look(node); }, statement.node);
    }
  }

  void Look(const jinja::LoopControl&) {}
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
    if (auto macro = std::get_if<jinja::MacroLiteral>(&set.value->node)) {
      auto& known = macros_[set.target.names[0]];
      changed_ |= known != macro->definition.get();
      known = macro->definition.get();
    }
    Visit(set.value);
  }
  void Look(const jinja::Block& block) {
    Visit(block.filters);
    Visit(block.body);
  }

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
