#include "coordinator/jinja/template_json.h"

#include <cmath>
#include <utility>
#include <vector>

#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/text/json_integer.h"
#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

ValueOr TextFromJson(Budget& budget, const std::string& bytes) {
  if (!IsValidUtf8(bytes)) {
    return absl::InvalidArgumentError("a string in the input is not UTF-8");
  }
  return NewString(budget, bytes);
}

ValueOr LongInteger(Budget& budget, std::string_view digits) {
  RETURN_IF_ERROR(budget.ChargeBytes(digits.size()));
  return Value(std::make_shared<const LongInt>(LongInt{std::string(digits)}));
}

// Writes values as JSON, or as Python's repr() shows them.
class Writer {
 public:
  // `style` is null for repr().
  Writer(Budget& budget, const JsonStyle* style)
      : budget_(budget), json_(style) {}

  absl::Status Write(const Value& value, int level) {
    RETURN_IF_ERROR(budget_.Charge(1));
    const Sequence* sequence = value.sequence();
    if (value.is_none()) {
      out_.append(json_ ? "null" : "None");
    } else if (auto flag = value.If<bool>()) {
      out_.append(*flag ? (json_ ? "true" : "True")
                        : (json_ ? "false" : "False"));
    } else if (auto integer = value.If<Int>()) {
      out_.append(Cat(*integer));
    } else if (auto digits = value.long_int()) {
      RETURN_IF_ERROR(budget_.ChargeBytes(digits->digits.size()));
      out_.append(digits->digits);
    } else if (auto number = value.If<double>()) {
      WriteFloat(*number);
    } else if (auto text = value.text()) {
      return WriteString(text->bytes);
    } else if (auto dict = value.dict()) {
      return WriteDict(*dict, level);
    } else if (sequence && sequence->is_list_or_tuple()) {
      return WriteList(*sequence, level);
    } else if (value.is_undefined() && !json_) {
      out_.append("Undefined");
    } else {
      return TypeError(
          Cat("an object of type '", TypeName(value),
              json_ ? "' is not JSON serializable" : "' cannot be printed"));
    }
    return absl::OkStatus();
  }

  std::string Take() { return std::move(out_); }

 private:
  void WriteFloat(double number) {
    if (json_ && std::isnan(number)) {
      out_.append("NaN");
    } else if (json_ && std::isinf(number)) {
      out_.append(number < 0 ? "-Infinity" : "Infinity");
    } else {
      out_.append(FloatToText(number));
    }
  }

  absl::Status WriteString(const std::string& bytes) {
    RETURN_IF_ERROR(budget_.ChargeBytes(bytes.size()));
    if (json_) {
      out_.append(Json(bytes).dump(/*indent=*/-1, ' ', json_->ensure_ascii,
                                   Json::error_handler_t::replace));
    } else {
      AppendQuoted(bytes, &out_);
    }
    return absl::OkStatus();
  }

  absl::Status Append(std::string_view text) {
    RETURN_IF_ERROR(budget_.ChargeBytes(text.size()));
    out_.append(text);
    return absl::OkStatus();
  }

  absl::Status Newline(int level) {
    if (!json_ || !json_->indent.has_value()) return absl::OkStatus();
    out_.push_back('\n');
    for (int i = 0; i < level; ++i) RETURN_IF_ERROR(Append(*json_->indent));
    return absl::OkStatus();
  }

  // What stands before the item or entry that is number `i`.
  absl::Status Begin(size_t i, int level) {
    if (i > 0) {
      RETURN_IF_ERROR(Append(json_ ? json_->item_separator : ", "));
    }
    return Newline(level + 1);
  }

  absl::Status WriteList(const Sequence& list, int level) {
    const bool is_tuple = !json_ && list.flavor == Sequence::Flavor::kTuple;
    out_.push_back(is_tuple ? '(' : '[');
    for (size_t i = 0; i < list.items.size(); ++i) {
      RETURN_IF_ERROR(Begin(i, level));
      RETURN_IF_ERROR(Write(list.items[i], level + 1));
    }
    if (!list.items.empty()) RETURN_IF_ERROR(Newline(level));
    if (is_tuple && list.items.size() == 1) out_.push_back(',');
    out_.push_back(is_tuple ? ')' : ']');
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict, int level) {
    out_.push_back('{');
    for (size_t i = 0; i < dict.entries.size(); ++i) {
      const auto& [key, value] = dict.entries[i];
      if (json_ && !key.text()) {
        return TypeError("only strings are supported as keys of JSON");
      }
      RETURN_IF_ERROR(Begin(i, level));
      RETURN_IF_ERROR(Write(key, level + 1));
      RETURN_IF_ERROR(Append(json_ ? json_->key_separator : ": "));
      RETURN_IF_ERROR(Write(value, level + 1));
    }
    if (!dict.entries.empty()) RETURN_IF_ERROR(Newline(level));
    out_.push_back('}');
    return absl::OkStatus();
  }

  Budget& budget_;
  const JsonStyle* const json_;
  std::string out_;
};

}  // namespace

ValueOr FromJson(Budget& budget, const Json& json, int depth) {
  RETURN_IF_ERROR(budget.Charge(1));
  if (depth > kMaxValueDepth) {
    return absl::InvalidArgumentError(
        Cat("the input is nested deeper than ", kMaxValueDepth));
  }
  switch (json.type()) {
    case Json::value_t::null:
      return Value();
    case Json::value_t::boolean:
      return Value::Bool(*json.get_ptr<const bool*>());
    case Json::value_t::number_integer:
      return Value::Integer(*json.get_ptr<const Json::number_integer_t*>());
    case Json::value_t::number_unsigned: {
      const auto number = *json.get_ptr<const Json::number_unsigned_t*>();
      if (std::in_range<Int>(number)) {
        return Value::Integer(static_cast<Int>(number));
      }
      return LongInteger(budget, Cat(number));
    }
    case Json::value_t::number_float:
      return Value::Float(*json.get_ptr<const double*>());
    case Json::value_t::string:
      return TextFromJson(budget, *json.get_ptr<const std::string*>());
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) {
        ASSIGN_OR_RETURN(Value value, FromJson(budget, item, depth + 1));
        items.push_back(std::move(value));
      }
      return NewSequence(budget, Sequence::Flavor::kList, std::move(items));
    }
    case Json::value_t::object: {
      std::vector<std::pair<Value, Value>> entries;
      entries.reserve(json.size());
      for (auto it = json.begin(); it != json.end(); ++it) {
        ASSIGN_OR_RETURN(Value key, TextFromJson(budget, it.key()));
        ASSIGN_OR_RETURN(Value value, FromJson(budget, it.value(), depth + 1));
        entries.emplace_back(std::move(key), std::move(value));
      }
      return NewDict(budget, std::move(entries));
    }
    case Json::value_t::binary:
      return LongInteger(budget, LongIntegerDigits(json));
    case Json::value_t::discarded:
      break;
  }
  return absl::InvalidArgumentError("the input is not JSON");
}

absl::StatusOr<std::string> ToJson(Budget& budget, const Value& value,
                                   const JsonStyle& style) {
  Writer writer(budget, &style);
  RETURN_IF_ERROR(writer.Write(value, 0));
  return writer.Take();
}

absl::StatusOr<std::string> ToText(Budget& budget, const Value& value) {
  if (auto text = value.text()) {
    RETURN_IF_ERROR(budget.ChargeBytes(text->bytes.size()));
    return text->bytes;
  }
  Writer writer(budget, nullptr);
  if (!value.is_undefined()) RETURN_IF_ERROR(writer.Write(value, 0));
  return writer.Take();
}

}  // namespace moebius::jinja
