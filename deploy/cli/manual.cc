#include "deploy/cli/manual.h"

#include <algorithm>
#include <sstream>
#include <string_view>

#include "absl/strings/ascii.h"
#include "common/base/cat.h"
#include "common/base/version.h"

namespace moebius {
namespace {

// "moebius bench serve".
std::string FullName(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  if (parent == nullptr) return command.get_name();
  return Cat(FullName(*parent), " ", command.get_name());
}

std::vector<const CLI::App*> CommandsOf(const CLI::App& command) {
  return command.get_subcommands(
      [](const CLI::App* sub) { return !sub->get_group().empty(); });
}

std::vector<const CLI::Option*> OptionsOf(const CLI::App& command) {
  return command.get_options(
      [](const CLI::Option* option) { return !option->get_group().empty(); });
}

bool TakesValue(const CLI::Option& option) {
  return option.get_items_expected_max() > 0;
}

// Its names with their dashes, short ones first.
std::vector<std::string> NamesOf(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) {
    names.push_back(Cat("-", name));
  }
  for (const std::string& name : option.get_lnames()) {
    names.push_back(Cat("--", name));
  }
  return names;
}

// The words that an option's value is one of: "ep", "tp" and "auto" of the text
// "ep|tp|tpN|auto". What has a capital stands for words.
std::vector<std::string> ChoicesOf(const CLI::Option& option) {
  const std::string text = option.get_option_text();
  std::vector<std::string> words;
  if (text.find('|') == std::string::npos) return words;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, '|');) {
    if (std::none_of(word.begin(), word.end(), absl::ascii_isupper)) {
      words.push_back(word);
    }
  }
  return words;
}

bool IsPath(const CLI::Option& option) {
  const std::string text = option.get_option_text();
  return text == "FILE" || text == "DIR" || text == "FOLDER";
}

// ---- roff ------------------------------------------------------------------

std::string Roff(std::string_view text) {
  std::string out;
  bool line_begins = true;
  for (const char c : text) {
    // A control line begins with one of these.
    if (line_begins && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      out += c;
    }
    line_begins = c == '\n';
  }
  return out;
}

// A footer: lines that are indented stay as they are.
std::string RoffLines(const std::string& text) {
  std::string out;
  std::istringstream in(text);
  bool kept = false;
  for (std::string line; std::getline(in, line);) {
    const bool indented = line.starts_with(" ");
    if (indented != kept) out += indented ? ".nf\n" : ".fi\n";
    kept = indented;
    out += Cat(Roff(line), "\n");
  }
  if (kept) out += ".fi\n";
  return out;
}

std::string OptionEntry(const CLI::Option& option) {
  std::string names;
  if (option.get_positional() && option.get_lnames().empty()) {
    names = Cat("\\fI", Roff(option.get_name(true)), "\\fR");
  }
  for (const std::string& name : NamesOf(option)) {
    names += Cat(names.empty() ? "" : ", ", "\\fB", Roff(name), "\\fR");
  }
  const std::string value = option.get_option_text();
  if (!value.empty()) names += Cat(" \\fI", Roff(value), "\\fR");
  return Cat(".TP\n", names, "\n", Roff(option.get_description()), "\n");
}

std::string Section(std::string_view title) { return Cat(".SH ", title, "\n"); }

// Its synopsis: what stands where.
std::string Synopsis(const CLI::App& command) {
  std::string words = Cat("\\fB", Roff(FullName(command)), "\\fR");
  if (!CommandsOf(command).empty()) {
    return Cat(words, " \\fICOMMAND\\fR [\\fIOPTIONS\\fR]");
  }
  words += " [\\fIOPTIONS\\fR]";
  for (const CLI::Option* option : OptionsOf(command)) {
    if (!option->get_positional()) continue;
    words +=
        Cat(" \\fI",
            Roff(option->get_option_text().empty() ? option->get_name(true)
                                                   : option->get_option_text()),
            "\\fR");
  }
  return words;
}

// ---- shells ----------------------------------------------------------------

// 'it'\''s': one word of a shell.
std::string Quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

std::string Joined(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) {
    all += Cat(all.empty() ? "" : " ", word);
  }
  return all;
}

// Words that may come next in `command`: commands, flags, values by position.
std::vector<std::string> WordsOf(const CLI::App& command) {
  std::vector<std::string> words;
  for (const CLI::App* sub : CommandsOf(command)) {
    words.push_back(sub->get_name());
  }
  for (const CLI::Option* option : OptionsOf(command)) {
    for (const std::string& name : NamesOf(*option)) words.push_back(name);
    if (!option->get_positional()) continue;
    for (const std::string& choice : ChoicesOf(*option)) {
      words.push_back(choice);
    }
  }
  return words;
}

// "first sentence" of a description, for shells that show it.
std::string Brief(const std::string& description) {
  return description.substr(0, description.find(". "));
}

}  // namespace

std::string PageName(const CLI::App& command) {
  std::string name = FullName(command);
  for (char& c : name) {
    if (c == ' ') c = '-';
  }
  return name;
}

std::string ManPage(const CLI::App& command) {
  std::string page = Cat(".TH \"", Roff(PageName(command)),
                         "\" 1 \"\" \"Moebius ", kVersion, "\" Moebius\n");
  page += Cat(Section("NAME"), Roff(PageName(command)), " \\- ",
              Roff(Brief(command.get_description())), "\n");
  page += Cat(Section("SYNOPSIS"), Synopsis(command), "\n");
  page += Cat(Section("DESCRIPTION"), Roff(command.get_description()), "\n");
  const auto commands = CommandsOf(command);
  if (!commands.empty()) page += Section("COMMANDS");
  for (const CLI::App* sub : commands) {
    page += Cat(".TP\n\\fB", Roff(sub->get_name()), "\\fR\n",
                Roff(sub->get_description()), "\n");
  }
  std::string group;
  for (const std::string& name : command.get_groups()) {
    std::string entries;
    for (const CLI::Option* option : OptionsOf(command)) {
      if (option->get_group() == name) entries += OptionEntry(*option);
    }
    if (entries.empty()) continue;
    page += Cat(group.empty() ? Section("OPTIONS") : "", ".SS ", Roff(name),
                "\n", entries);
    group = name;
  }
  if (!command.get_footer().empty()) {
    page += Cat(Section("NOTES"), RoffLines(command.get_footer()));
  }
  std::string others;
  for (const CLI::App* sub : commands) {
    others += Cat(others.empty() ? "" : ",\n", "\\fB", Roff(PageName(*sub)),
                  "\\fR(1)");
  }
  if (const CLI::App* parent = command.get_parent()) {
    others = Cat("\\fB", Roff(PageName(*parent)), "\\fR(1)");
  }
  return Cat(page, Section("SEE ALSO"), others, "\n");
}

std::vector<const CLI::App*> ShownCommands(const CLI::App& app) {
  std::vector<const CLI::App*> all = {&app};
  for (size_t i = 0; i < all.size(); ++i) {  // a tree of two floors
    for (const CLI::App* sub : CommandsOf(*all[i])) all.push_back(sub);
  }
  return all;
}

std::string BashCompletion(const CLI::App& app) {
  std::string words, values;
  for (const CLI::App* command : ShownCommands(app)) {
    words += Cat("    ", Quoted(FullName(*command)),
                 ") words=", Quoted(Joined(WordsOf(*command))), " ;;\n");
    for (const CLI::Option* option : OptionsOf(*command)) {
      const auto names = NamesOf(*option);
      if (names.empty() || !TakesValue(*option)) continue;
      std::string patterns;
      for (const std::string& name : names) {
        patterns += Cat(patterns.empty() ? "" : "|",
                        Quoted(Cat(FullName(*command), " ", name)));
      }
      const auto choices = ChoicesOf(*option);
      values += Cat("    ", patterns, ") ",
                    IsPath(*option)
                        ? "COMPREPLY=($(compgen -f -- \"$current\"))"
                        : Cat("COMPREPLY=($(compgen -W ",
                              Quoted(Joined(choices)), " -- \"$current\"))"),
                    "; return ;;\n");
    }
  }
  std::string commands;
  for (const CLI::App* command : ShownCommands(app)) {
    if (command == &app) continue;
    commands += Cat(commands.empty() ? "" : "|", Quoted(FullName(*command)));
  }
  const std::string& name = app.get_name();
  return Cat("# bash completion of ", name, "\n_", name, "() {\n",
             "  local current=${COMP_WORDS[COMP_CWORD]} command=", name,
             " words= i\n", "  local previous=${COMP_WORDS[COMP_CWORD-1]}\n",
             "  for ((i = 1; i < COMP_CWORD; ++i)); do\n",
             "    case \"$command ${COMP_WORDS[i]}\" in\n      ", commands,
             ") command+=\" ${COMP_WORDS[i]}\" ;;\n    esac\n  done\n",
             "  case \"$command $previous\" in\n", values, "  esac\n",
             "  case \"$command\" in\n", words, "  esac\n",
             "  mapfile -t COMPREPLY < <(compgen -W \"$words\" -- ",
             "\"$current\")\n}\ncomplete -o filenames -F _", name, " ", name,
             "\n");
}

// zsh runs bash's with its own emulation of it.
std::string ZshCompletion(const CLI::App& app) {
  const std::string& name = app.get_name();
  return Cat("#compdef ", name, "\nautoload -U +X bashcompinit && ",
             "bashcompinit\n", BashCompletion(app));
}

std::string FishCompletion(const CLI::App& app) {
  std::string out = Cat("# fish completion of ", app.get_name(), "\n");
  const auto line = [&](const CLI::App& command, std::string_view rest) {
    const CLI::App* parent = command.get_parent();
    std::string when = "__fish_use_subcommand";
    if (parent != nullptr) {
      when = Cat("__fish_seen_subcommand_from ", command.get_name());
    }
    if (parent != nullptr && parent->get_parent() != nullptr) {
      when = Cat("__fish_seen_subcommand_from ", parent->get_name(), "; and ",
                 when);
    }
    out += Cat("complete -c ", app.get_name(), " -n ", Quoted(when), " ", rest,
               "\n");
  };
  for (const CLI::App* command : ShownCommands(app)) {
    for (const CLI::App* sub : CommandsOf(*command)) {
      line(*command, Cat("-f -a ", sub->get_name(), " -d ",
                         Quoted(Brief(sub->get_description()))));
    }
    for (const CLI::Option* option : OptionsOf(*command)) {
      std::string rest;
      for (const std::string& name : option->get_snames()) {
        rest += Cat("-s ", name, " ");
      }
      for (const std::string& name : option->get_lnames()) {
        rest += Cat("-l ", name, " ");
      }
      const auto choices = ChoicesOf(*option);
      if (rest.empty() && choices.empty()) continue;
      if (!choices.empty()) rest += Cat("-f -a ", Quoted(Joined(choices)), " ");
      if (!option->get_positional() && TakesValue(*option)) rest += "-r ";
      if (IsPath(*option)) rest += "-F ";
      line(*command,
           Cat(rest, "-d ", Quoted(Brief(option->get_description()))));
    }
  }
  return out;
}

}  // namespace moebius
