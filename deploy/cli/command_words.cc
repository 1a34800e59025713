#include "deploy/cli/command_words.h"

#include <string_view>
#include <utility>

#include "common/base/cat.h"
#include "common/base/near_miss.h"
#include "common/base/printable.h"
#include "common/config/layout_choice.h"

namespace moebius {
namespace {

std::string_view WithoutDashes(std::string_view flag) {
  flag.remove_prefix(std::min(flag.find_first_not_of('-'), flag.size()));
  return flag;
}

bool IsFlag(std::string_view word) {
  return word.size() > 1 && word[0] == '-' &&
         (word[1] < '0' || word[1] > '9');  // a negative number is a value
}

// "serve" or "bench serve".
std::string FullName(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  if (parent == nullptr) return command.get_name();
  return Cat(FullName(*parent), " ", command.get_name());
}

// "--port" of "--port=80"; "-c" of "-cfile".
std::string NameOf(const std::string& word) {
  if (word.starts_with("--")) return word.substr(0, word.find('='));
  return word.substr(0, 2);
}

std::string UnknownFlag(const CLI::App& command, std::string_view flag) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back(name);
  }
  const std::string_view nearest =
      NearestName(WithoutDashes(flag),
                  std::vector<std::string_view>(names.begin(), names.end()));
  return Cat("`", FullName(command), "` knows no flag '", Printable(flag), "'",
             nearest.empty() ? std::string()
                             : Cat(" (did you mean '--", nearest, "'?)"));
}

std::string UnknownCommand(const CLI::App& command, std::string_view word) {
  std::vector<std::string> names;
  for (const CLI::App* known :
       command.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(known->get_name());
  }
  const std::vector<std::string_view> views(names.begin(), names.end());
  std::string all;
  for (const std::string& name : names) {
    all += Cat(all.empty() ? "" : ", ", name);
  }
  return Cat("`", FullName(command), "` knows no command '", Printable(word),
             "'", NearMiss(word, views), "; there are ", all);
}

const CLI::App* FindCommand(const CLI::App& command, const std::string& name) {
  for (const CLI::App* known :
       command.get_subcommands([](const CLI::App*) { return true; })) {
    if (known->get_name() == name) return known;
  }
  return nullptr;
}

bool HasCommands(const CLI::App& command) {
  return !command.get_subcommands([](const CLI::App*) { return true; }).empty();
}

size_t NumPositionals(const CLI::App& command) {
  return command
      .get_options(
          [](const CLI::Option* option) { return option->get_positional(); })
      .size();
}

}  // namespace

std::string UnknownWord(const CLI::App& app,
                        const std::vector<std::string>& words) {
  const CLI::App* command = &app;
  size_t positionals = 0;  // of the command, so far
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--") return "";
    if (IsFlag(word)) {
      const std::string name = NameOf(word);
      const CLI::Option* option = command->get_option_no_throw(name);
      if (option == nullptr) {
        return UnknownFlag(*command, word.substr(0, word.find('=')));
      }
      const bool whole = word.size() == name.size();
      if (whole && option->get_items_expected_min() > 0) ++i;  // its value
      continue;
    }
    if (HasCommands(*command)) {
      const CLI::App* next = FindCommand(*command, word);
      if (next == nullptr) return UnknownCommand(*command, word);
      command = next;
      continue;
    }
    if (++positionals > NumPositionals(*command)) {
      return Cat("`", FullName(*command), "` expects no word '",
                 Printable(word), "' there");
    }
  }
  return "";
}

CLI::Validator OneOf(std::vector<std::string> names) {
  std::string all;
  for (const std::string& name : names) {
    all += Cat(all.empty() ? "" : ", ", name);
  }
  return CLI::Validator(
      [names = std::move(names), all](std::string& word) {
        for (const std::string& name : names) {
          if (word == name) return std::string();
        }
        return Cat("allowed is one of ", all, ", not '", Printable(word), "'",
                   NearMiss(word, std::vector<std::string_view>(names.begin(),
                                                                names.end())));
      },
      "");
}

CLI::Validator LayoutWord(bool also_auto) {
  return CLI::Validator(
      [also_auto](std::string& word) {
        const auto choice = ParseLayoutChoice(word);
        if (choice.has_value() && (also_auto || !choice->is_auto())) {
          return std::string();
        }
        std::vector<std::string_view> names = {"ep", "tp", "tp2", "tp4"};
        if (also_auto) names.push_back("auto");
        return Cat("allowed is ", kLayoutNames, also_auto ? ", or auto" : "",
                   ", not '", Printable(word), "'", NearMiss(word, names));
      },
      "");
}

}  // namespace moebius
