#include "coordinator/api/python_json.h"

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/numbers.h"
#include "common/base/cat.h"
#include "coordinator/text/json_integer.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Reads one value from the front of a text. Every method takes what it reads
// away from the front, and returns false if Python would refuse it.
class Reader {
 public:
  explicit Reader(std::string_view text) : rest_(text) {}

  bool Document(Json* out) {
    if (!Value(0, out)) return false;
    SkipSpace();
    return rest_.empty();
  }

 private:
  bool Value(int depth, Json* out) {
    SkipSpace();
    if (rest_.empty() || depth > kMaxPythonJsonDepth) return false;
    if (rest_[0] == '{') return Object(depth, out);
    if (rest_[0] == '[') return List(depth, out);
    if (rest_[0] == '"') {
      std::string text;
      if (!String(&text)) return false;
      *out = std::move(text);
      return true;
    }
    return Word(out) || Number(out);
  }

  bool Object(int depth, Json* out) {
    Json::object_t members;
    absl::flat_hash_map<std::string, size_t> places;
    if (Take('{') && !Take('}')) {
      do {
        std::string key;
        SkipSpace();
        if (!String(&key) || !Take(':')) return false;
        const auto [at, is_new] = places.try_emplace(key, members.size());
        if (is_new) members.emplace_back(std::move(key), nullptr);
        Json& value =
            (members.begin() + static_cast<ptrdiff_t>(at->second))->second;
        if (!Value(depth + 1, &value)) return false;
      } while (Take(','));
      if (!Take('}')) return false;
    }
    *out = std::move(members);
    return true;
  }

  bool List(int depth, Json* out) {
    Json::array_t items;
    if (Take('[') && !Take(']')) {
      do {
        items.emplace_back();
        if (!Value(depth + 1, &items.back())) return false;
      } while (Take(','));
      if (!Take(']')) return false;
    }
    *out = std::move(items);
    return true;
  }

  bool Word(Json* out) {
    if (IsDigit(rest_[0])) return false;
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const std::pair<std::string_view, Json> kWords[] = {
        {"true", true},
        {"false", false},
        {"null", nullptr},
        {"NaN", std::numeric_limits<double>::quiet_NaN()},
        {"Infinity", kInfinity},
        {"-Infinity", -kInfinity}};
    for (const auto& [word, value] : kWords) {
      if (!rest_.starts_with(word)) continue;
      rest_.remove_prefix(word.size());
      *out = value;
      return true;
    }
    return false;
  }

  bool Number(Json* out) {
    size_t size = rest_.starts_with('-') ? 1 : 0;
    const auto digits = [&] {
      const size_t begin = size;
      while (size < rest_.size() && IsDigit(rest_[size])) ++size;
      return size - begin;
    };
    if (size < rest_.size() && rest_[size] == '0') {
      ++size;
    } else if (digits() == 0) {
      return false;
    }
    const size_t integer_size = size;
    // A fraction or an exponent without digits is not part of the number.
    const auto part = [&](size_t prefix) {
      const size_t before = size;
      size += prefix;
      if (digits() == 0) size = before;
    };
    if (size < rest_.size() && rest_[size] == '.') part(1);
    if (size < rest_.size() && (rest_[size] | 0x20) == 'e') {
      const char sign = size + 1 < rest_.size() ? rest_[size + 1] : ' ';
      part(sign == '+' || sign == '-' ? 2 : 1);
    }
    const std::string_view text = rest_.substr(0, size);
    rest_.remove_prefix(size);
    *out = size == integer_size ? Integer(text) : Float(text);
    return true;
  }

  static Json Integer(std::string_view text) {
    const char* end = text.data() + text.size();
    int64_t number = 0;
    if (std::from_chars(text.data(), end, number).ec == std::errc()) {
      return number;
    }
    uint64_t large = 0;
    if (text[0] != '-' &&
        std::from_chars(text.data(), end, large).ec == std::errc()) {
      return large;
    }
    return LongInteger(text);
  }

  static Json Float(std::string_view text) {
    double number = 0;
    [[maybe_unused]] const bool read =
        absl::SimpleAtod(AbslView(text), &number);  // infinite when too large
    return number;
  }

  bool String(std::string* out) {
    if (!rest_.starts_with('"')) return false;
    rest_.remove_prefix(1);
    while (!rest_.empty() && rest_[0] != '"') {
      if (static_cast<unsigned char>(rest_[0]) < 0x20) return false;
      if (rest_[0] == '\\') {
        if (!Escape(out)) return false;
        continue;
      }
      out->push_back(rest_[0]);
      rest_.remove_prefix(1);
    }
    if (rest_.empty()) return false;
    rest_.remove_prefix(1);
    return true;
  }

  bool Escape(std::string* out) {
    constexpr std::string_view kLetters = "\"\\/bfnrt";
    constexpr std::string_view kMeant = "\"\\/\b\f\n\r\t";
    if (rest_.size() < 2) return false;
    const char letter = rest_[1];
    rest_.remove_prefix(2);
    if (letter == 'u') return Unicode(out);
    const size_t at = kLetters.find(letter);
    if (at == kLetters.npos) return false;
    out->push_back(kMeant[at]);
    return true;
  }

  // What stands behind "\u", and the second half of a surrogate pair.
  bool Unicode(std::string* out) {
    uint32_t unit = 0;
    if (!Hex(rest_, &unit)) return false;
    rest_.remove_prefix(4);
    uint32_t low = 0;
    if (unit >= 0xD800 && unit < 0xDC00 && rest_.starts_with("\\u") &&
        Hex(rest_.substr(2), &low) && low >= 0xDC00 && low < 0xE000) {
      rest_.remove_prefix(6);
      unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
    }
    const bool is_half = unit >= 0xD800 && unit < 0xE000;
    AppendUtf8(is_half ? kReplacement : unit, out);
    return true;
  }

  static bool Hex(std::string_view text, uint32_t* unit) {
    if (text.size() < 4) return false;
    const char* end = text.data() + 4;
    const auto read = std::from_chars(text.data(), end, *unit, 16);
    return read.ec == std::errc() && read.ptr == end;
  }

  // Whether `c` comes next, white space aside.
  bool Take(char c) {
    SkipSpace();
    if (!rest_.starts_with(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }

  void SkipSpace() {
    const size_t begin = rest_.find_first_not_of(" \t\n\r");
    rest_.remove_prefix(begin == rest_.npos ? rest_.size() : begin);
  }

  std::string_view rest_;
};

}  // namespace

std::optional<Json> ParsePythonJson(std::string_view text) {
  Json value;
  if (!IsValidUtf8(text) || !Reader(text).Document(&value)) {
    return std::nullopt;
  }
  return value;
}

}  // namespace moebius
