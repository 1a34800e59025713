#include "coordinator/jinja/template_runtime.h"

#include <algorithm>
#include <string>

#include "common/base/status_macros.h"
#include "coordinator/jinja/template_builtins.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_strings.h"
#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

// What errors call the object of an attribute.
std::string Describe(const Value& object) {
  if (object.is_none()) return "None";
  return StrCat(TypeName(object), " object");
}

Value NoAttribute(const Value& object, std::string_view name) {
  return Value::Missing(
      StrCat("'", Describe(object), "' has no attribute '", name, "'"));
}

absl::StatusOr<Value> LoopAttribute(Runtime& runtime, const Value& object,
                                    const Loop& loop, std::string_view name) {
  const auto size = static_cast<Int>(loop.items->size());
  const auto index0 = static_cast<Int>(loop.index0);
  if (name == "index") return Value::Integer(index0 + 1);
  if (name == "index0") return Value::Integer(index0);
  if (name == "revindex") return Value::Integer(size - index0);
  if (name == "revindex0") return Value::Integer(size - index0 - 1);
  if (name == "first") return Value::Bool(index0 == 0);
  if (name == "last") return Value::Bool(index0 + 1 >= size);
  if (name == "length") return Value::Integer(size);
  // Only recursive loops, which we do not have, are deeper.
  if (name == "depth") return Value::Integer(1);
  if (name == "depth0") return Value::Integer(0);
  if (name == "previtem") {
    if (index0 == 0) return Value::Missing("there is no previous item");
    return (*loop.items)[loop.index0 - 1];
  }
  if (name == "nextitem") {
    if (index0 + 1 >= size) return Value::Missing("there is no next item");
    return (*loop.items)[loop.index0 + 1];
  }
  if (name == "cycle" || name == "changed") {
    return NewMethod(runtime.budget, object, std::string(name));
  }
  return NoAttribute(object, name);
}

// A character of a string, an item of a sequence; null if there is none.
absl::StatusOr<std::optional<Value>> ItemAt(Runtime& runtime,
                                            const Value& object, Int index) {
  const auto text = object.text();
  const auto sequence = object.sequence();
  if (sequence && (sequence->flavor == Sequence::Flavor::kView ||
                   sequence->flavor == Sequence::Flavor::kGenerator)) {
    return std::nullopt;
  }
  if (!text && !sequence) return std::nullopt;
  const auto size =
      static_cast<Int>(text ? text->num_characters : sequence->items.size());
  if (index < 0) index += size;
  if (index < 0 || index >= size) return std::nullopt;
  if (sequence) return sequence->items[static_cast<size_t>(index)];
  const auto at = static_cast<size_t>(index);
  if (text->is_ascii()) return Value::String(text->bytes.substr(at, 1));
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
    Int integer;
    if (value.is_none()) return absent;
    if (AsInteger(value, &integer)) return integer;
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

}  // namespace

absl::Status EvaluationLevel::Check() const {
  if (depth_ <= kMaxEvaluationDepth) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat("evaluation is nested deeper than ", kMaxEvaluationDepth));
}

const Value* Namespace::Find(std::string_view name) const {
  for (const auto& [key, value] : attributes) {
    if (key.text()->bytes == name) return &value;
  }
  return nullptr;
}

void Namespace::Set(std::string_view name, Value value) {
  for (auto& [key, old] : attributes) {
    if (key.text()->bytes == name) {
      old = std::move(value);
      return;
    }
  }
  attributes.emplace_back(Value::String(std::string(name)), std::move(value));
}

absl::StatusOr<std::vector<std::optional<Value>>> BindArguments(
    std::string_view callee, const ArgumentValues& arguments,
    std::initializer_list<std::string_view> names, size_t num_required) {
  std::vector<std::optional<Value>> bound(names.size());
  if (arguments.positional.size() > names.size()) {
    return TypeError(StrCat(callee, " takes at most ", names.size(),
                            " arguments, got ", arguments.positional.size()));
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    bound[i] = arguments.positional[i];
  }
  for (const auto& [name, value] : arguments.keyword) {
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) {
      return TypeError(
          StrCat(callee, " got an unexpected argument '", name, "'"));
    }
    auto& place = bound[at - names.begin()];
    if (place.has_value()) {
      return TypeError(StrCat(callee, " got multiple values for '", name, "'"));
    }
    place = value;
  }
  for (size_t i = 0; i < num_required; ++i) {
    if (bound[i].has_value()) continue;
    return TypeError(
        StrCat(callee, " misses its argument '", names.begin()[i], "'"));
  }
  return bound;
}

absl::StatusOr<Int> IntegerArgument(std::string_view name, const Value& value) {
  Int integer;
  if (AsInteger(value, &integer)) return integer;
  if (auto undefined = value.If<Undefined>()) return UndefinedError(*undefined);
  return TypeError(
      StrCat("'", name, "' must be an integer, not ", TypeName(value)));
}

absl::StatusOr<long> CountArgument(std::string_view name, const Value& value) {
  ASSIGN_OR_RETURN(Int integer, IntegerArgument(name, value));
  constexpr Int kFar = Int{1} << 62;
  return static_cast<long>(std::clamp(integer, -kFar, kFar));
}

absl::StatusOr<std::string_view> StringArgument(std::string_view name,
                                                const Value& value) {
  if (auto text = value.text()) return std::string_view(text->bytes);
  if (auto undefined = value.If<Undefined>()) return UndefinedError(*undefined);
  return TypeError(
      StrCat("'", name, "' must be a string, not ", TypeName(value)));
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
    return TypeError(StrCat("'", TypeName(value), "' object is not iterable"));
  }
  return items;
}

absl::StatusOr<size_t> Length(const Value& value) {
  if (auto text = value.text()) return text->num_characters;
  if (auto dict = value.dict()) return dict->entries.size();
  if (auto loop = value.If<Loop*>()) return (*loop)->items->size();
  if (value.is_undefined()) return size_t{0};
  if (auto sequence = value.sequence();
      sequence && sequence->flavor != Sequence::Flavor::kGenerator) {
    return sequence->items.size();
  }
  return TypeError(
      StrCat("object of type '", TypeName(value), "' has no len()"));
}

absl::StatusOr<Value> GetAttribute(Runtime& runtime, const Value& object,
                                   std::string_view name) {
  if (auto undefined = object.If<Undefined>()) {
    return UndefinedError(*undefined);
  }
  if (auto loop = object.If<Loop*>()) {
    return LoopAttribute(runtime, object, **loop, name);
  }
  if (auto space = object.If<Namespace*>()) {
    RETURN_IF_ERROR(runtime.budget.Charge((*space)->attributes.size()));
    const Value* value = (*space)->Find(name);
    return value ? *value : NoAttribute(object, name);
  }
  switch (FindMethod(object, name)) {
    case MethodKind::kCallable:
      return NewMethod(runtime.budget, object, std::string(name));
    case MethodKind::kUnsafe:
      return Value::Missing(StrCat("access to attribute '", name, "' of '",
                                   TypeName(object), "' object is unsafe."));
    case MethodKind::kNone:
      break;
  }
  if (auto dict = object.dict()) {
    RETURN_IF_ERROR(runtime.budget.ChargeBytes(name.size()));
    const Value* value = dict->Find(Value::String(std::string(name)));
    if (value != nullptr) return *value;
  }
  return NoAttribute(object, name);
}

absl::StatusOr<Value> GetItem(Runtime& runtime, const Value& object,
                              const Value& key) {
  if (auto undefined = object.If<Undefined>()) {
    return UndefinedError(*undefined);
  }
  if (auto dict = object.dict(); dict && IsHashable(key)) {
    RETURN_IF_ERROR(runtime.budget.Charge(KeySteps(key)));
    const Value* value = dict->Find(key);
    if (value != nullptr) return *value;
  }
  Int index;
  if (AsInteger(key, &index)) {
    ASSIGN_OR_RETURN(std::optional<Value> item, ItemAt(runtime, object, index));
    if (item.has_value()) return *std::move(item);
    return Value::Missing(
        StrCat("'", Describe(object), "' has no item ", IntToText(index)));
  }
  if (auto text = key.text()) {
    return GetAttribute(runtime, object, text->bytes);
  }
  return Value::Missing(StrCat("'", Describe(object), "' has no item of type '",
                               TypeName(key), "'"));
}

absl::StatusOr<Value> GetSlice(Runtime& runtime, const Value& object,
                               const Value& start, const Value& stop,
                               const Value& step) {
  if (auto undefined = object.If<Undefined>()) {
    return UndefinedError(*undefined);
  }
  const auto text = object.text();
  const auto sequence = object.sequence();
  if (!text && (!sequence || sequence->flavor == Sequence::Flavor::kView ||
                sequence->flavor == Sequence::Flavor::kGenerator)) {
    return TypeError(
        StrCat("'", TypeName(object), "' object cannot be sliced"));
  }
  const size_t size = text ? text->num_characters : sequence->items.size();
  ASSIGN_OR_RETURN(SliceRange range,
                   SliceIndices(static_cast<Int>(size), start, stop, step));
  if (text && range.step == 1) {
    if (range.stop <= range.start) return Value::String("");
    RETURN_IF_ERROR(runtime.budget.ChargeBytes(text->bytes.size()));
    const auto offset = [&](Int index) {
      const auto at = static_cast<size_t>(index);
      return text->is_ascii() ? at : ByteOffset(text->bytes, at);
    };
    const size_t begin = offset(range.start);
    return NewString(runtime.budget,
                     text->bytes.substr(begin, offset(range.stop) - begin));
  }
  Items items;
  if (text) {
    ASSIGN_OR_RETURN(items, Iterate(runtime, object));
  }
  const std::vector<Value>& from = text ? *items : sequence->items;
  std::vector<Value> taken;
  for (Int i = range.start; range.step > 0 ? i < range.stop : i > range.stop;
       i += range.step) {
    taken.push_back(from[static_cast<size_t>(i)]);
  }
  if (sequence) {
    const auto flavor = sequence->flavor == Sequence::Flavor::kTuple
                            ? Sequence::Flavor::kTuple
                            : Sequence::Flavor::kList;
    return NewSequence(runtime.budget, flavor, std::move(taken));
  }
  std::string out;
  for (const Value& character : taken) out += character.text()->bytes;
  return NewString(runtime.budget, std::move(out));
}

absl::StatusOr<bool> Contains(Runtime& runtime, const Value& haystack,
                              const Value& needle) {
  if (auto text = haystack.text()) {
    if (!needle.text()) {
      return TypeError(
          StrCat("'in <string>' requires a string as left operand, not ",
                 TypeName(needle)));
    }
    const std::string& wanted = needle.text()->bytes;
    RETURN_IF_ERROR(
        runtime.budget.ChargeBytes(text->bytes.size() + wanted.size()));
    return FindFirst(text->bytes, wanted) != std::string_view::npos;
  }
  if (auto dict = haystack.dict()) {
    if (!IsHashable(needle)) {
      return TypeError(StrCat("unhashable type: '", TypeName(needle), "'"));
    }
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

}  // namespace moebius::jinja
