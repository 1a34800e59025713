// Kinds of configuration keys: how a number, a size, a choice or a text is read
// into a field of Config, bounded, and written back. What the table of keys
// (config_keys.cc) is made of.
//
// A field is given as its section and its place in that:
// &Config::workers, &WorkersConfig::count.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "common/base/cat.h"
#include "common/config/config.h"
#include "common/config/config_keys.h"

namespace moebius {

// From `min` to `max`.
template <typename Section>
ConfigKey WholeNumberKey(std::string_view name, std::string_view help,
                         Section Config::*section, int Section::*field, int min,
                         int max) {
  return ConfigKey{
      name,
      help,
      Cat("a whole number from ", min, " to ", max),
      false,
      [=](Config& config, std::string_view text) {
        int value = 0;
        if (!absl::SimpleAtoi(AbslView(text), &value)) return false;
        if (value < min || value > max) return false;
        config.*section.*field = value;
        return true;
      },
      [=](const Config& config) { return Cat(config.*section.*field); }};
}

// As many digits as it takes to read back the same number, 0.9 as 0.9.
std::string RealText(double value);

template <typename Section>
ConfigKey RealKey(std::string_view name, std::string_view help,
                  Section Config::*section, double Section::*field, double min,
                  double max) {
  return ConfigKey{
      name,
      help,
      Cat("a number from ", min, " to ", max),
      false,
      [=](Config& config, std::string_view text) {
        double value = 0;
        if (!absl::SimpleAtod(AbslView(text), &value)) return false;
        if (!(value >= min && value <= max)) return false;
        config.*section.*field = value;
        return true;
      },
      [=](const Config& config) { return RealText(config.*section.*field); }};
}

// A whole number of bytes up to `max`, or with a suffix KiB, MiB, GiB.
bool ParseBytes(std::string_view text, int64_t max, int64_t* bytes);
std::string BytesAllowed(int64_t min, int64_t max);

// `min` is a whole number of KiB, `max` one of MiB.
template <typename Section>
ConfigKey BytesKey(std::string_view name, std::string_view help,
                   Section Config::*section, int64_t Section::*field,
                   int64_t min, int64_t max) {
  return ConfigKey{
      name,
      help,
      BytesAllowed(min, max),
      false,
      [=](Config& config, std::string_view text) {
        int64_t value = 0;
        if (!ParseBytes(text, max, &value) || value < min) {
          return false;
        }
        config.*section.*field = value;
        return true;
      },
      [=](const Config& config) { return Cat(config.*section.*field); }};
}

// One of the words of `choices`, each with its value.
template <typename Section, typename Value>
ConfigKey ChoiceKey(std::string_view name, std::string_view help,
                    Section Config::*section, Value Section::*field,
                    std::vector<std::pair<std::string_view, Value>> choices) {
  std::vector<std::string_view> words;
  for (const auto& choice : choices) words.push_back(choice.first);
  return ConfigKey{name,
                   help,
                   Cat("one of ", JoinWords(words)),
                   true,
                   [=](Config& config, std::string_view text) {
                     for (const auto& [word, value] : choices) {
                       if (word == text) {
                         config.*section.*field = value;
                         return true;
                       }
                     }
                     return false;
                   },
                   [=](const Config& config) {
                     for (const auto& [word, value] : choices) {
                       if (config.*section.*field == value) {
                         return std::string(word);
                       }
                     }
                     return std::string();
                   }};
}

template <typename Section>
ConfigKey YesNoKey(std::string_view name, std::string_view help,
                   Section Config::*section, bool Section::*field) {
  return ChoiceKey(name, help, section, field,
                   {{"false", false}, {"true", true}});
}

// A text that `is_allowed` takes; `allowed` says which those are.
template <typename Section>
ConfigKey TextKey(std::string_view name, std::string_view help,
                  std::string_view allowed, Section Config::*section,
                  std::string Section::*field,
                  bool (*is_allowed)(std::string_view)) {
  return ConfigKey{
      name,
      help,
      std::string(allowed),
      true,
      [=](Config& config, std::string_view text) {
        if (!is_allowed(text)) return false;
        config.*section.*field = std::string(text);
        return true;
      },
      [=](const Config& config) { return config.*section.*field; }};
}

// The name of a layout, or auto.
ConfigKey LayoutChoiceKey(std::string_view name, std::string_view help,
                          LayoutChoice LayoutConfig::*field);
// A list of such names but auto, each once; at least one.
ConfigKey LayoutsKey(std::string_view name, std::string_view help,
                     std::vector<LayoutChoice> LayoutConfig::*field);
// A list, be it empty, or the word `otherwise` for nothing.
ConfigKey OptionalLayoutsKey(
    std::string_view name, std::string_view help, std::string_view otherwise,
    std::optional<std::vector<LayoutChoice>> LayoutConfig::*field);
// A list of whole numbers from 1 to `max`, each above the one before it; be it
// empty.
ConfigKey AscendingKey(std::string_view name, std::string_view help,
                       std::vector<int> LayoutConfig::*field, int max);

// What is_allowed may be. Up to 4096 bytes without control characters: a path
// is not empty, an optional one may be.
bool IsPath(std::string_view text);
bool IsOptionalPath(std::string_view text);
// Up to 256 bytes without control characters.
bool IsOptionalName(std::string_view text);
// Words separated by spaces, 4096 bytes of them.
bool AreHosts(std::string_view text);    // of a Host header, without a port
bool AreOrigins(std::string_view text);  // of web pages
bool AreFaults(std::string_view text);
bool AreMessageFaults(std::string_view text);

// "localhost" as the address that it is; empty for what is no address.
std::string AddressOf(std::string_view text);

template <typename Section>
ConfigKey HostKey(std::string_view name, std::string_view help,
                  Section Config::*section) {
  return ConfigKey{
      name,
      help,
      "an IPv4 or IPv6 address, or localhost",
      true,
      [=](Config& config, std::string_view text) {
        const std::string host = AddressOf(text);
        if (host.empty()) return false;
        (config.*section).host = host;
        return true;
      },
      [=](const Config& config) { return (config.*section).host; }};
}

// 0 is any free one.
template <typename Section>
ConfigKey PortKey(std::string_view name, std::string_view help,
                  Section Config::*section) {
  return WholeNumberKey(name, help, section, &Section::port, 0, 65535);
}

}  // namespace moebius
