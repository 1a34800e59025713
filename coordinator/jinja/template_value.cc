#include "coordinator/jinja/template_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/hash/hash.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_runtime.h"

namespace moebius::jinja {
namespace {

int Depth(const Value& value) {
  if (auto sequence = value.sequence()) return sequence->depth;
  if (auto dict = value.dict()) return dict->depth;
  if (auto method = value.method()) return Depth(method->receiver);
  return 0;
}

absl::Status CheckDepth(int depth) {
  if (depth <= kMaxValueDepth) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat("values are nested deeper than ", kMaxValueDepth));
}

std::partial_ordering OrderNumbers(const Value& a, const Value& b) {
  // A long double holds every Int.
  const auto widen = [](const Value& value) -> long double {
    if (auto integer = AsInteger(value)) return *integer;
    return *value.If<double>();
  };
  return widen(a) <=> widen(b);
}

absl::StatusOr<bool> EqualSequences(Budget& budget, const Sequence& a,
                                    const Sequence& b) {
  if (&a == &b) return true;
  if (a.flavor != b.flavor || a.items.size() != b.items.size()) return false;
  if (a.flavor == Sequence::Flavor::kGenerator) return false;
  for (size_t i = 0; i < a.items.size(); ++i) {
    ASSIGN_OR_RETURN(bool equal, Equal(budget, a.items[i], b.items[i]));
    if (!equal) return false;
  }
  return true;
}

absl::StatusOr<bool> EqualDicts(Budget& budget, const Dict& a, const Dict& b) {
  if (a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    const Value* other = b.Find(key);
    if (other == nullptr) return false;
    ASSIGN_OR_RETURN(bool equal, Equal(budget, value, *other));
    if (!equal) return false;
  }
  return true;
}

}  // namespace

absl::Status Budget::Exhausted() {
  return absl::InvalidArgumentError(
      Cat("rendering takes more than ", kMaxSteps, " steps"));
}

Value Value::Missing(std::string reason) {
  return Value(
      Undefined{std::make_shared<const std::string>(std::move(reason))});
}

Value Value::String(std::string bytes) {
  const size_t length = CountCharacters(bytes);
  return Value(std::make_shared<const Text>(Text{std::move(bytes), length}));
}

bool Value::is_callable() const {
  return method() != nullptr || If<const Macro*>() != nullptr ||
         If<const Builtin*>() != nullptr;
}

size_t KeyHash::operator()(const Value& key) const {
  if (auto text = key.text()) return absl::HashOf(text->bytes);
  // 1, 1.0 and True have one hash.
  if (auto number = AsNumber(key)) return absl::HashOf(*number);
  return key.rep().index();
}

bool KeyEqual::operator()(const Value& a, const Value& b) const {
  Budget budget;  // KeySteps was paid for it
  const auto equal = Equal(budget, a, b);
  return equal.ok() && *equal;
}

const Value* Dict::Find(const Value& key) const {
  const auto at = index.find(key);
  return at == index.end() ? nullptr : &entries[at->second].second;
}

ValueOr NewString(Budget& budget, std::string bytes) {
  RETURN_IF_ERROR(budget.ChargeBytes(bytes.size()));
  return Value::String(std::move(bytes));
}

ValueOr NewSequence(Budget& budget, Sequence::Flavor flavor,
                    std::vector<Value> items) {
  RETURN_IF_ERROR(budget.Charge(items.size() + 1));
  auto sequence = std::make_shared<Sequence>();
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, Depth(item));
  RETURN_IF_ERROR(CheckDepth(depth + 1));
  sequence->flavor = flavor;
  sequence->items = std::move(items);
  sequence->depth = depth + 1;
  return Value(std::shared_ptr<const Sequence>(std::move(sequence)));
}

ValueOr NewDict(Budget& budget, std::vector<std::pair<Value, Value>> entries) {
  RETURN_IF_ERROR(budget.Charge(4 * entries.size() + 1));
  auto dict = std::make_shared<Dict>();
  dict->entries.reserve(entries.size());
  int depth = 0;
  for (auto& [key, value] : entries) {
    RETURN_IF_ERROR(CheckHashable(key));
    RETURN_IF_ERROR(budget.Charge(KeySteps(key)));
    depth = std::max({depth, Depth(key), Depth(value)});
    const auto [at, is_new] = dict->index.emplace(key, dict->entries.size());
    if (is_new) {
      dict->entries.emplace_back(std::move(key), std::move(value));
    } else {
      dict->entries[at->second].second = std::move(value);
    }
  }
  RETURN_IF_ERROR(CheckDepth(depth + 1));
  dict->depth = depth + 1;
  return Value(std::shared_ptr<const Dict>(std::move(dict)));
}

std::string_view TypeName(const Value& value) {
  // In the order of Value::Rep, and of Sequence::Flavor.
  static constexpr std::string_view kNames[] = {
      "Undefined", "NoneType",
      "bool",      "int",
      "float",     "str",
      "",          "dict",
      "method",    "int of more than 64 bits",
      "Namespace", "LoopContext",
      "Macro",     "function"};
  static constexpr std::string_view kFlavors[] = {"list", "tuple", "range",
                                                  "dict view", "generator"};
  static_assert(std::size(kNames) == std::variant_size_v<Value::Rep>);
  auto sequence = value.sequence();
  return sequence ? kFlavors[static_cast<int>(sequence->flavor)]
                  : kNames[value.rep().index()];
}

absl::Status CheckHashable(const Value& value) {
  if (!value.sequence() && !value.dict()) return absl::OkStatus();
  return TypeError(
      Cat("unhashable or not supported as a key: '", TypeName(value), "'"));
}

size_t KeySteps(const Value& value) {
  return value.text() ? value.text()->bytes.size() / kBytesPerStep + 1 : 1;
}

bool IsTrue(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (auto flag = value.If<bool>()) return *flag;
  if (auto integer = value.If<Int>()) return *integer != 0;
  if (auto number = value.If<double>()) return *number != 0;
  if (auto text = value.text()) return !text->bytes.empty();
  if (auto dict = value.dict()) return !dict->entries.empty();
  if (auto sequence = value.sequence()) {
    return sequence->flavor == Sequence::Flavor::kGenerator ||
           !sequence->items.empty();
  }
  return true;
}

std::optional<Int> AsInteger(const Value& value) {
  if (auto flag = value.If<bool>()) return *flag;
  if (auto integer = value.If<Int>()) return *integer;
  return std::nullopt;
}

std::optional<double> AsNumber(const Value& value) {
  if (auto integer = AsInteger(value)) return static_cast<double>(*integer);
  if (auto number = value.If<double>()) return *number;
  return std::nullopt;
}

absl::StatusOr<bool> Equal(Budget& budget, const Value& a, const Value& b) {
  RETURN_IF_ERROR(budget.Charge(1));
  if (AsNumber(a) && AsNumber(b)) return OrderNumbers(a, b) == 0;
  if (a.rep().index() != b.rep().index()) return false;
  if (auto text = a.text()) {
    const std::string& other = b.text()->bytes;
    if (text->bytes.size() != other.size()) return false;
    RETURN_IF_ERROR(budget.ChargeBytes(other.size()));
    return text->bytes == other;
  }
  if (auto sequence = a.sequence()) {
    return EqualSequences(budget, *sequence, *b.sequence());
  }
  if (auto dict = a.dict()) return EqualDicts(budget, *dict, *b.dict());
  if (auto digits = a.long_int()) {
    RETURN_IF_ERROR(budget.ChargeBytes(digits->digits.size()));
    return digits->digits == b.long_int()->digits;
  }
  return a.rep() == b.rep();
}

absl::StatusOr<std::partial_ordering> Order(Budget& budget, const Value& a,
                                            const Value& b) {
  RETURN_IF_ERROR(budget.Charge(1));
  if (AsNumber(a) && AsNumber(b)) return OrderNumbers(a, b);
  if (a.text() && b.text()) {
    const std::string &x = a.text()->bytes, &y = b.text()->bytes;
    RETURN_IF_ERROR(budget.ChargeBytes(std::min(x.size(), y.size())));
    return x <=> y;  // order of UTF-8 bytes is order of code points
  }
  return TypeErrorOf(
      a.is_undefined() ? a : b,
      Cat("'", TypeName(a), "' and '", TypeName(b), "' cannot be ordered"));
}

// Python's rule (float.__repr__): positional notation for decimal exponents
// from -4 to 15, and always a sign that it is no integer.
std::string FloatToText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value,
                                 std::chars_format::scientific);
  const std::string_view shortest(buffer, end.ptr - buffer);
  const size_t e = shortest.find('e');
  int exponent = 0;
  const size_t sign = shortest[e + 1] == '+' ? e + 2 : e + 1;
  std::from_chars(buffer + sign, end.ptr, exponent);
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  const auto fixed = std::to_chars(buffer, buffer + sizeof(buffer), value,
                                   std::chars_format::fixed);
  std::string text(buffer, fixed.ptr);
  if (text.find('.') == std::string::npos) text.append(".0");
  return text;
}

absl::Status TypeError(std::string_view message) {
  return absl::InvalidArgumentError(AbslView(message));
}

absl::Status TypeErrorOf(const Value& value, std::string_view message) {
  const auto* undefined = value.If<Undefined>();
  return TypeError(undefined != nullptr ? *undefined->reason : message);
}

}  // namespace moebius::jinja
