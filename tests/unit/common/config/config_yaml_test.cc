// Configuration: what a file may say, and what is said about one that is
// wrong.
#include "common/config/config_yaml.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

namespace fs = std::filesystem;

// A temporary folder, gone with the test; the current directory comes back.
class InFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "cfgXXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = fs::canonical(name);
    old_ = fs::current_path();
  }
  void TearDown() override {
    fs::current_path(old_);
    fs::remove_all(folder_);
  }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
  }
  fs::path folder_, old_;
};

struct Wrong {
  const char* name;
  std::string yaml;
  std::vector<std::string> says;
};

void PrintTo(const Wrong& wrong, std::ostream* out) { *out << wrong.name; }

class ConfigYamlRefuses : public ::testing::TestWithParam<Wrong> {};

TEST_P(ConfigYamlRefuses, WithFileLineKeyAndWhatIsAllowed) {
  const absl::StatusOr<Config> config =
      ParseConfigYaml(GetParam().yaml, "f.yaml");
  ASSERT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument)
      << config.status();
  for (const std::string& part : GetParam().says) {
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(part));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Table, ConfigYamlRefuses,
    ::testing::Values(
        Wrong{"UnknownSection",
              "model:\n  path: x\nworker:\n  count: 2\n",
              {"f.yaml:3: section 'worker' is unknown",
               "did you mean 'workers'?", "scheduler"}},
        Wrong{"UnknownKey",
              "workers:\n  count: 2\n  cuont: 3\n",
              {"f.yaml:3: key 'workers.cuont' is unknown",
               "did you mean 'workers.count'?", "kv_dtype"}},
        Wrong{"KeyOfAnotherSection",
              "scheduler:\n  kv_dtype: float32\n",
              {"f.yaml:2: key 'scheduler.kv_dtype' is unknown",
               "did you mean 'workers.kv_dtype'?"}},
        Wrong{"KeyThatNothingIsLike",
              "http:\n  certificate: x\n",
              {"f.yaml:2: key 'http.certificate' is unknown; allowed is host"}},
        Wrong{"WordForNumber",
              "\nworkers:\n  count: two\n",
              {"f.yaml:3: key 'workers.count': allowed is a whole number from "
               "1 to 16, not 'two'"}},
        Wrong{"FractionForWholeNumber",
              "workers: {count: 2.5}\n",
              {"f.yaml:1: key 'workers.count'", "not '2.5'"}},
        Wrong{"QuotedNumber",
              "workers:\n  count: \"2\"\n",
              {"f.yaml:2: key 'workers.count'", "not the text"}},
        Wrong{"TooSmall",
              "workers:\n  count: 0\n",
              {"f.yaml:2: key 'workers.count'", "from 1 to 16", "not '0'"}},
        Wrong{"TooLarge",
              "workers:\n  count: 17\n",
              {"f.yaml:2: key 'workers.count'", "not '17'"}},
        Wrong{"Beyond64Bits",
              "workers:\n  count: 99999999999999999999\n",
              {"f.yaml:2: key 'workers.count'"}},
        Wrong{"Nothing",
              "workers:\n  count:\n",
              {"f.yaml:2: key 'workers.count'", "not nothing"}},
        Wrong{"ListForValue",
              "workers:\n  count: [1, 2]\n",
              {"f.yaml:2: key 'workers.count'", "not a list"}},
        Wrong{"MapForValue",
              "model:\n  path:\n    a: b\n",
              {"f.yaml:2: key 'model.path'", "not a map"}},
        Wrong{"ValueForSection",
              "workers: 2\n",
              {"f.yaml:1: section 'workers': allowed is a map of keys, not a "
               "value"}},
        Wrong{"ListForDocument", "- a\n", {"f.yaml:1", "not a list"}},
        Wrong{"KeyTwice",
              "workers:\n  count: 2\n  threads: 1\n  count: 4\n",
              {"f.yaml:4: key 'workers.count' is said twice"}},
        Wrong{"SectionTwice",
              "workers:\n  count: 2\nhttp:\n  port: 1\nworkers:\n  count: 4\n",
              {"f.yaml:5: section 'workers' is said twice"}},
        Wrong{"SecondDocument",
              "workers:\n  count: 2\n---\nhttp:\n  port: 1\n",
              {"a second document"}},
        Wrong{"NotYaml",
              "workers:\n  count: [1\n",
              {"f.yaml:", "not a YAML document"}},
        Wrong{"TabForIndent",
              "workers:\n\tcount: 1\n",
              {"f.yaml:2", "not a YAML document"}},
        Wrong{"UnknownAlias",
              "workers:\n  count: *x\n",
              {"f.yaml:2", "not a YAML document"}},
        Wrong{"ChoiceInCapitals",
              "layout:\n  choice: EP\n",
              {"f.yaml:2: key 'layout.choice': allowed is ep, tp, or tpN with "
               "N workers in a group (tp2); or auto, not 'EP'"}},
        Wrong{"NumericsThatNobodyHas",
              "workers:\n  numerics: bf16\n",
              {"f.yaml:2: key 'workers.numerics': allowed is one of auto, "
               "exact, fast, not 'bf16'"}},
        Wrong{"FewerThanNoSpareSlots",
              "layout:\n  spare_slots: -1\n",
              {"f.yaml:2: key 'layout.spare_slots': allowed is a whole number "
               "from 0 to 8, not '-1'"}},
        Wrong{"TooManySpareSlots",
              "layout:\n  spare_slots: 9\n",
              {"key 'layout.spare_slots'", "not '9'"}},
        Wrong{"ResidentLayoutThatNobodyHas",
              "layout:\n  resident: [ep, dp]\n",
              {"f.yaml:2: key 'layout.resident': allowed is a list of layouts",
               "tpN with N workers in a group", "not 'ep dp'"}},
        Wrong{"LayoutOfNoWidth", "layout:\n  choice: tp0\n", {"not 'tp0'"}},
        Wrong{"LayoutOfTooManyRanks",
              "layout:\n  choice: tp17\n",
              {"key 'layout.choice': allowed is ep, tp, or tpN", "; or auto",
               "not 'tp17'"}},
        Wrong{"LayoutWithALeadingZero",
              "layout:\n  choice: tp02\n",
              {"not 'tp02'"}},
        Wrong{"NoCandidates",
              "layout:\n  candidates: []\n",
              {"key 'layout.candidates'"}},
        Wrong{"CandidateThatIsNoLayout",
              "layout:\n  candidates: [ep, auto]\n",
              {"key 'layout.candidates'", "not 'ep auto'"}},
        Wrong{"CandidateTwice",
              "layout:\n  candidates: [ep, tp, ep]\n",
              {"key 'layout.candidates'", "each once"}},
        Wrong{"ThresholdsThatFall",
              "layout:\n  thresholds: [8, 8]\n",
              {"key 'layout.thresholds'", "each above the one before it"}},
        Wrong{"ThresholdOfNothing",
              "layout:\n  thresholds: [0]\n",
              {"key 'layout.thresholds'", "not '0'"}},
        Wrong{"ThresholdThatIsAWord",
              "layout:\n  thresholds: [many]\n",
              {"key 'layout.thresholds'", "not 'many'"}},
        Wrong{"ResidentLayoutsOfAList",
              "layout:\n  resident: [[ep]]\n",
              {"key 'layout.resident'", "not a list"}},
        Wrong{"ListForAWord",
              "layout:\n  choice: [ep]\n",
              {"key 'layout.choice'", "not a list"}},
        Wrong{"LoadFormat",
              "model:\n  load_format: gguf\n",
              {"one of auto, dummy", "not 'gguf'"}},
        Wrong{"HostName",
              "http:\n  host: example\n",
              {"key 'http.host'", "an IPv4 or IPv6 address, or localhost"}},
        Wrong{"Port", "http:\n  port: 65536\n", {"from 0 to 65535"}},
        Wrong{"NotANumber",
              "layout:\n  hysteresis: .nan\n",
              {"key 'layout.hysteresis': allowed is a number from 0 to 1"}},
        Wrong{"NegativeShare", "layout:\n  hysteresis: -0.1\n", {"'-0.1'"}},
        Wrong{"BytesWithAnUnknownUnit",
              "workers:\n  kv_bytes: 4GB\n",
              {"key 'workers.kv_bytes'", "KiB, MiB or GiB"}},
        Wrong{"BytesThatOverflow",
              "workers:\n  kv_bytes: 9999999999999GiB\n",
              {"key 'workers.kv_bytes'"}},
        Wrong{"TooFewBytes",
              "http:\n  stream_buffer_bytes: 4095\n",
              {"key 'http.stream_buffer_bytes': allowed is a number of bytes",
               "from 4KiB to 1GiB, not '4095'"}},
        Wrong{"YesForTrue",
              "http:\n  allow_unauthenticated: yes\n",
              {"key 'http.allow_unauthenticated': allowed is one of false, "
               "true, not 'yes'"}},
        Wrong{"NegativeBytes",
              "workers:\n  kv_bytes: -1\n",
              {"key 'workers.kv_bytes'"}},
        Wrong{"HostWithPort",
              "http:\n  allowed_hosts: a.example b.example:80\n",
              {"key 'http.allowed_hosts': allowed is host names and addresses "
               "separated by spaces"}},
        Wrong{"HostWithScheme",
              "admin:\n  allowed_hosts: https://a.example\n",
              {"key 'admin.allowed_hosts'"}},
        Wrong{"OriginWithoutScheme",
              "http:\n  allowed_origins: a.example\n",
              {"key 'http.allowed_origins': allowed is origins"}},
        Wrong{"OriginWithPath",
              "http:\n  allowed_origins: https://a.example/\n",
              {"key 'http.allowed_origins'"}},
        Wrong{"BodyBeyondAllBodies",
              "http:\n  max_body_bytes: 257MiB\n",
              {"key 'http.max_body_bytes'", "to 256MiB"}},
        Wrong{"EmptyPath",
              "model:\n  path: \"\"\n",
              {"key 'model.path': allowed is the path of a folder"}},
        Wrong{"ControlCharacterInName",
              "model:\n  served_name: \"a\\nb\"\n",
              {"key 'model.served_name'", "'a?b'"}},
        Wrong{"LongValueIsCut",
              absl::StrCat("http:\n  host: ", std::string(3000, 'x'), "\n"),
              {"xxx...'"}},
        Wrong{"TooManyBytes",
              absl::StrCat("# ", std::string(kMaxConfigBytes, 'x')),
              {"f.yaml: ", "allowed are at most 1048576"}}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(ConfigYaml, DeepNestingIsAnErrorNotACrash) {
  EXPECT_THAT(ParseConfigYaml(std::string(100000, '['), "f.yaml"),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseConfigYaml(std::string(100000, '{'), "f.yaml"),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ConfigYaml, EmptyFileGivesTheBase) {
  Config base;
  base.workers.count = 4;
  for (const char* yaml : {"", "# nothing\n", "workers:\n", "---\n"}) {
    const absl::StatusOr<Config> config = ParseConfigYaml(yaml, "f", base);
    ASSERT_THAT(config, IsOk()) << yaml;
    EXPECT_EQ(ToYaml(*config), ToYaml(base)) << yaml;
  }
}

TEST(ConfigYaml, FileWinsOverBaseAndLeavesTheRest) {
  Config base;
  base.workers.count = 4;
  base.http.threads = 3;
  ConfigLines lines;
  const absl::StatusOr<Config> config = ParseConfigYaml(
      "# comment\nworkers:\n  count: 8\nlayout: {choice: auto}\n", "f", base,
      &lines);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->workers.count, 8);
  EXPECT_EQ(config->http.threads, 3);
  EXPECT_EQ(config->layout.choice, LayoutChoice::kAuto);
  EXPECT_EQ(lines, (ConfigLines{{"workers.count", 3}, {"layout.choice", 4}}));
}

TEST(ConfigYaml, WhatIsWrittenReadsBackTheSame) {
  Config config;
  config.model.path = "/tmp/a \"b\" \\c: # d";
  config.model.served_name = "true";
  config.workers.kv_bytes = (int64_t{1} << 40) + 1;
  config.layout.hysteresis = 0.1 + 0.2;
  config.workers.gpu_memory_fraction = 0.9;
  config.workers.spin_us = -1;
  config.layout.choice = LayoutChoice::kAuto;
  config.layout.candidates = {LayoutChoice::kTp, LayoutChoice::Of(Layout{2})};
  config.layout.thresholds = {5, 6};
  config.layout.resident.emplace();
  config.admin.host = "::1";
  const std::string yaml = ToYaml(config);
  const absl::StatusOr<Config> again = ParseConfigYaml(yaml, "f");
  ASSERT_THAT(again, IsOk()) << yaml;
  EXPECT_EQ(ToYaml(*again), yaml);
  EXPECT_EQ(again->model.path, config.model.path);
  EXPECT_EQ(again->model.served_name, "true");
  EXPECT_EQ(again->workers.kv_bytes, config.workers.kv_bytes);
  EXPECT_EQ(again->layout.hysteresis, 0.1 + 0.2);
  EXPECT_THAT(yaml, HasSubstr("gpu_memory_fraction: 0.9\n"));
}

TEST(ConfigYaml, FlagErrorsNameTheFlag) {
  Config config;
  EXPECT_THAT(SetConfigKey(config, "workers.count", "0", "--workers"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(StartsWith("--workers: key 'workers.count'"),
                             HasSubstr("from 1 to 16"))));
  EXPECT_THAT(SetConfigKey(config, "nonsense", "0", "--set"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("key 'nonsense' is unknown")));
  EXPECT_EQ(config.workers.count, Config{}.workers.count);
}

TEST(ConfigYaml, OnePortForBothListenersIsRefused) {
  Config config;
  config.admin.port = config.http.port;
  EXPECT_THAT(CheckConfig(config),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("http.port"), HasSubstr("admin.port"))));
  config.admin.host = "127.0.0.2";
  EXPECT_THAT(CheckConfig(config), IsOk());
  config.admin.host = config.http.host;
  config.admin.port = config.http.port = 0;
  EXPECT_THAT(CheckConfig(config), IsOk());
}

TEST(ConfigYaml, WorkersNeedOneAddressOfTheCoordinator) {
  Config config;
  for (const char* host : {"0.0.0.0", "::"}) {
    config.control.host = host;
    config.control.transport = ControlTransport::kIpc;
    EXPECT_THAT(CheckConfig(config), IsOk());
    config.control.transport = ControlTransport::kTcp;
    EXPECT_THAT(
        CheckConfig(config),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 HasSubstr(absl::StrCat("key 'control.host' is ", host))));
  }
  config.control.host = "10.0.0.1";
  EXPECT_THAT(CheckConfig(config), IsOk());
}

TEST(ConfigYaml, ListenersBeyondLoopbackNeedKeysOrAWordThatTheyNeedNone) {
  for (const char* host :
       {"0.0.0.0", "::", "192.168.1.2", "10.0.0.1", "::2", "fe80::1",
        "::ffff:10.0.0.1", "126.255.255.255", "128.0.0.1", "1::1"}) {
    Config config;
    config.http.host = host;
    EXPECT_THAT(
        CheckConfig(config),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 AllOf(HasSubstr(absl::StrCat("key 'http.host' is ", host)),
                       HasSubstr("'http.api_keys_file'"),
                       HasSubstr("'http.allow_unauthenticated: true'"),
                       HasSubstr("--api-keys-file, --allow-unauthenticated"))))
        << host;
    config.http.api_keys_file = "/keys";
    EXPECT_THAT(CheckConfig(config), IsOk());
    config.http.api_keys_file = "";
    config.http.allow_unauthenticated = true;
    EXPECT_THAT(CheckConfig(config), IsOk());
    // Of one listener that says nothing about the other.
    config.admin.host = host;
    EXPECT_THAT(
        CheckConfig(config),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 AllOf(HasSubstr(absl::StrCat("key 'admin.host' is ", host)),
                       HasSubstr("'admin.api_key_file'"),
                       HasSubstr("'admin.allow_unauthenticated: true'"),
                       HasSubstr("--admin-api-key-file, "
                                 "--admin-allow-unauthenticated"))))
        << host;
    config.admin.api_key_file = "/keys";
    EXPECT_THAT(CheckConfig(config), IsOk());
    config.admin.api_key_file = "";
    config.admin.allow_unauthenticated = true;
    EXPECT_THAT(CheckConfig(config), IsOk());
  }
  for (const char* host :
       {"127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1"}) {
    Config config;
    config.http.host = config.admin.host = host;
    EXPECT_THAT(CheckConfig(config), IsOk()) << host;
  }
}

TEST(ConfigYaml, BudgetBelowRunningSequencesIsRefused) {
  Config config;
  config.scheduler.max_running = 300;
  config.scheduler.token_budget = 299;
  EXPECT_THAT(CheckConfig(config),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("scheduler.max_running")));
}

TEST_F(InFolder, AMissingFileIsNotFoundAndAFolderInvalid) {
  EXPECT_THAT(LoadConfigYaml((folder_ / "x.yaml").string()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("x.yaml")));
  EXPECT_THAT(LoadConfigYaml(folder_.string()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("is a directory")));
}

TEST_F(InFolder, FileOverTheBoundIsRefused) {
  Write("big.yaml", std::string(kMaxConfigBytes + 10, '#'));
  EXPECT_THAT(LoadConfigYaml((folder_ / "big.yaml").string()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("at most 1048576 bytes")));
}

TEST_F(InFolder, ErrorsInAFileNameItAsItWasGiven) {
  Write("c.yaml", "http:\n  port: x\n");
  fs::current_path(folder_);
  EXPECT_THAT(LoadConfigYaml("c.yaml"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       StartsWith("c.yaml:2: key 'http.port'")));
}

TEST_F(InFolder, ModelPathPrefersTheCurrentDirectory) {
  fs::create_directories(folder_ / "here/models/m");
  fs::create_directories(folder_ / "there/models/m");
  fs::create_directories(folder_ / "there/models/n");
  fs::create_directories(folder_ / "there/configs");
  fs::current_path(folder_ / "here");
  const std::string config = (folder_ / "there/configs/c.yaml").string();
  EXPECT_EQ(*ResolveModelPath("models/m", config),
            (folder_ / "here/models/m").string());
  EXPECT_EQ(*ResolveModelPath("models/n", config),
            (folder_ / "there/models/n").string());
  EXPECT_EQ(*ResolveModelPath("models/n/", "../there/configs/c.yaml"),
            (folder_ / "there/models/n").string());
  EXPECT_EQ(*ResolveModelPath((folder_ / "there/models/n").string(), ""),
            (folder_ / "there/models/n").string());
  EXPECT_THAT(ResolveModelPath("models/n", ""),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr((folder_ / "here/models/n").string())));
  EXPECT_THAT(
      ResolveModelPath("models/x", config),
      StatusIs(absl::StatusCode::kNotFound,
               AllOf(HasSubstr((folder_ / "here/models/x").string()),
                     HasSubstr((folder_ / "there/models/x").string()))));
}

TEST(ConfigYaml, ServedNameIsTheFolderUnlessSaid) {
  Config config;
  config.model.path = "/a/b/verse-moe";
  EXPECT_EQ(ServedModelName(config), "verse-moe");
  config.model.path = "/a/b/verse-moe/";
  EXPECT_EQ(ServedModelName(config), "verse-moe");
  config.model.served_name = "other";
  EXPECT_EQ(ServedModelName(config), "other");
}

TEST(ConfigYaml, CommittedConfigurationsAreValid) {
  const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
  ASSERT_NE(source, nullptr);
  int found = 0;
  for (const auto& entry :
       fs::directory_iterator(fs::path(source) / "configs")) {
    if (entry.path().extension() != ".yaml") continue;
    ++found;
    const absl::StatusOr<Config> config = LoadConfigYaml(entry.path().string());
    ASSERT_THAT(config, IsOk());
    EXPECT_THAT(CheckConfig(*config), IsOk());
    EXPECT_THAT(ResolveModelPath(config->model.path, entry.path().string()),
                IsOk());
  }
  EXPECT_GE(found, 2);
}

}  // namespace
}  // namespace moebius
