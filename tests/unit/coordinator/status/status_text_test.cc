// What /status says is what its header says that it says.
#include "coordinator/status/status_text.h"

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

#include "common/base/files.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using Json = nlohmann::json;
// "a.b" is b in the object a; "a[].b" that of the objects in the list a.
using Keys = std::set<std::string>;

void AddKeys(const Json& value, const std::string& path, Keys& keys) {
  if (value.is_array()) {
    for (const Json& item : value) AddKeys(item, path + "[]", keys);
  }
  if (!value.is_object()) return;
  for (const auto& [name, inner] : value.items()) {
    const std::string key = path.empty() ? name : path + "." + name;
    keys.insert(key);
    AddKeys(inner, key, keys);
  }
}

Keys KeysOf(std::string_view json) {
  Keys keys;
  AddKeys(Json::parse(json), "", keys);
  return keys;
}

// The keys of a description: JSON in which a key may lack its value, and a
// value may be words about it.
class Description {
 public:
  explicit Description(std::string_view text) : text_(text) {}

  Keys Read() {
    Object("");
    return std::move(keys_);
  }

 private:
  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void Object(const std::string& path) {
    ++at_;  // {
    while (at_ < text_.size() && Peek() != '}') {
      if (Peek() != '"') {
        ++at_;
        continue;
      }
      const size_t end = text_.find('"', at_ + 1);
      const std::string name(text_.substr(at_ + 1, end - at_ - 1));
      const std::string key = path.empty() ? name : path + "." + name;
      EXPECT_TRUE(keys_.insert(key).second) << key << " is there twice";
      at_ = end + 1;
      if (Peek() == ':') Value(key);
    }
    ++at_;
  }

  // Up to the comma or the bracket behind it.
  void Value(std::string path) {
    while (at_ < text_.size() && Peek() != ',' && Peek() != '}') {
      if (Peek() == '[') path += "[]";
      if (Peek() == '{') {
        Object(path);
      } else {
        ++at_;
      }
    }
  }

  std::string_view text_;
  size_t at_ = 0;
  Keys keys_;
};

// Of the comment in front of the declaration of `function`.
Keys DocumentedKeys(std::string_view function) {
  const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
  if (source == nullptr) {
    ADD_FAILURE() << "MOEBIUS_SOURCE_DIR is not set; use ctest";
    return {};
  }
  const std::string header =
      ReadFile(std::string(source) + "/coordinator/status/status_text.h",
               1 << 20)
          .value();
  const size_t end = header.find("std::string " + std::string(function) + "(");
  const size_t begin = header.rfind("//   {", end);
  EXPECT_NE(end, header.npos);
  EXPECT_NE(begin, header.npos);
  return Description(std::string_view(header)
                         .substr(begin, end - begin)
                         .substr(std::string_view("//   ").size()))
      .Read();
}

void ExpectDocumented(const std::string& json, std::string_view function) {
  const Keys written = KeysOf(json), documented = DocumentedKeys(function);
  for (const std::string& key : written) {
    EXPECT_TRUE(documented.contains(key)) << key << " is not documented";
  }
  for (const std::string& key : documented) {
    EXPECT_TRUE(written.contains(key)) << key << " is never written";
  }
}

TEST(StatusText, EachKeyOfTheStatusIsDocumentedAndNoOther) {
  EngineStatus status;
  status.workers.emplace_back();
  ExpectDocumented(StatusJson(status, {}), "StatusJson");
}

TEST(StatusText, EachKeyOfASwitchReportIsDocumentedAndNoOther) {
  ExpectDocumented(SwitchReportJson({}), "SwitchReportJson");
}

TEST(StatusText, TheLastSwitchIsASwitchReport) {
  EngineStatus status;
  status.last_switch.emplace();
  EXPECT_EQ(Json::parse(StatusJson(status, {}))["switches"]["last"].dump(),
            Json::parse(SwitchReportJson({})).dump());
}

TEST(StatusText, DescriptionsAreRead) {
  EXPECT_EQ(Description(R"({"a", "b": words [here], "c": {"d": null or 1, "e"},
             "f": [{"g", "h"}]})")
                .Read(),
            (Keys{"a", "b", "c", "c.d", "c.e", "f", "f[].g", "f[].h"}));
}

}  // namespace
}  // namespace moebius
