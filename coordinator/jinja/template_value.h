// Values of the template language. They are Python's, since published
// templates are written against Python: integers and booleans are numbers,
// strings are sequences of code points, dicts keep the order of insertion.
//
// All values but namespaces are immutable, as they are in the sandbox that
// Hugging Face renders templates in (list.append and the like are refused).
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/jinja/template_limits.h"

namespace moebius::jinja {

// Python's integers have no bounds; ours refuse to leave 64 bits. Longer ones
// of the input are kept as LongInt.
using Int = int64_t;

class Value;
struct Text;
struct Sequence;
struct Dict;
struct BoundMethod;
struct LongInt;
struct Namespace;  // template_runtime.h
struct Loop;       // template_runtime.h
struct Macro;      // template_evaluator.h
struct Builtin;    // template_builtins.h

// A name, attribute or item that is not there. It prints as nothing, is false
// and iterates over nothing; all else done with it is the error `reason`.
struct Undefined {
  std::shared_ptr<const std::string> reason;

  bool operator==(const Undefined&) const { return true; }
};

struct None {
  bool operator==(const None&) const = default;
};

// Value
//
// Cheap to copy: contents are shared. Namespaces, loops and macros belong to
// the rendering they were made in, and so do values that refer to them.
// Threading: thread-compatible; constants of a parsed template are shared
// between renderings.
class Value {
 public:
  using Rep = std::variant<
      Undefined, None, bool, Int, double, std::shared_ptr<const Text>,
      std::shared_ptr<const Sequence>, std::shared_ptr<const Dict>,
      std::shared_ptr<const BoundMethod>, std::shared_ptr<const LongInt>,
      Namespace*, Loop*, const Macro*, const Builtin*>;

  Value() : rep_(None{}) {}
  explicit Value(Rep rep) : rep_(std::move(rep)) {}

  static Value Bool(bool value) { return Value(Rep(value)); }
  static Value Integer(Int value) { return Value(Rep(value)); }
  static Value Float(double value) { return Value(Rep(value)); }
  static Value Missing(std::string reason);
  // A string that no budget pays for: constants, short words.
  // REQUIRES: valid UTF-8.
  static Value String(std::string bytes);

  template <typename T>
  const T* If() const {
    return std::get_if<T>(&rep_);
  }
  const Text* text() const { return Pointee<Text>(); }
  const Sequence* sequence() const { return Pointee<Sequence>(); }
  const Dict* dict() const { return Pointee<Dict>(); }
  const BoundMethod* method() const { return Pointee<BoundMethod>(); }
  const LongInt* long_int() const { return Pointee<LongInt>(); }
  bool is_undefined() const { return If<Undefined>() != nullptr; }
  bool is_none() const { return If<None>() != nullptr; }
  bool is_callable() const;

  const Rep& rep() const { return rep_; }

 private:
  template <typename T>
  const T* Pointee() const {
    auto pointer = std::get_if<std::shared_ptr<const T>>(&rep_);
    return pointer ? pointer->get() : nullptr;
  }

  Rep rep_;
};

struct Text {
  std::string bytes;      // valid UTF-8
  size_t num_characters;  // code points
};

struct Sequence {
  enum class Flavor {
    kList,
    kTuple,
    kRange,      // a list that cannot be printed
    kView,       // of a dict: has a length, cannot be indexed or printed
    kGenerator,  // what map() and select() give: always true, no length, once
  };

  Flavor flavor;
  std::vector<Value> items;
  int depth = 1;              // 1 + the deepest item's
  mutable bool used = false;  // kGenerator: iterated over already

  bool is_list_or_tuple() const {
    return flavor == Flavor::kList || flavor == Flavor::kTuple;
  }
  bool has_items() const {  // at places that can be named
    return flavor != Flavor::kView && flavor != Flavor::kGenerator;
  }
};

// Python's hash and equality of keys: 1, 1.0 and True are one key.
struct KeyHash {
  size_t operator()(const Value& key) const;
};
struct KeyEqual {
  bool operator()(const Value& a, const Value& b) const;
};

struct Dict {
  std::vector<std::pair<Value, Value>> entries;  // in order of insertion
  absl::flat_hash_map<Value, size_t, KeyHash, KeyEqual> index;
  int depth = 1;

  // The value at `key`, or null.
  const Value* Find(const Value& key) const;
};

// A method with what it was taken from: `message.content.strip`.
struct BoundMethod {
  BoundMethod(const Builtin& builtin, Value receiver)
      : builtin(builtin), receiver(std::move(receiver)) {}

  const Builtin& builtin;
  Value receiver;
};

// An integer of the input that no Int holds: it prints as it is spelled and is
// an integer to tests, but takes part in no arithmetic.
struct LongInt {
  std::string digits;
};

using ValueOr = absl::StatusOr<Value>;

// Makers. Each takes what it costs from the budget. Errors:
// kInvalidArgument if the budget is short or the value would be deeper than
// kMaxValueDepth.
ValueOr NewString(Budget& budget, std::string bytes);
ValueOr NewSequence(Budget& budget, Sequence::Flavor flavor,
                    std::vector<Value> items);
// A key given again keeps its place and takes the later value. Errors also
// for keys that Python cannot hash.
ValueOr NewDict(Budget& budget, std::vector<std::pair<Value, Value>> entries);

// "str", "int", "NoneType" ... as Python names the types.
std::string_view TypeName(const Value& value);

// Errors: it may not be a key. Python's tuples may, ours are refused.
absl::Status CheckHashable(const Value& value);

// What hashing or comparing a key costs: to be paid before every look-up.
size_t KeySteps(const Value& value);

// bool(value).
bool IsTrue(const Value& value);

// The number that a bool or an int is; none for all else.
std::optional<Int> AsInteger(const Value& value);
// Also for floats.
std::optional<double> AsNumber(const Value& value);

// a == b.
absl::StatusOr<bool> Equal(Budget& budget, const Value& a, const Value& b);

// How numbers and strings stand to each other; NaN to nothing. Errors: types
// that Python does not order, and lists.
absl::StatusOr<std::partial_ordering> Order(Budget& budget, const Value& a,
                                            const Value& b);

// str(value): what {{ value }} prints (template_json.cc). Errors: budget;
// ranges, views of dicts, generators and functions, whose text no prompt wants.
absl::StatusOr<std::string> ToText(Budget& budget, const Value& value);

// repr() of a float: the shortest digits that read back as `value`.
std::string FloatToText(double value);

absl::Status TypeError(std::string_view message);
// What else is done with an undefined value: its reason. TypeError(message)
// for any other.
absl::Status TypeErrorOf(const Value& value, std::string_view message);

}  // namespace moebius::jinja
