#include "coordinator/jinja/template_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>

#include "absl/hash/hash.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_runtime.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {
namespace {

int Depth(const Value& value) {
  if (auto sequence = value.sequence()) return sequence->depth;
  if (auto dict = value.dict()) return dict->depth;
  if (auto method = value.method()) return method->depth;
  return 0;
}

absl::Status CheckDepth(int depth) {
  if (depth <= kMaxValueDepth) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("values are nested deeper than ", kMaxValueDepth));
}

// -1, 0 or 1 as a is less than, equal to or greater than b; 2 if one is NaN.
int CompareNumbers(const Value& a, const Value& b) {
  Int i, j;
  if (AsInteger(a, &i) && AsInteger(b, &j)) return i < j ? -1 : i > j;
  const auto widen = [](const Value& v) {
    Int integer;
    if (AsInteger(v, &integer)) return static_cast<long double>(integer);
    return static_cast<long double>(*v.If<double>());
  };
  const long double x = widen(a), y = widen(b);
  if (std::isnan(x) || std::isnan(y)) return 2;
  return x < y ? -1 : x > y;
}

bool IsNumber(const Value& value) {
  double ignored;
  return AsNumber(value, &ignored);
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

// Appends what print and repr() show.
class Printer {
 public:
  Printer(Budget& budget, std::string* out) : budget_(budget), out_(out) {}

  absl::Status Repr(const Value& value, int depth) {
    RETURN_IF_ERROR(budget_.Charge(1));
    RETURN_IF_ERROR(CheckDepth(depth));
    if (value.is_undefined()) {
      out_->append("Undefined");
    } else if (auto text = value.text()) {
      RETURN_IF_ERROR(budget_.ChargeBytes(text->bytes.size()));
      AppendQuoted(text->bytes, out_);
    } else if (auto sequence = value.sequence()) {
      return Items(*sequence, depth);
    } else if (auto dict = value.dict()) {
      return Entries(dict->entries, "{", "}", depth);
    } else if (auto space = value.If<Namespace*>()) {
      return Entries((*space)->attributes, "<Namespace {", "}>", depth);
    } else {
      if (auto digits = value.long_int()) {
        RETURN_IF_ERROR(budget_.ChargeBytes(digits->digits.size()));
      }
      Plain(value);
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Items(const Sequence& sequence, int depth) {
    std::string_view open = "[", close = "]";
    std::string view_open;
    switch (sequence.flavor) {
      case Sequence::Flavor::kList:
        break;
      case Sequence::Flavor::kTuple:
        open = "(";
        close = sequence.items.size() == 1 ? ",)" : ")";
        break;
      case Sequence::Flavor::kRange:
        out_->append(sequence.label);
        return absl::OkStatus();
      case Sequence::Flavor::kView:
        view_open = sequence.label + "([";
        open = view_open;
        close = "])";
        break;
      case Sequence::Flavor::kGenerator:
        out_->append("<generator object>");
        return absl::OkStatus();
    }
    out_->append(open);
    for (size_t i = 0; i < sequence.items.size(); ++i) {
      if (i > 0) out_->append(", ");
      RETURN_IF_ERROR(Repr(sequence.items[i], depth + 1));
    }
    out_->append(close);
    return absl::OkStatus();
  }

  absl::Status Entries(const std::vector<std::pair<Value, Value>>& entries,
                       std::string_view open, std::string_view close,
                       int depth) {
    out_->append(open);
    bool first = true;
    for (const auto& [key, value] : entries) {
      if (!first) out_->append(", ");
      first = false;
      RETURN_IF_ERROR(Repr(key, depth + 1));
      out_->append(": ");
      RETURN_IF_ERROR(Repr(value, depth + 1));
    }
    out_->append(close);
    return absl::OkStatus();
  }

  void Plain(const Value& value) {
    if (value.is_none()) {
      out_->append("None");
    } else if (auto flag = value.If<bool>()) {
      out_->append(*flag ? "True" : "False");
    } else if (auto integer = value.If<Int>()) {
      out_->append(IntToText(*integer));
    } else if (auto digits = value.long_int()) {
      out_->append(digits->digits);
    } else if (auto number = value.If<double>()) {
      out_->append(FloatToText(*number));
    } else {
      StrAppend(out_, "<", TypeName(value), ">");
    }
  }

  Budget& budget_;
  std::string* out_;
};

}  // namespace

absl::Status Budget::Exhausted() {
  return absl::InvalidArgumentError(
      StrCat("rendering takes more than ", kMaxSteps, " steps"));
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
         If<GlobalFunction>() != nullptr;
}

size_t KeyHash::operator()(const Value& key) const {
  if (auto text = key.text()) return absl::HashOf(text->bytes);
  Int integer;
  if (AsInteger(key, &integer)) {
    return absl::HashOf(static_cast<uint64_t>(integer));
  }
  if (auto number = key.If<double>()) {
    // An integral float is the same key as the integer.
    if (std::abs(*number) < 0x1p126 && *number == std::trunc(*number)) {
      return absl::HashOf(static_cast<uint64_t>(static_cast<Int>(*number)));
    }
    return absl::HashOf(*number);
  }
  if (auto sequence = key.sequence()) {
    size_t hash = sequence->items.size();
    for (const Value& item : sequence->items) {
      hash = absl::HashOf(hash, (*this)(item));
    }
    return hash;
  }
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

absl::StatusOr<Value> NewString(Budget& budget, std::string bytes) {
  RETURN_IF_ERROR(budget.ChargeBytes(bytes.size()));
  return Value::String(std::move(bytes));
}

absl::StatusOr<Value> NewSequence(Budget& budget, Sequence::Flavor flavor,
                                  std::vector<Value> items, std::string label) {
  RETURN_IF_ERROR(budget.Charge(items.size() + 1));
  auto sequence = std::make_shared<Sequence>();
  int depth = 0;
  sequence->hashable = flavor == Sequence::Flavor::kTuple;
  for (const Value& item : items) {
    depth = std::max(depth, Depth(item));
    sequence->hashable = sequence->hashable && IsHashable(item);
    // More than there are steps is too much, however much more.
    sequence->key_steps =
        std::min(sequence->key_steps + KeySteps(item), kMaxSteps + 1);
  }
  RETURN_IF_ERROR(CheckDepth(depth + 1));
  sequence->flavor = flavor;
  sequence->items = std::move(items);
  sequence->depth = depth + 1;
  sequence->label = std::move(label);
  return Value(std::shared_ptr<const Sequence>(std::move(sequence)));
}

absl::StatusOr<Value> NewDict(Budget& budget,
                              std::vector<std::pair<Value, Value>> entries) {
  RETURN_IF_ERROR(budget.Charge(4 * entries.size() + 1));
  auto dict = std::make_shared<Dict>();
  dict->entries.reserve(entries.size());
  int depth = 0;
  for (auto& [key, value] : entries) {
    if (!IsHashable(key)) {
      return TypeError(StrCat("unhashable type: '", TypeName(key), "'"));
    }
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

absl::StatusOr<Value> NewMethod(Budget& budget, Value receiver,
                                std::string name) {
  RETURN_IF_ERROR(budget.Charge(2));
  const int depth = Depth(receiver) + 1;
  RETURN_IF_ERROR(CheckDepth(depth));
  return Value(std::make_shared<const BoundMethod>(
      BoundMethod{std::move(receiver), std::move(name), depth}));
}

std::string_view TypeName(const Value& value) {
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "NoneType";
  if (value.If<bool>()) return "bool";
  if (value.If<Int>() || value.long_int()) return "int";
  if (value.If<double>()) return "float";
  if (value.text()) return "str";
  if (value.dict()) return "dict";
  if (value.method()) return "method";
  if (value.If<Namespace*>()) return "Namespace";
  if (value.If<Loop*>()) return "LoopContext";
  if (value.If<const Macro*>()) return "Macro";
  if (auto sequence = value.sequence()) {
    switch (sequence->flavor) {
      case Sequence::Flavor::kList:
        return "list";
      case Sequence::Flavor::kTuple:
        return "tuple";
      case Sequence::Flavor::kRange:
        return "range";
      case Sequence::Flavor::kView:
        return sequence->label;
      case Sequence::Flavor::kGenerator:
        return "generator";
    }
  }
  return "function";
}

bool IsHashable(const Value& value) {
  if (auto sequence = value.sequence()) return sequence->hashable;
  return value.dict() == nullptr;
}

size_t KeySteps(const Value& value) {
  if (auto text = value.text()) return text->bytes.size() / kBytesPerStep + 1;
  if (auto sequence = value.sequence()) return sequence->key_steps;
  return 1;
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

bool AsInteger(const Value& value, Int* out) {
  if (auto flag = value.If<bool>()) {
    *out = *flag;
    return true;
  }
  if (auto integer = value.If<Int>()) {
    *out = *integer;
    return true;
  }
  return false;
}

bool AsNumber(const Value& value, double* out) {
  Int integer;
  if (AsInteger(value, &integer)) {
    *out = static_cast<double>(integer);
    return true;
  }
  if (auto number = value.If<double>()) {
    *out = *number;
    return true;
  }
  return false;
}

absl::StatusOr<bool> Equal(Budget& budget, const Value& a, const Value& b) {
  RETURN_IF_ERROR(budget.Charge(1));
  if (IsNumber(a) && IsNumber(b)) return CompareNumbers(a, b) == 0;
  if (a.rep().index() != b.rep().index()) return false;
  if (a.is_undefined() || a.is_none()) return true;
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
  if (auto method = a.method()) return method == b.method();
  if (auto space = a.If<Namespace*>()) return *space == *b.If<Namespace*>();
  if (auto loop = a.If<Loop*>()) return *loop == *b.If<Loop*>();
  if (auto macro = a.If<const Macro*>()) return *macro == *b.If<const Macro*>();
  return *a.If<GlobalFunction>() == *b.If<GlobalFunction>();
}

absl::StatusOr<bool> Less(Budget& budget, const Value& a, const Value& b) {
  RETURN_IF_ERROR(budget.Charge(1));
  for (const Value* value : {&a, &b}) {
    if (auto undefined = value->If<Undefined>()) {
      return UndefinedError(*undefined);
    }
  }
  if (IsNumber(a) && IsNumber(b)) return CompareNumbers(a, b) == -1;
  if (a.text() && b.text()) {
    const std::string &x = a.text()->bytes, &y = b.text()->bytes;
    RETURN_IF_ERROR(budget.ChargeBytes(std::min(x.size(), y.size())));
    return x < y;  // order of UTF-8 bytes is order of code points
  }
  const Sequence *x = a.sequence(), *y = b.sequence();
  if (x && y && x->flavor == y->flavor &&
      (x->flavor == Sequence::Flavor::kList ||
       x->flavor == Sequence::Flavor::kTuple)) {
    for (size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i) {
      ASSIGN_OR_RETURN(bool equal, Equal(budget, x->items[i], y->items[i]));
      if (!equal) return Less(budget, x->items[i], y->items[i]);
    }
    return x->items.size() < y->items.size();
  }
  return TypeError(StrCat("'<' not supported between instances of '",
                          TypeName(a), "' and '", TypeName(b), "'"));
}

absl::StatusOr<bool> LessOrEqual(Budget& budget, const Value& a,
                                 const Value& b) {
  if (IsNumber(a) && IsNumber(b)) return CompareNumbers(a, b) <= 0;
  ASSIGN_OR_RETURN(bool greater, Less(budget, b, a));
  return !greater;
}

absl::StatusOr<std::string> ToText(Budget& budget, const Value& value) {
  if (auto text = value.text()) {
    RETURN_IF_ERROR(budget.ChargeBytes(text->bytes.size()));
    return text->bytes;
  }
  if (value.is_undefined()) return std::string();
  return ToRepr(budget, value);
}

absl::StatusOr<std::string> ToRepr(Budget& budget, const Value& value) {
  std::string out;
  RETURN_IF_ERROR(Printer(budget, &out).Repr(value, 0));
  return out;
}

std::string IntToText(Int value) {
  if (value == 0) return "0";
  const bool negative = value < 0;
  auto rest = static_cast<unsigned __int128>(value);
  if (negative) rest = -rest;
  std::string digits;
  for (; rest != 0; rest /= 10) {
    digits.push_back(static_cast<char>('0' + static_cast<int>(rest % 10)));
  }
  if (negative) digits.push_back('-');
  std::reverse(digits.begin(), digits.end());
  return digits;
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

absl::Status UndefinedError(const Undefined& undefined) {
  return absl::InvalidArgumentError(*undefined.reason);
}

absl::Status TypeError(std::string_view message) {
  return absl::InvalidArgumentError(Piece(message));
}

}  // namespace moebius::jinja
