// Man pages and completions of shells, from the text that --help shows.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"

namespace moebius {

// "moebius-bench-serve": the name of a command's page.
std::string PageName(const CLI::App& command);

// The page of `command` (roff, section 1).
std::string ManPage(const CLI::App& command);

// `app` and all commands below it, those without a group of help left out.
std::vector<const CLI::App*> ShownCommands(const CLI::App& app);

// A script to be sourced by that shell.
std::string BashCompletion(const CLI::App& app);
std::string ZshCompletion(const CLI::App& app);
std::string FishCompletion(const CLI::App& app);

}  // namespace moebius
