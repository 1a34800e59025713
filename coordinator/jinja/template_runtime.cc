#include "coordinator/jinja/template_runtime.h"

#include <algorithm>
#include <compare>
#include <optional>
#include <string>

#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

// Python's methods of strings, lists and dicts that we have not, those aside
// that few know. Most of them would change their object, which the sandbox of
// Hugging Face refuses too.
constexpr std::string_view kOtherMethods =
    " append center clear copy count extend format index insert isalnum isalpha"
    " isdecimal isdigit islower isnumeric isspace istitle isupper ljust pop"
    " partition popitem remove removeprefix removesuffix reverse rindex rjust"
    " rpartition rsplit setdefault sort swapcase translate update zfill ";

Value NoAttribute(const Value& object, std::string_view name) {
  const bool has_methods = object.text() || object.sequence() || object.dict();
  if (has_methods &&
      kOtherMethods.find(Cat(" ", name, " ")) != std::string_view::npos) {
    return Value::Missing(Cat("the method '", name, "' of '", TypeName(object),
                              "' is not supported"));
  }
  return Value::Missing(
      Cat("'", TypeName(object), " object' has no attribute '", name, "'"));
}

ValueOr LoopAttribute(const Loop& loop, std::string_view name) {
  const auto size = static_cast<Int>(loop.items->size());
  const auto index0 = static_cast<Int>(loop.index0);
  if (name == "index") return Value::Integer(index0 + 1);
  if (name == "index0") return Value::Integer(index0);
  if (name == "revindex") return Value::Integer(size - index0);
  if (name == "revindex0") return Value::Integer(size - index0 - 1);
  if (name == "first") return Value::Bool(index0 == 0);
  if (name == "last") return Value::Bool(index0 + 1 >= size);
  if (name == "length") return Value::Integer(size);
  if (name == "previtem") {
    if (index0 == 0) return Value::Missing("there is no previous item");
    return (*loop.items)[loop.index0 - 1];
  }
  if (name == "nextitem") {
    if (index0 + 1 >= size) return Value::Missing("there is no next item");
    return (*loop.items)[loop.index0 + 1];
  }
  return TypeError(Cat("'loop.", name, "' is not supported"));
}

// A character of a string, an item of a sequence; null if there is none.
absl::StatusOr<std::optional<Value>> ItemAt(Runtime& runtime,
                                            const Value& object, Int index) {
  const auto text = object.text();
  const auto sequence = object.sequence();
  if (!text && !(sequence && sequence->has_items())) return std::nullopt;
  const auto size =
      static_cast<Int>(text ? text->num_characters : sequence->items.size());
  if (index < 0) index += size;
  if (index < 0 || index >= size) return std::nullopt;
  if (sequence) return sequence->items[static_cast<size_t>(index)];
  const auto at = static_cast<size_t>(index);
  RETURN_IF_ERROR(runtime.budget.ChargeBytes(text->bytes.size()));
  const size_t begin = ByteOffset(text->bytes, at);
  const int bytes = ReadCodePoint(text->bytes.data() + begin).size_bytes;
  return Value::String(text->bytes.substr(begin, bytes));
}

// Python's slice.indices(): which of `size` items are meant, in order.
struct SliceRange {
  Int start, stop, step;
};
absl::StatusOr<SliceRange> SliceIndices(Int size, const Value& start,
                                        const Value& stop, const Value& step) {
  const auto read = [](const Value& value, Int absent) -> absl::StatusOr<Int> {
    if (value.is_none()) return absent;
    if (auto integer = AsInteger(value)) return *integer;
    return TypeError("slice indices must be integers or None");
  };
  SliceRange range;
  ASSIGN_OR_RETURN(range.step, read(step, 1));
  if (range.step == 0) return TypeError("slice step cannot be zero");
  const bool forward = range.step > 0;
  const Int low = forward ? 0 : -1;
  const Int high = forward ? size : size - 1;
  const auto clamp = [&](Int index) {
    if (index < 0) index = std::max(index + size, low);
    return std::min(index, high);
  };
  ASSIGN_OR_RETURN(Int first, read(start, forward ? low : high));
  range.start = start.is_none() ? first : clamp(first);
  ASSIGN_OR_RETURN(Int last, read(stop, forward ? high : low));
  range.stop = stop.is_none() ? last : clamp(last);
  // A longer step takes no more items and could overflow.
  range.step = std::clamp<Int>(range.step, -size - 1, size + 1);
  return range;
}

// ---- arithmetic ----

absl::Status Unsupported(Op op, const Value& a, const Value& b) {
  constexpr std::string_view kSpelled[] = {"+", "-", "*", "/", "//", "%"};
  return TypeErrorOf(
      a.is_undefined() ? a : b,
      Cat("unsupported operand types for ", kSpelled[static_cast<int>(op)],
          ": '", TypeName(a), "' and '", TypeName(b), "'"));
}

ValueOr OfIntegers(Op op, Int a, Int b) {
  const __int128 x = a, y = b;
  __int128 result = 0;
  if (op == Op::kAdd) {
    result = x + y;
  } else if (op == Op::kSubtract) {
    result = x - y;
  } else if (op == Op::kMultiply) {
    result = x * y;
  } else if (y == 0) {
    return TypeError("division by zero");
  } else {
    // Python rounds down; the rest has the sign of the divisor.
    const bool rounds_up = x % y != 0 && (x < 0) != (y < 0);
    result = op == Op::kModulo ? x % y + (rounds_up ? y : 0)
                               : x / y - (rounds_up ? 1 : 0);
  }
  if (result == static_cast<Int>(result)) {
    return Value::Integer(static_cast<Int>(result));
  }
  return TypeError("the integer is too large");
}

ValueOr OfNumbers(Op op, const Value& a, const Value& b) {
  const auto i = AsInteger(a), j = AsInteger(b);
  if (op != Op::kDivide && i && j) return OfIntegers(op, *i, *j);
  const auto x = AsNumber(a), y = AsNumber(b);
  if (!x || !y || op == Op::kFloorDivide || op == Op::kModulo) {
    return Unsupported(op, a, b);
  }
  if (op == Op::kAdd) return Value::Float(*x + *y);
  if (op == Op::kSubtract) return Value::Float(*x - *y);
  if (op == Op::kMultiply) return Value::Float(*x * *y);
  if (*y == 0) return TypeError("division by zero");
  return Value::Float(*x / *y);
}

ValueOr Add(Runtime& runtime, const Value& a, const Value& b) {
  if (a.text() && b.text()) {
    const std::string &x = a.text()->bytes, &y = b.text()->bytes;
    RETURN_IF_ERROR(runtime.budget.ChargeBytes(x.size() + y.size()));
    return Value::String(x + y);
  }
  const Sequence *x = a.sequence(), *y = b.sequence();
  if (x && y && x->is_list_or_tuple() && x->flavor == y->flavor) {
    RETURN_IF_ERROR(runtime.budget.Charge(x->items.size() + y->items.size()));
    std::vector<Value> items = x->items;
    items.insert(items.end(), y->items.begin(), y->items.end());
    return NewSequence(runtime.budget, x->flavor, std::move(items));
  }
  return OfNumbers(Op::kAdd, a, b);
}

ValueOr Multiply(Runtime& runtime, const Value& a, const Value& b) {
  const Text* text = a.text() ? a.text() : b.text();
  const auto count = AsInteger(a.text() ? b : a);
  if (text == nullptr || !count) return OfNumbers(Op::kMultiply, a, b);
  const std::string& bytes = text->bytes;
  if (*count <= 0 || bytes.empty()) return Value::String("");
  const auto times = static_cast<size_t>(*count);
  if (times > kMaxSteps * kBytesPerStep / bytes.size()) {
    return TypeError("the repeated string is too long");
  }
  RETURN_IF_ERROR(runtime.budget.ChargeBytes(bytes.size() * times));
  std::string out;
  out.reserve(bytes.size() * times);
  for (size_t i = 0; i < times; ++i) out += bytes;
  return Value::String(std::move(out));
}

}  // namespace

absl::Status Runtime::CheckDepth() const {
  if (depth <= kMaxEvaluationDepth) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat("evaluation is nested deeper than ", kMaxEvaluationDepth));
}

absl::StatusOr<Items> Iterate(Runtime& runtime, const Value& value) {
  using Pointer = std::shared_ptr<const Sequence>;
  if (auto sequence = value.If<Pointer>()) {
    RETURN_IF_ERROR(runtime.budget.Charge(1));
    if ((*sequence)->flavor == Sequence::Flavor::kGenerator) {
      if ((*sequence)->used) return std::make_shared<std::vector<Value>>();
      (*sequence)->used = true;
    }
    return Items(*sequence, &(*sequence)->items);
  }
  auto items = std::make_shared<std::vector<Value>>();
  if (auto dict = value.dict()) {
    RETURN_IF_ERROR(runtime.budget.Charge(dict->entries.size()));
    for (const auto& entry : dict->entries) items->push_back(entry.first);
  } else if (auto text = value.text()) {
    RETURN_IF_ERROR(runtime.budget.Charge(4 * text->num_characters));
    for (size_t at = 0; at < text->bytes.size();) {
      const int bytes = ReadCodePoint(text->bytes.data() + at).size_bytes;
      items->push_back(Value::String(text->bytes.substr(at, bytes)));
      at += bytes;
    }
  } else if (!value.is_undefined()) {
    return TypeError(Cat("'", TypeName(value), "' object is not iterable"));
  }
  return items;
}

ValueOr GetAttribute(Runtime& runtime, const Value& object,
                     std::string_view name) {
  if (object.is_undefined()) return TypeErrorOf(object, "");
  if (auto loop = object.If<Loop*>()) {
    return LoopAttribute(**loop, name);
  }
  if (auto space = object.If<Namespace*>()) {
    const auto at = (*space)->attributes.find(AbslView(name));
    return at == (*space)->attributes.end() ? NoAttribute(object, name)
                                            : at->second;
  }
  if (const Builtin* method = FindMethod(object, name)) {
    RETURN_IF_ERROR(runtime.budget.Charge(2));
    return Value(std::make_shared<const BoundMethod>(*method, object));
  }
  if (auto dict = object.dict()) {
    RETURN_IF_ERROR(runtime.budget.ChargeBytes(name.size()));
    const Value* value = dict->Find(Value::String(std::string(name)));
    if (value != nullptr) return *value;
  }
  return NoAttribute(object, name);
}

ValueOr GetItem(Runtime& runtime, const Value& object, const Value& key) {
  if (object.is_undefined()) return TypeErrorOf(object, "");
  if (auto dict = object.dict(); dict && CheckHashable(key).ok()) {
    RETURN_IF_ERROR(runtime.budget.Charge(KeySteps(key)));
    const Value* value = dict->Find(key);
    if (value != nullptr) return *value;
  }
  if (auto index = AsInteger(key)) {
    ASSIGN_OR_RETURN(auto item, ItemAt(runtime, object, *index));
    if (item.has_value()) return *std::move(item);
    return Value::Missing(
        Cat("'", TypeName(object), " object' has no item ", *index));
  }
  if (auto text = key.text()) {
    return GetAttribute(runtime, object, text->bytes);
  }
  return Value::Missing(Cat("'", TypeName(object),
                            " object' has no item of type '", TypeName(key),
                            "'"));
}

ValueOr GetSlice(Runtime& runtime, const Value& object, const Value& start,
                 const Value& stop, const Value& step) {
  if (object.is_undefined()) return TypeErrorOf(object, "");
  const auto text = object.text();
  const auto sequence = object.sequence();
  if (!text && !(sequence && sequence->has_items())) {
    return TypeError(Cat("'", TypeName(object), "' object cannot be sliced"));
  }
  const size_t size = text ? text->num_characters : sequence->items.size();
  ASSIGN_OR_RETURN(SliceRange range,
                   SliceIndices(static_cast<Int>(size), start, stop, step));
  if (text && range.step == 1) {
    if (range.stop <= range.start) return Value::String("");
    RETURN_IF_ERROR(runtime.budget.ChargeBytes(text->bytes.size()));
    const size_t begin = ByteOffset(text->bytes, range.start);
    const size_t end = ByteOffset(text->bytes, range.stop);
    return NewString(runtime.budget, text->bytes.substr(begin, end - begin));
  }
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, object));
  std::vector<Value> taken;
  std::string characters;
  for (Int i = range.start; range.step > 0 ? i < range.stop : i > range.stop;
       i += range.step) {
    const Value& item = (*items)[static_cast<size_t>(i)];
    if (text) {
      characters.append(item.text()->bytes);
    } else {
      taken.push_back(item);
    }
  }
  if (text) return NewString(runtime.budget, std::move(characters));
  const bool is_tuple = sequence->flavor == Sequence::Flavor::kTuple;
  return NewSequence(
      runtime.budget,
      is_tuple ? Sequence::Flavor::kTuple : Sequence::Flavor::kList,
      std::move(taken));
}

absl::StatusOr<bool> Contains(Runtime& runtime, const Value& haystack,
                              const Value& needle) {
  if (auto text = haystack.text()) {
    if (!needle.text()) {
      return TypeError(
          Cat("'in <string>' requires a string as left operand, not ",
              TypeName(needle)));
    }
    const std::string& wanted = needle.text()->bytes;
    RETURN_IF_ERROR(
        runtime.budget.ChargeBytes(text->bytes.size() + wanted.size()));
    return FindFirst(text->bytes, wanted) != std::string_view::npos;
  }
  if (auto dict = haystack.dict()) {
    RETURN_IF_ERROR(CheckHashable(needle));
    RETURN_IF_ERROR(runtime.budget.Charge(KeySteps(needle)));
    return dict->Find(needle) != nullptr;
  }
  ASSIGN_OR_RETURN(Items items, Iterate(runtime, haystack));
  for (const Value& item : *items) {
    ASSIGN_OR_RETURN(bool equal, Equal(runtime.budget, item, needle));
    if (equal) return true;
  }
  return false;
}

ValueOr Operate(Runtime& runtime, Op op, const Value& a, const Value& b) {
  switch (op) {
    case Op::kAdd:
      return Add(runtime, a, b);
    case Op::kMultiply:
      return Multiply(runtime, a, b);
    case Op::kModulo:
    case Op::kSubtract:
    case Op::kDivide:
    case Op::kFloorDivide:
      return OfNumbers(op, a, b);
    case Op::kEqual:
    case Op::kNotEqual: {
      ASSIGN_OR_RETURN(bool equal, Equal(runtime.budget, a, b));
      return Value::Bool(equal == (op == Op::kEqual));
    }
    case Op::kIn:
    case Op::kNotIn: {
      ASSIGN_OR_RETURN(bool contains, Contains(runtime, b, a));
      return Value::Bool(contains == (op == Op::kIn));
    }
    default:
      break;
  }
  ASSIGN_OR_RETURN(std::partial_ordering order, Order(runtime.budget, a, b));
  return Value::Bool(op == Op::kLess        ? order < 0
                     : op == Op::kLessEqual ? order <= 0
                     : op == Op::kGreater   ? order > 0
                                            : order >= 0);
}

}  // namespace moebius::jinja
