// /status has the keys that its published schema has, and no others; that their
// values are what it says is looked at on a running group (reports_test.py).
#include "coordinator/status/status_text.h"

#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

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

const Json& PublishedSchema() {
  static const Json* schema = [] {
    const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
    EXPECT_NE(source, nullptr) << "MOEBIUS_SOURCE_DIR is not set; use ctest";
    const auto text = ReadFile(std::string(source == nullptr ? "." : source) +
                                   "/docs/status.schema.json",
                               1 << 20);
    return new Json(Json::parse(*text));
  }();
  return *schema;
}

// The keys that values of `schema` may have; if `required`, those they must.
void AddSchemaKeys(const Json& schema, bool required, const std::string& path,
                   Keys& keys) {
  if (schema.contains("$ref")) {
    const std::string name = schema["$ref"];
    return AddSchemaKeys(
        PublishedSchema().at(Json::json_pointer(name.substr(1))), required,
        path, keys);
  }
  for (const Json& one : schema.value("anyOf", Json::array())) {
    AddSchemaKeys(one, required, path, keys);
  }
  if (schema.contains("items")) {
    AddSchemaKeys(schema["items"], required, path + "[]", keys);
  }
  if (!schema.contains("properties")) return;
  const std::set<std::string> always = schema["required"];
  for (const auto& [name, inner] : schema["properties"].items()) {
    if (required && !always.contains(name)) continue;
    const std::string key = path.empty() ? name : path + "." + name;
    keys.insert(key);
    AddSchemaKeys(inner, required, key, keys);
  }
}

Keys SchemaKeys(const Json& schema, bool required) {
  Keys keys;
  AddSchemaKeys(schema, required, "", keys);
  return keys;
}

EngineStatus StatusWithEverything() {
  EngineStatus status;
  status.workers.emplace_back();
  status.kv.emplace_back();
  status.policy.edges.emplace_back();
  status.last_switch.emplace();
  status.recent_switches = std::make_shared<const std::vector<SwitchReport>>(1);
  status.switch_under_way.emplace();
  return status;
}

TEST(StatusText, OperatorsGetEachKeyOfTheSchema) {
  EXPECT_EQ(
      KeysOf(StatusJson(StatusWithEverything(), {}, Audience::kOperators)),
      SchemaKeys(PublishedSchema(), /*required=*/false));
}

TEST(StatusText, ClientsGetThoseThatAreAlwaysThere) {
  EXPECT_EQ(KeysOf(StatusJson(StatusWithEverything(), {}, Audience::kClients)),
            SchemaKeys(PublishedSchema(), /*required=*/true));
}

TEST(StatusText, ClientsHearNoReasonPathOrProcess) {
  EngineStatus status = StatusWithEverything();
  status.not_ready_reason = "secret";
  status.journal_trouble = "secret";
  status.last_switch->reason = "secret";
  ServerInfo info;
  info.model_path = "/secret";
  const std::string text = StatusJson(status, info, Audience::kClients);
  EXPECT_EQ(text.find("secret"), text.npos) << text;
}

TEST(StatusText, TheSchemaHasTheReportOfASwitch) {
  EXPECT_EQ(KeysOf(SwitchReportJson({})),
            SchemaKeys(PublishedSchema()["definitions"]["switch"], false));
}

TEST(StatusText, WhyThePolicyStaysOrGoesIsSaid) {
  EngineStatus status;
  status.load = 3;
  status.layout = ExpertParallel();
  status.policy.edges = {{Layout{8}, Layout{2}, 1.5, 1.0},
                         {Layout{2}, ExpertParallel(), 5, 2.5}};
  ServerInfo info;
  info.num_workers = 8;
  const auto why = [&] {
    return Json::parse(
               StatusJson(status, info, Audience::kOperators))["policy"]["why"]
        .get<std::string>();
  };
  EXPECT_EQ(why(),
            "the load of 3.0 is not at or below 2.5, where ep is left for tp2");
  status.load = 2;
  EXPECT_EQ(why(),
            "the load of 2.0 is at or below 2.5, where ep is left for tp2");
  status.layout = Layout{2};
  EXPECT_EQ(why(),
            "the load of 2.0 is not at or below 1.0, where tp2 is left for tp "
            "and not at or above 5.0, where tp2 is left for ep");
  status.layout = Layout{4};
  EXPECT_EQ(why(),
            "the load of 2.0 is of no account: tp4 is no candidate, or the "
            "only one");
  status.layout = ExpertParallel();
  status.policy = {};
  info.num_workers = 1;
  EXPECT_EQ(why(), "one rank has one layout");
}

TEST(StatusText, LayoutsHaveTheirNames) {
  EngineStatus status = StatusWithEverything();
  status.layout = Layout{4};
  status.choice = LayoutChoice::Of(Layout{4});
  status.kv = {{Layout{4}, 512, 500, 1}, {Layout{8}, 256, 244, 2}};
  status.last_switch->from = Layout{2};
  status.last_switch->to = Layout{8};
  status.last_switch->num_ranks = 8;
  status.policy.edges = {{Layout{8}, Layout{4}, 5, 3}};
  status.policy.wants = Layout{8};
  ServerInfo info;
  info.num_workers = 8;
  const Json json = Json::parse(StatusJson(status, info, Audience::kOperators));
  EXPECT_EQ(json["layout"], "tp4");
  EXPECT_EQ(json["layout_choice"], "tp4");
  EXPECT_EQ(json["kv"][0]["layout"], "tp4");
  EXPECT_EQ(json["kv"][1]["layout"], "tp");
  EXPECT_EQ(json["kv"][1]["tokens"], 256);
  EXPECT_EQ(json["kv"][1]["head_copies"], 2);
  EXPECT_EQ(json["switches"]["last"]["from"], "tp2");
  EXPECT_EQ(json["switches"]["last"]["to"], "tp");
  EXPECT_EQ(json["policy"]["wants"], "tp");
  EXPECT_EQ(json["policy"]["edges"][0]["narrow"], "tp4");
  EXPECT_EQ(json["policy"]["leave_tp_at"], 5);
}

}  // namespace
}  // namespace moebius
