// Python's arithmetic on values.
#include <algorithm>
#include <cmath>
#include <string>

#include "common/base/status_macros.h"
#include "coordinator/jinja/template_runtime.h"
#include "coordinator/jinja/template_strings.h"

namespace moebius::jinja {
namespace {

absl::Status Unsupported(std::string_view op, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b}) {
    if (auto undefined = value->If<Undefined>()) {
      return UndefinedError(*undefined);
    }
  }
  return TypeError(StrCat("unsupported operand types for ", op, ": '",
                          TypeName(a), "' and '", TypeName(b), "'"));
}

absl::Status TooLarge() { return TypeError("the integer is too large"); }
absl::Status ByZero() { return TypeError("division by zero"); }

// Calls `integer` if both are integers, `real` if both are numbers.
template <typename IntegerOp, typename RealOp>
absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& a,
                                 const Value& b, IntegerOp integer,
                                 RealOp real) {
  Int i, j;
  if (AsInteger(a, &i) && AsInteger(b, &j)) return integer(i, j);
  double x, y;
  if (AsNumber(a, &x) && AsNumber(b, &y)) return real(x, y);
  return Unsupported(op, a, b);
}

// Python's % has the sign of the divisor.
double FloatModulo(double x, double y) {
  double rest = std::fmod(x, y);
  if (rest == 0) return std::copysign(0.0, y);
  if ((rest < 0) != (y < 0)) rest += y;
  return rest;
}

absl::StatusOr<Value> IntegerPower(Int base, Int exponent) {
  if (exponent < 0) {
    if (base == 0) return TypeError("0 cannot be raised to a negative power");
    return Value::Float(
        std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  Int result = 1;
  while (exponent > 0) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) {
      return TooLarge();
    }
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) {
      return TooLarge();
    }
  }
  return Value::Integer(result);
}

absl::StatusOr<Value> RepeatString(Runtime& runtime, const std::string& bytes,
                                   Int count) {
  if (count <= 0 || bytes.empty()) return Value::String("");
  const auto size = static_cast<Int>(bytes.size());
  if (count > static_cast<Int>(kMaxSteps * kBytesPerStep) / size) {
    return TypeError("the repeated string is too long");
  }
  const auto times = static_cast<size_t>(count);
  RETURN_IF_ERROR(runtime.budget.ChargeBytes(bytes.size() * times));
  std::string out;
  out.reserve(bytes.size() * times);
  for (size_t i = 0; i < times; ++i) out += bytes;
  return Value::String(std::move(out));
}

absl::StatusOr<Value> RepeatSequence(Runtime& runtime, const Sequence& sequence,
                                     Int count) {
  std::vector<Value> items;
  if (count > 0 && !sequence.items.empty()) {
    const auto size = static_cast<Int>(sequence.items.size());
    if (count > static_cast<Int>(kMaxSteps) / size) {
      return TypeError("the repeated list is too long");
    }
    RETURN_IF_ERROR(runtime.budget.Charge(static_cast<size_t>(count * size)));
    for (Int i = 0; i < count; ++i) {
      items.insert(items.end(), sequence.items.begin(), sequence.items.end());
    }
  }
  return NewSequence(runtime.budget, sequence.flavor, std::move(items));
}

bool IsListOrTuple(const Value& value) {
  const auto sequence = value.sequence();
  return sequence && (sequence->flavor == Sequence::Flavor::kList ||
                      sequence->flavor == Sequence::Flavor::kTuple);
}

}  // namespace

absl::StatusOr<Value> Add(Runtime& runtime, const Value& a, const Value& b) {
  if (a.text() && b.text()) {
    const std::string &x = a.text()->bytes, &y = b.text()->bytes;
    RETURN_IF_ERROR(runtime.budget.ChargeBytes(x.size() + y.size()));
    return Value::String(x + y);
  }
  if (IsListOrTuple(a) && IsListOrTuple(b) &&
      a.sequence()->flavor == b.sequence()->flavor) {
    RETURN_IF_ERROR(runtime.budget.Charge(a.sequence()->items.size() +
                                          b.sequence()->items.size()));
    std::vector<Value> items = a.sequence()->items;
    items.insert(items.end(), b.sequence()->items.begin(),
                 b.sequence()->items.end());
    return NewSequence(runtime.budget, a.sequence()->flavor, std::move(items));
  }
  return Arithmetic(
      "+", a, b,
      [](Int i, Int j) -> absl::StatusOr<Value> {
        if (__builtin_add_overflow(i, j, &i)) return TooLarge();
        return Value::Integer(i);
      },
      [](double x, double y) { return Value::Float(x + y); });
}

absl::StatusOr<Value> Subtract(const Value& a, const Value& b) {
  return Arithmetic(
      "-", a, b,
      [](Int i, Int j) -> absl::StatusOr<Value> {
        if (__builtin_sub_overflow(i, j, &i)) return TooLarge();
        return Value::Integer(i);
      },
      [](double x, double y) { return Value::Float(x - y); });
}

absl::StatusOr<Value> Multiply(Runtime& runtime, const Value& a,
                               const Value& b) {
  for (const auto& [what, times] : {std::pair(&a, &b), std::pair(&b, &a)}) {
    Int count;
    if (!AsInteger(*times, &count)) continue;
    if (what->text()) return RepeatString(runtime, what->text()->bytes, count);
    if (IsListOrTuple(*what)) {
      return RepeatSequence(runtime, *what->sequence(), count);
    }
  }
  return Arithmetic(
      "*", a, b,
      [](Int i, Int j) -> absl::StatusOr<Value> {
        if (__builtin_mul_overflow(i, j, &i)) return TooLarge();
        return Value::Integer(i);
      },
      [](double x, double y) { return Value::Float(x * y); });
}

absl::StatusOr<Value> Divide(const Value& a, const Value& b) {
  double x, y;
  if (!AsNumber(a, &x) || !AsNumber(b, &y)) return Unsupported("/", a, b);
  if (y == 0) return ByZero();
  return Value::Float(x / y);
}

absl::StatusOr<Value> FloorDivide(const Value& a, const Value& b) {
  return Arithmetic(
      "//", a, b,
      [](Int i, Int j) -> absl::StatusOr<Value> {
        if (j == 0) return ByZero();
        if (j == -1) {
          if (__builtin_sub_overflow(Int{0}, i, &i)) return TooLarge();
          return Value::Integer(i);
        }
        Int quotient = i / j;
        if (i % j != 0 && (i < 0) != (j < 0)) --quotient;
        return Value::Integer(quotient);
      },
      [](double x, double y) -> absl::StatusOr<Value> {
        if (y == 0) return ByZero();
        // As CPython: from the exact remainder, since x / y may round up.
        const double quotient = (x - FloatModulo(x, y)) / y;
        if (quotient == 0) return Value::Float(std::copysign(0.0, x / y));
        const double floor = std::floor(quotient);
        return Value::Float(quotient - floor > 0.5 ? floor + 1 : floor);
      });
}

absl::StatusOr<Value> Modulo(Runtime& runtime, const Value& a, const Value& b) {
  if (auto text = a.text()) {
    std::vector<Value> values = {b};
    if (auto tuple = b.sequence();
        tuple && tuple->flavor == Sequence::Flavor::kTuple) {
      values = tuple->items;
    }
    ASSIGN_OR_RETURN(std::string out,
                     FormatPercent(runtime, text->bytes, values, b));
    return NewString(runtime.budget, std::move(out));
  }
  return Arithmetic(
      "%", a, b,
      [](Int i, Int j) -> absl::StatusOr<Value> {
        if (j == 0) return ByZero();
        if (j == -1) return Value::Integer(0);
        Int rest = i % j;
        if (rest != 0 && (rest < 0) != (j < 0)) rest += j;
        return Value::Integer(rest);
      },
      [](double x, double y) -> absl::StatusOr<Value> {
        if (y == 0) return ByZero();
        return Value::Float(FloatModulo(x, y));
      });
}

absl::StatusOr<Value> Power(const Value& a, const Value& b) {
  return Arithmetic(
      "**", a, b, IntegerPower,
      [](double x, double y) -> absl::StatusOr<Value> {
        if (x == 0 && y < 0) {
          return TypeError("0 cannot be raised to a negative power");
        }
        const double result = std::pow(x, y);
        if (std::isnan(result) && !std::isnan(x) && !std::isnan(y)) {
          return TypeError("complex numbers are not supported");
        }
        if (std::isinf(result) && std::isfinite(x) && std::isfinite(y)) {
          return TypeError("the number is too large");
        }
        return Value::Float(result);
      });
}

absl::StatusOr<Value> Negate(const Value& a) {
  if (auto number = a.If<double>()) return Value::Float(-*number);
  return Subtract(Value::Integer(0), a);
}

}  // namespace moebius::jinja
