#include "coordinator/api/json_input.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "common/base/cat.h"
#include "coordinator/text/json_integer.h"
#include "coordinator/text/json_text.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

// Objects up to this many keys are searched for repeated keys one by one.
constexpr size_t kFewKeys = 16;
constexpr size_t kMaxKeyShown = 64;

// Builds the value and enforces the bounds. Returning false ends the parse.
class Builder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t& spelled) override {
    if (!std::isfinite(value)) return Fail("a number is out of range");
    if (spelled.find_first_of(".eE") == spelled.npos) {
      return Add(LongInteger(spelled));
    }
    return Add(value);
  }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t&) override { return Fail("binary values are no JSON"); }

  bool start_object(std::size_t) override { return Open(Json::object()); }
  bool start_array(std::size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& value) override {
    Frame& frame = open_.back();
    auto& members = *frame.value->get_ptr<Json::object_t*>();
    if (members.size() >= kMaxJsonKeys) {
      return Fail(Cat("an object has more than ", kMaxJsonKeys, " keys"));
    }
    if (IsRepeated(members, frame, value)) {
      return Fail(Cat("the key \"", RepairUtf8(value.substr(0, kMaxKeyShown)),
                      "\" is given twice"));
    }
    members.emplace_back(std::move(value), nullptr);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    if (!error_.empty()) return false;
    const std::string_view what = e.what();
    // nlohmann's numbers: 406 is a number no double can hold.
    const char* why = e.id == 406 ? "a number is out of range"
                      : what.find("UTF-8") != what.npos ? "invalid UTF-8"
                                                        : "syntax error";
    return Fail(Cat(why, " at byte ", position));
  }

  const std::string& error() const { return error_; }
  Json TakeResult() { return std::move(root_); }

 private:
  struct Frame {
    Json* value;
    absl::flat_hash_set<std::string> keys;  // once there are many
  };

  static bool IsRepeated(const Json::object_t& members, Frame& frame,
                         const std::string& key) {
    if (members.size() < kFewKeys) {
      for (const auto& member : members) {
        if (member.first == key) return true;
      }
      return false;
    }
    if (frame.keys.empty()) {
      for (const auto& member : members) frame.keys.insert(member.first);
    }
    return !frame.keys.insert(key).second;
  }

  bool Fail(std::string error) {
    if (error_.empty()) error_ = std::move(error);
    return false;
  }

  // Puts `value` where the parse stands and returns its place, which holds
  // until its container grows.
  template <typename T>
  Json* Place(T&& value) {
    if (open_.empty()) {
      root_ = std::forward<T>(value);
      return &root_;
    }
    Json& parent = *open_.back().value;
    if (auto* array = parent.get_ptr<Json::array_t*>()) {
      array->emplace_back(std::forward<T>(value));
      return &array->back();
    }
    auto& members = *parent.get_ptr<Json::object_t*>();
    members.back().second = std::forward<T>(value);
    return &members.back().second;
  }

  template <typename T>
  bool Add(T&& value) {
    Place(std::forward<T>(value));
    return true;
  }

  bool Open(Json value) {
    if (open_.size() >= kMaxJsonDepth) {
      return Fail(Cat("nested more than ", kMaxJsonDepth, " levels deep"));
    }
    Json* place = Place(std::move(value));
    open_.push_back(Frame{place, {}});
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Frame> open_;
  std::string error_;
};

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text) {
  Builder builder;
  const bool ok = Json::sax_parse(text.begin(), text.end(), &builder);
  if (!ok || !builder.error().empty()) {
    return absl::InvalidArgumentError(Cat("not valid JSON: ", builder.error()));
  }
  return builder.TakeResult();
}

}  // namespace moebius
