#include "common/config/config_key_kinds.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "common/faults/fault_point.h"
#include "common/faults/message_faults.h"

namespace moebius {
namespace {

constexpr size_t kMaxPathBytes = 4096;
constexpr size_t kMaxNameBytes = 256;
constexpr size_t kMaxWordsBytes = 4096;

bool IsPlainText(std::string_view text, size_t max_bytes) {
  return text.size() <= max_bytes &&
         std::none_of(text.begin(), text.end(),
                      [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

bool AllWords(std::string_view text, bool (*is_word)(std::string_view)) {
  for (absl::string_view word :
       absl::StrSplit(AbslView(text), ' ', absl::SkipEmpty())) {
    if (!is_word(StdView(word))) return false;
  }
  return true;
}

bool IsHostWord(std::string_view word) {
  if (word == "*") return true;
  const bool bracketed = word.starts_with('[') && word.ends_with(']');
  if (bracketed) word = word.substr(1, word.size() - 2);
  unsigned char bytes[16];
  if (inet_pton(AF_INET6, std::string(word).c_str(), bytes) == 1) return true;
  if (bracketed || word.empty()) return false;
  return std::all_of(word.begin(), word.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '.' || c == '_';
  });
}

bool IsOriginWord(std::string_view word) {
  if (word == "*") return true;
  const size_t scheme = word.find("://");
  if (scheme == word.npos || scheme == 0) return false;
  return word.find_first_of("/?#@*", scheme + 3) == word.npos &&
         word.size() > scheme + 3 &&
         std::all_of(word.begin(), word.end(),
                     [](unsigned char c) { return absl::ascii_isgraph(c); });
}

// Names of layouts, each once, separated by spaces; auto is none of them.
std::optional<std::vector<LayoutChoice>> ParseLayouts(std::string_view text) {
  std::vector<LayoutChoice> layouts;
  for (absl::string_view word :
       absl::StrSplit(AbslView(text), ' ', absl::SkipEmpty())) {
    const std::optional<LayoutChoice> one = ParseLayoutChoice(StdView(word));
    if (!one.has_value() || one->is_auto() ||
        std::find(layouts.begin(), layouts.end(), *one) != layouts.end()) {
      return std::nullopt;
    }
    layouts.push_back(*one);
  }
  return layouts;
}

std::string LayoutsText(const std::vector<LayoutChoice>& layouts) {
  std::string text;
  for (const LayoutChoice& one : layouts) {
    text += Cat(text.empty() ? "" : " ", LayoutChoiceName(one));
  }
  return text;
}

}  // namespace

ConfigKey LayoutChoiceKey(std::string_view name, std::string_view help,
                          LayoutChoice LayoutConfig::*field) {
  return ConfigKey{name,
                   help,
                   Cat(kLayoutNames, "; or auto"),
                   true,
                   [=](Config& config, std::string_view text) {
                     const auto choice = ParseLayoutChoice(text);
                     if (choice.has_value()) config.layout.*field = *choice;
                     return choice.has_value();
                   },
                   [=](const Config& config) {
                     return LayoutChoiceName(config.layout.*field);
                   }};
}

ConfigKey LayoutsKey(std::string_view name, std::string_view help,
                     std::vector<LayoutChoice> LayoutConfig::*field) {
  ConfigKey key{
      name,
      help,
      Cat("a list of layouts, each once: ", kLayoutNames),
      true,
      [=](Config& config, std::string_view text) {
        auto layouts = ParseLayouts(text);
        if (!layouts.has_value() || layouts->empty()) return false;
        config.layout.*field = *std::move(layouts);
        return true;
      },
      [=](const Config& config) { return LayoutsText(config.layout.*field); }};
  key.is_list = true;
  return key;
}

ConfigKey OptionalLayoutsKey(
    std::string_view name, std::string_view help, std::string_view otherwise,
    std::optional<std::vector<LayoutChoice>> LayoutConfig::*field) {
  ConfigKey key{name,
                help,
                Cat("a list of layouts, each once, none perhaps: ",
                    kLayoutNames, "; or the word ", otherwise),
                true,
                [=](Config& config, std::string_view text) {
                  auto layouts = ParseLayouts(text);
                  if (text == otherwise) {
                    (config.layout.*field).reset();
                  } else if (layouts.has_value()) {
                    config.layout.*field = *std::move(layouts);
                  } else {
                    return false;
                  }
                  return true;
                },
                [=](const Config& config) {
                  const auto& layouts = config.layout.*field;
                  return layouts.has_value() ? LayoutsText(*layouts)
                                             : std::string(otherwise);
                }};
  key.is_list = true;
  return key;
}

ConfigKey AscendingKey(std::string_view name, std::string_view help,
                       std::vector<int> LayoutConfig::*field, int max) {
  ConfigKey key{name,
                help,
                Cat("a list of whole numbers from 1 to ", max,
                    ", each above the one before it, none perhaps"),
                true,
                [=](Config& config, std::string_view text) {
                  std::vector<int> numbers;
                  for (absl::string_view word :
                       absl::StrSplit(AbslView(text), ' ', absl::SkipEmpty())) {
                    int number = 0;
                    if (!absl::SimpleAtoi(word, &number) || number > max ||
                        number <= (numbers.empty() ? 0 : numbers.back())) {
                      return false;
                    }
                    numbers.push_back(number);
                  }
                  config.layout.*field = std::move(numbers);
                  return true;
                },
                [=](const Config& config) {
                  std::string text;
                  for (const int number : config.layout.*field) {
                    text += Cat(text.empty() ? "" : " ", number);
                  }
                  return text;
                }};
  key.is_list = true;
  return key;
}

std::string RealText(double value) {
  char text[40];
  return std::string(text, std::to_chars(text, std::end(text), value).ptr);
}

bool ParseBytes(std::string_view text, int64_t max, int64_t* bytes) {
  int shift = 0;
  for (auto [suffix, bits] : {std::pair<std::string_view, int>{"KiB", 10},
                              {"MiB", 20},
                              {"GiB", 30}}) {
    if (text.ends_with(suffix)) {
      text.remove_suffix(suffix.size());
      shift = bits;
      break;
    }
  }
  int64_t value = 0;
  if (!absl::SimpleAtoi(AbslView(text), &value) || value < 0) return false;
  if (value > (max >> shift)) return false;
  *bytes = value << shift;
  return true;
}

std::string BytesAllowed(int64_t min, int64_t max) {
  const bool in_gib = max % (int64_t{1} << 30) == 0;
  return Cat(
      "a number of bytes, with KiB, MiB or GiB behind it if wanted, from ",
      min >> 10, min > 0 ? "KiB to " : " to ", max >> (in_gib ? 30 : 20),
      in_gib ? "GiB" : "MiB");
}

bool IsPath(std::string_view text) {
  return !text.empty() && IsOptionalPath(text);
}

bool IsOptionalPath(std::string_view text) {
  return IsPlainText(text, kMaxPathBytes);
}

bool IsOptionalName(std::string_view text) {
  return IsPlainText(text, kMaxNameBytes);
}

bool AreHosts(std::string_view text) {
  return text.size() <= kMaxWordsBytes && AllWords(text, IsHostWord);
}

bool AreOrigins(std::string_view text) {
  return text.size() <= kMaxWordsBytes && AllWords(text, IsOriginWord);
}

bool AreFaults(std::string_view text) {
  return AllWords(text,
                  [](std::string_view word) { return ParseFault(word).ok(); });
}

bool AreMessageFaults(std::string_view text) {
  return ParseMessageFaults(text).ok();
}

std::string AddressOf(std::string_view text) {
  if (text == "localhost") return "127.0.0.1";
  std::string host(text);
  unsigned char bytes[16];
  const bool is_address = inet_pton(AF_INET, host.c_str(), bytes) == 1 ||
                          inet_pton(AF_INET6, host.c_str(), bytes) == 1;
  return is_address ? host : std::string();
}

}  // namespace moebius
