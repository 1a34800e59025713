#include "coordinator/jinja/template_json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

#include "common/base/status_macros.h"
#include "coordinator/jinja/template_strings.h"
#include "coordinator/text/json_integer.h"
#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

absl::StatusOr<Value> TextFromJson(Budget& budget, const std::string& bytes) {
  if (!IsValidUtf8(bytes)) {
    return absl::InvalidArgumentError("a string in the input is not UTF-8");
  }
  return NewString(budget, bytes);
}

absl::StatusOr<Value> IntegerFromDigits(Budget& budget,
                                        std::string_view digits) {
  RETURN_IF_ERROR(budget.ChargeBytes(digits.size()));
  const bool negative = digits.starts_with('-');
  const std::string_view magnitude = digits.substr(negative ? 1 : 0);
  if (magnitude.size() > kMaxIntDigits) {
    return Value(std::make_shared<const LongInt>(LongInt{std::string(digits)}));
  }
  Int value = 0;
  for (const char digit : magnitude) value = value * 10 + (digit - '0');
  return Value::Integer(negative ? -value : value);
}

absl::StatusOr<Value> Convert(Budget& budget, const Json& json, int depth) {
  RETURN_IF_ERROR(budget.Charge(1));
  if (depth > kMaxValueDepth) {
    return absl::InvalidArgumentError(
        StrCat("the input is nested deeper than ", kMaxValueDepth));
  }
  switch (json.type()) {
    case Json::value_t::null:
      return Value();
    case Json::value_t::boolean:
      return Value::Bool(*json.get_ptr<const bool*>());
    case Json::value_t::number_integer:
      return Value::Integer(*json.get_ptr<const Json::number_integer_t*>());
    case Json::value_t::number_unsigned:
      return Value::Integer(*json.get_ptr<const Json::number_unsigned_t*>());
    case Json::value_t::number_float:
      return Value::Float(*json.get_ptr<const double*>());
    case Json::value_t::string:
      return TextFromJson(budget, *json.get_ptr<const std::string*>());
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) {
        ASSIGN_OR_RETURN(Value value, Convert(budget, item, depth + 1));
        items.push_back(std::move(value));
      }
      return NewSequence(budget, Sequence::Flavor::kList, std::move(items));
    }
    case Json::value_t::object: {
      std::vector<std::pair<Value, Value>> entries;
      entries.reserve(json.size());
      for (auto it = json.begin(); it != json.end(); ++it) {
        ASSIGN_OR_RETURN(Value key, TextFromJson(budget, it.key()));
        ASSIGN_OR_RETURN(Value value, Convert(budget, it.value(), depth + 1));
        entries.emplace_back(std::move(key), std::move(value));
      }
      return NewDict(budget, std::move(entries));
    }
    case Json::value_t::binary:
      return IntegerFromDigits(budget, LongIntegerDigits(json));
    case Json::value_t::discarded:
      break;
  }
  return absl::InvalidArgumentError("the input is not JSON");
}

class Writer {
 public:
  Writer(Budget& budget, const JsonStyle& style)
      : budget_(budget), style_(style) {}

  absl::Status Write(const Value& value, int level) {
    RETURN_IF_ERROR(budget_.Charge(1));
    if (value.is_none()) {
      out_.append("null");
    } else if (auto flag = value.If<bool>()) {
      out_.append(*flag ? "true" : "false");
    } else if (auto integer = value.If<Int>()) {
      out_.append(IntToText(*integer));
    } else if (auto digits = value.long_int()) {
      RETURN_IF_ERROR(budget_.ChargeBytes(digits->digits.size()));
      out_.append(digits->digits);
    } else if (auto number = value.If<double>()) {
      WriteFloat(*number);
    } else if (auto text = value.text()) {
      return WriteString(text->bytes);
    } else if (auto dict = value.dict()) {
      return WriteDict(*dict, level);
    } else if (auto sequence = value.sequence();
               sequence && (sequence->flavor == Sequence::Flavor::kList ||
                            sequence->flavor == Sequence::Flavor::kTuple)) {
      return WriteList(*sequence, level);
    } else {
      return TypeError(StrCat("Object of type ", TypeName(value),
                              " is not JSON serializable"));
    }
    return absl::OkStatus();
  }

  std::string Take() { return std::move(out_); }

 private:
  void WriteFloat(double number) {
    if (std::isnan(number)) {
      out_.append("NaN");
    } else if (std::isinf(number)) {
      out_.append(number < 0 ? "-Infinity" : "Infinity");
    } else {
      out_.append(FloatToText(number));
    }
  }

  absl::Status WriteString(const std::string& bytes) {
    RETURN_IF_ERROR(budget_.ChargeBytes(bytes.size()));
    out_.push_back('"');
    for (size_t at = 0; at < bytes.size();) {
      const CodePoint c = ReadCodePoint(bytes.data() + at);
      WriteCharacter(c.value, std::string_view(bytes).substr(at, c.size_bytes));
      at += c.size_bytes;
    }
    out_.push_back('"');
    return absl::OkStatus();
  }

  void WriteCharacter(char32_t c, std::string_view bytes) {
    static constexpr std::string_view kPlain = "\"\\\b\f\n\r\t";
    static constexpr std::string_view kLetter = "\"\\bfnrt";
    const size_t short_form =
        c < 0x80 ? kPlain.find(static_cast<char>(c)) : std::string_view::npos;
    if (short_form != std::string_view::npos) {
      out_.push_back('\\');
      out_.push_back(kLetter[short_form]);
    } else if (c < 0x20 || (style_.ensure_ascii && c > 0x7E)) {
      if (c > 0xFFFF) {  // a pair of surrogates
        Escape(0xD800 + ((c - 0x10000) >> 10));
        Escape(0xDC00 + ((c - 0x10000) & 0x3FF));
      } else {
        Escape(c);
      }
    } else {
      out_.append(bytes);
    }
  }

  void Escape(char32_t unit) {
    char escape[16];
    std::snprintf(escape, sizeof(escape), "\\u%04x",
                  static_cast<unsigned>(unit));
    out_.append(escape);
  }

  absl::Status Newline(int level) {
    if (!style_.indent.has_value()) return absl::OkStatus();
    RETURN_IF_ERROR(budget_.ChargeBytes(style_.indent->size() * level));
    out_.push_back('\n');
    for (int i = 0; i < level; ++i) out_.append(*style_.indent);
    return absl::OkStatus();
  }

  absl::Status WriteList(const Sequence& list, int level) {
    out_.push_back('[');
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) RETURN_IF_ERROR(Separate());
      RETURN_IF_ERROR(Newline(level + 1));
      RETURN_IF_ERROR(Write(list.items[i], level + 1));
    }
    if (!list.items.empty()) RETURN_IF_ERROR(Newline(level));
    out_.push_back(']');
    return absl::OkStatus();
  }

  absl::Status Separate() {
    RETURN_IF_ERROR(budget_.ChargeBytes(style_.item_separator.size()));
    out_.append(style_.item_separator);
    return absl::OkStatus();
  }

  // Python turns numbers, booleans and None that are keys into strings.
  absl::StatusOr<std::string> KeyText(const Value& key) {
    if (auto text = key.text()) return text->bytes;
    if (key.is_none()) return std::string("null");
    if (auto flag = key.If<bool>())
      return std::string(*flag ? "true" : "false");
    if (auto integer = key.If<Int>()) return IntToText(*integer);
    if (auto number = key.If<double>()) return FloatToText(*number);
    return TypeError(StrCat("keys must be str, int, float, bool or None, not ",
                            TypeName(key)));
  }

  absl::Status WriteDict(const Dict& dict, int level) {
    std::vector<size_t> order(dict.entries.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (style_.sort_keys) RETURN_IF_ERROR(SortKeys(dict, &order));
    out_.push_back('{');
    for (size_t i = 0; i < order.size(); ++i) {
      const auto& [key, value] = dict.entries[order[i]];
      if (i > 0) RETURN_IF_ERROR(Separate());
      RETURN_IF_ERROR(Newline(level + 1));
      ASSIGN_OR_RETURN(std::string name, KeyText(key));
      RETURN_IF_ERROR(WriteString(name));
      RETURN_IF_ERROR(budget_.ChargeBytes(style_.key_separator.size()));
      out_.append(style_.key_separator);
      RETURN_IF_ERROR(Write(value, level + 1));
    }
    if (!order.empty()) RETURN_IF_ERROR(Newline(level));
    out_.push_back('}');
    return absl::OkStatus();
  }

  absl::Status SortKeys(const Dict& dict, std::vector<size_t>* order) {
    // The budget pays for the comparisons first, so that the sort need not
    // stop midway: what n log n short ones cost.
    RETURN_IF_ERROR(budget_.Charge(order->size() * 64));
    for (const auto& entry : dict.entries) {
      if (!entry.first.text() && !entry.first.If<Int>()) {
        return TypeError("only strings or integers can be sorted as keys");
      }
      if (entry.first.rep().index() != dict.entries[0].first.rep().index()) {
        return TypeError("keys of different types cannot be sorted");
      }
    }
    std::stable_sort(order->begin(), order->end(), [&](size_t i, size_t j) {
      const Value &a = dict.entries[i].first, &b = dict.entries[j].first;
      if (a.text()) return a.text()->bytes < b.text()->bytes;
      return *a.If<Int>() < *b.If<Int>();
    });
    return absl::OkStatus();
  }

  Budget& budget_;
  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

absl::StatusOr<Value> FromJson(Budget& budget, const Json& json) {
  return Convert(budget, json, 0);
}

absl::StatusOr<std::string> ToJson(Budget& budget, const Value& value,
                                   const JsonStyle& style) {
  Writer writer(budget, style);
  RETURN_IF_ERROR(writer.Write(value, 0));
  return writer.Take();
}

}  // namespace moebius::jinja
