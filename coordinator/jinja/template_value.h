// Values of the template language. They are Python's, since published
// templates are written against Python: integers and booleans are numbers,
// strings are sequences of code points, dicts keep the order of insertion.
//
// All values but namespaces are immutable, as they are in the sandbox that
// Hugging Face renders templates in (list.append and the like are refused).
#pragma once

#include <cstddef>
#include <memory>
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

// Python's integers have no bounds; ours refuse to leave 127 bits. (JSON
// carries unsigned 64-bit numbers, which must survive.)
using Int = __int128;

// What an Int holds whatever the digits are.
inline constexpr size_t kMaxIntDigits = 37;

class Value;
struct Text;
struct Sequence;
struct Dict;
struct BoundMethod;
struct LongInt;
struct Namespace;  // template_runtime.h
struct Loop;       // template_runtime.h
struct Macro;      // template_evaluator.h

// A name, attribute or item that is not there. It prints as nothing, is false
// and iterates over nothing; all else done with it is the error `reason`.
struct Undefined {
  std::shared_ptr<const std::string> reason;
};

struct None {};

// Functions that every template sees.
enum class GlobalFunction {
  kRange,
  kDict,
  kNamespace,
  kRaiseException,
  kStrftimeNow,
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
      Namespace*, Loop*, const Macro*, GlobalFunction>;

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

  bool is_ascii() const { return bytes.size() == num_characters; }
};

struct Sequence {
  enum class Flavor {
    kList,
    kTuple,
    kRange,      // prints as its arguments
    kView,       // of a dict: has a length, cannot be indexed
    kGenerator,  // what map() and select() give: always true, no length, once
  };

  Flavor flavor;
  std::vector<Value> items;
  int depth = 1;              // 1 + the deepest item's
  bool hashable = false;      // a tuple of what can be a key
  size_t key_steps = 1;       // see KeySteps()
  std::string label;          // kRange, kView: how it prints
  mutable bool used = false;  // kGenerator: iterated over already
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
  Value receiver;
  std::string name;
  int depth;
};

// An integer of the input that no Int holds: it prints as it is spelled and is
// an integer to tests, but takes part in no arithmetic.
struct LongInt {
  std::string digits;
};

// Makers. Each takes what it costs from the budget. Errors:
// kInvalidArgument if the budget is short or the value would be deeper than
// kMaxValueDepth.
absl::StatusOr<Value> NewString(Budget& budget, std::string bytes);
absl::StatusOr<Value> NewSequence(Budget& budget, Sequence::Flavor flavor,
                                  std::vector<Value> items,
                                  std::string label = "");
// A key given again keeps its place and takes the later value. Errors also
// for keys that Python cannot hash.
absl::StatusOr<Value> NewDict(Budget& budget,
                              std::vector<std::pair<Value, Value>> entries);
absl::StatusOr<Value> NewMethod(Budget& budget, Value receiver,
                                std::string name);

// "str", "int", "NoneType" ... as Python names the types.
std::string_view TypeName(const Value& value);

// Whether Python could use it as a dict key.
bool IsHashable(const Value& value);

// What hashing or comparing a key costs. Tuples may share their parts, so
// that a look into a few of them can take long: charge this before every
// look-up.
size_t KeySteps(const Value& value);

// bool(value).
bool IsTrue(const Value& value);

// The number that a bool or an int is; false for all else.
bool AsInteger(const Value& value, Int* out);
// Also for floats.
bool AsNumber(const Value& value, double* out);

// a == b.
absl::StatusOr<bool> Equal(Budget& budget, const Value& a, const Value& b);

// a < b. Errors: types that Python does not order.
absl::StatusOr<bool> Less(Budget& budget, const Value& a, const Value& b);
// a <= b; for numbers not the same as !(b < a), since NaN is neither.
absl::StatusOr<bool> LessOrEqual(Budget& budget, const Value& a,
                                 const Value& b);

// str(value) and repr(value). Errors: budget.
absl::StatusOr<std::string> ToText(Budget& budget, const Value& value);
absl::StatusOr<std::string> ToRepr(Budget& budget, const Value& value);

std::string IntToText(Int value);
// repr() of a float: the shortest digits that read back as `value`.
std::string FloatToText(double value);

absl::Status UndefinedError(const Undefined& undefined);
absl::Status TypeError(std::string_view message);

}  // namespace moebius::jinja
