// Keys: each is read into its own field, and takes what it says it takes.
#include "common/config/config_keys.h"

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/config/config_yaml.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using ::testing::HasSubstr;

// As ToYaml() writes it.
std::string ValueOf(const Config& config, std::string_view key) {
  return FindConfigKey(key)->get(config);
}

// Of a file that says nothing else.
Config Parsed(std::string_view yaml) {
  const absl::StatusOr<Config> config = ParseConfigYaml(yaml, "f");
  EXPECT_THAT(config, IsOk());
  return config.value_or(Config{});
}

TEST(ConfigKeys, FieldsOfModelAndWorkersAreReadFromTheirKeys) {
  const Config config = Parsed(R"(
model: {path: /m/x, served_name: name, load_format: dummy, max_model_len: 77}
workers: {count: 3, threads: 5, step_timeout_ms: 50, stall_timeout_ms: 60,
          spin_us: 70, kv_dtype: bfloat16, kv_bytes: 3MiB}
)");
  EXPECT_EQ(config.model.path, "/m/x");
  EXPECT_EQ(config.model.served_name, "name");
  EXPECT_EQ(config.model.load_format, LoadFormat::kDummy);
  EXPECT_EQ(config.model.max_model_len, 77);
  EXPECT_EQ(config.workers.count, 3);
  EXPECT_EQ(config.workers.threads, 5);
  EXPECT_EQ(config.workers.step_timeout_ms, 50);
  EXPECT_EQ(config.workers.stall_timeout_ms, 60);
  EXPECT_EQ(config.workers.spin_us, 70);
  EXPECT_EQ(config.workers.kv_dtype, KvDtype::kBfloat16);
  EXPECT_EQ(config.workers.kv_bytes, 3 << 20);
}

TEST(ConfigKeys, FieldsOfControlSchedulerAndLayoutAreReadFromTheirKeys) {
  const Config config = Parsed(R"(
control: {transport: tcp, host: 10.0.0.1, port: 28}
scheduler: {max_running: 11, max_queue: 12, token_budget: 130, steps_ahead: 4}
layout:
  choice: tp
  candidates: [tp4, ep, tp]
  thresholds: [3, 44]
  switch_threshold: 9
  hysteresis: 0.125
  min_dwell_ms: 14
  smoothing_ms: 15
  prepare_timeout_ms: 16
  switch_timeout_ms: 17
  spare_slots: 8
  resident: [tp]
)");
  EXPECT_EQ(config.control.transport, ControlTransport::kTcp);
  EXPECT_EQ(config.control.host, "10.0.0.1");
  EXPECT_EQ(config.control.port, 28);
  EXPECT_EQ(config.scheduler.max_running, 11);
  EXPECT_EQ(config.scheduler.max_queue, 12);
  EXPECT_EQ(config.scheduler.token_budget, 130);
  EXPECT_EQ(config.scheduler.steps_ahead, 4);
  EXPECT_EQ(config.layout.choice, LayoutChoice::kTp);
  EXPECT_EQ(config.layout.candidates,
            (std::vector<LayoutChoice>{LayoutChoice::Of(Layout{4}),
                                       LayoutChoice::kEp, LayoutChoice::kTp}));
  EXPECT_EQ(config.layout.thresholds, (std::vector<int>{3, 44}));
  EXPECT_EQ(config.layout.switch_threshold, 9);
  EXPECT_EQ(config.layout.hysteresis, 0.125);
  EXPECT_EQ(config.layout.min_dwell_ms, 14);
  EXPECT_EQ(config.layout.smoothing_ms, 15);
  EXPECT_EQ(config.layout.prepare_timeout_ms, 16);
  EXPECT_EQ(config.layout.switch_timeout_ms, 17);
  EXPECT_EQ(config.layout.spare_slots, 8);
  EXPECT_EQ(config.layout.resident,
            std::vector<LayoutChoice>{LayoutChoice::kTp});
}

TEST(ConfigKeys, FieldsOfHttpAreReadFromTheirKeys) {
  const Config config = Parsed(R"(
http: {host: 0.0.0.0, port: 18, threads: 19, drain_timeout_ms: 20,
       write_interval_us: 22, api_keys_file: /k, allow_unauthenticated: true,
       max_connections: 23, header_timeout_ms: 24, body_timeout_ms: 25,
       write_timeout_ms: 26, stream_buffer_bytes: 27KiB, max_body_bytes: 28KiB,
       waiting_comment_ms: 29, allowed_hosts: "a.example [::2]",
       allowed_origins: "https://a.example http://b:80",
       allow_request_templates: true, not_ready_status: 404,
       load_header: text}
)");
  EXPECT_EQ(config.http.host, "0.0.0.0");
  EXPECT_EQ(config.http.port, 18);
  EXPECT_EQ(config.http.address().host, "0.0.0.0");
  EXPECT_EQ(config.http.address().port, 18);
  EXPECT_EQ(config.http.threads, 19);
  EXPECT_EQ(config.http.drain_timeout_ms, 20);
  EXPECT_EQ(config.http.write_interval_us, 22);
  EXPECT_EQ(config.http.api_keys_file, "/k");
  EXPECT_TRUE(config.http.allow_unauthenticated);
  EXPECT_EQ(config.http.not_ready_status, 404);
  EXPECT_EQ(config.http.load_header, LoadHeader::kText);
  EXPECT_EQ(config.http.max_connections, 23);
  EXPECT_EQ(config.http.header_timeout_ms, 24);
  EXPECT_EQ(config.http.body_timeout_ms, 25);
  EXPECT_EQ(config.http.write_timeout_ms, 26);
  EXPECT_EQ(config.http.stream_buffer_bytes, 27 << 10);
  EXPECT_TRUE(config.http.allow_request_templates);
  EXPECT_EQ(config.http.max_body_bytes, 28 << 10);
  EXPECT_EQ(config.http.waiting_comment_ms, 29);
  EXPECT_EQ(config.http.allowed_hosts, "a.example [::2]");
  EXPECT_EQ(config.http.allowed_origins, "https://a.example http://b:80");
}

TEST(ConfigKeys, FieldsOfTheOtherSectionsAreReadFromTheirKeys) {
  const Config config = Parsed(R"(
admin: {host: localhost, port: 21, api_key_file: /a,
        allow_unauthenticated: true, allowed_hosts: "*", agent_port: 36}
journal: {dir: /j, fsync: always, rotate_bytes: 31MiB, keep_results_ms: 32,
          keep_results: 33, keep_results_bytes: 34KiB, resume_window_ms: 35}
faults: {enabled: true, arm: "link.command@1=crash", messages: "lose=0.02"}
log: {level: "debug", format: json, requests: true}
)");
  EXPECT_EQ(config.admin.host, "127.0.0.1");
  EXPECT_EQ(config.admin.port, 21);
  EXPECT_EQ(config.admin.address().host, "127.0.0.1");
  EXPECT_EQ(config.admin.address().port, 21);
  EXPECT_EQ(config.admin.api_key_file, "/a");
  EXPECT_EQ(config.admin.allowed_hosts, "*");
  EXPECT_TRUE(config.admin.allow_unauthenticated);
  EXPECT_EQ(config.admin.agent_address().port, 36);
  EXPECT_EQ(config.journal.dir, "/j");
  EXPECT_EQ(config.journal.fsync, FsyncPolicy::kAlways);
  EXPECT_EQ(config.journal.rotate_bytes, 31 << 20);
  EXPECT_EQ(config.journal.keep_results_ms, 32);
  EXPECT_EQ(config.journal.keep_results, 33);
  EXPECT_EQ(config.journal.keep_results_bytes, 34 << 10);
  EXPECT_EQ(config.journal.resume_window_ms, 35);
  EXPECT_TRUE(config.faults.enabled);
  EXPECT_EQ(config.faults.arm, "link.command@1=crash");
  EXPECT_EQ(config.faults.messages, "lose=0.02");
  EXPECT_EQ(config.log.level, LogLevel::kDebug);
  EXPECT_EQ(config.log.format, LogFormat::kJson);
  EXPECT_TRUE(config.log.requests);
}

// Each word of a key with a fixed set of them reads back as itself, and what
// refuses another word names them all.
TEST(ConfigKeys, KeysWithAFixedSetOfValuesTakeThoseAndNameThem) {
  const struct {
    const char* key;
    std::vector<std::string> words;
  } kChoices[] = {
      {"model.load_format", {"auto", "dummy"}},
      {"workers.kv_dtype", {"auto", "float32", "bfloat16"}},
      {"workers.device", {"cpu", "cuda", "auto"}},
      {"workers.numerics", {"auto", "exact", "fast"}},
      {"workers.gpu_sharing", {"auto", "descriptor", "handle"}},
      {"control.transport", {"ipc", "tcp"}},
      {"http.allow_unauthenticated", {"false", "true"}},
      {"journal.fsync", {"none", "step", "always"}},
      {"log.level", {"trace", "debug", "info", "warn", "error", "off"}},
      {"log.format", {"text", "json"}},
      {"http.not_ready_status", {"503", "404"}},
      {"http.load_header", {"asked", "text", "json"}},
  };
  for (const auto& [key, words] : kChoices) {
    Config config;
    for (const std::string& word : words) {
      EXPECT_THAT(SetConfigKey(config, key, word, "--set"), IsOk());
      EXPECT_EQ(ValueOf(config, key), word) << key;
    }
    const std::string last = words.back();
    for (const char* other : {"", "EP", "kStep", "0"}) {
      EXPECT_THAT(
          SetConfigKey(config, key, other, "--set"),
          StatusIs(absl::StatusCode::kInvalidArgument,
                   HasSubstr(absl::StrCat(
                       "--set: key '", key, "': allowed is one of ",
                       absl::StrJoin(words, ", "), ", not '", other, "'"))));
      EXPECT_EQ(ValueOf(config, key), last) << key;
    }
  }
}

TEST(ConfigKeys, EachKeyHasAFieldOfItsOwn) {
  const Config defaults;
  for (const ConfigKey& key : ConfigKeyTable()) {
    Config config;
    // The first of these that it takes and that is another value.
    for (const char* text : {"7",
                             "5001",
                             "0.5",
                             "1MiB",
                             "true",
                             "dummy",
                             "bfloat16",
                             "tcp",
                             "tp",
                             "step",
                             "debug",
                             "::1",
                             "cuda",
                             "exact",
                             "handle",
                             "/a",
                             "https://a.example",
                             "link.command=crash",
                             "lose=0.5",
                             "json",
                             "404"}) {
      if (ValueOf(config, key.name) != ValueOf(defaults, key.name)) break;
      key.set(config, text);
    }
    for (const ConfigKey& other : ConfigKeyTable()) {
      EXPECT_EQ(other.get(config) != other.get(defaults),
                other.name == key.name)
          << key.name << ", " << other.name;
    }
  }
}

TEST(ConfigKeys, EachKeyIsDocumentedAndTakesItsDefault) {
  const std::vector<ConfigKeyInfo> keys = ConfigKeys();
  EXPECT_EQ(keys.size(), 72u);  // the fields of Config
  std::set<std::string> names;
  Config config;
  for (const ConfigKeyInfo& key : keys) {
    EXPECT_TRUE(names.insert(key.name).second) << key.name;
    EXPECT_TRUE(absl::EndsWith(key.help, ".")) << key.name;
    EXPECT_FALSE(key.allowed.empty()) << key.name;
    EXPECT_THAT(SetConfigKey(config, key.name, key.default_value, "test"),
                IsOk());
  }
  EXPECT_EQ(ToYaml(config), ToYaml(Config{}));
  EXPECT_THAT(CheckConfig(Config{}), IsOk());
}

}  // namespace
}  // namespace moebius
