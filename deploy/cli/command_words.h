// Words of a command line that no command knows: what is said about them.
#pragma once

#include <string>
#include <vector>

#include "deploy/cli/command.h"

namespace moebius {

// What is wrong with the first word that `app` or the command chosen by the
// words before it does not know, and which one was probably meant; "" if all
// are known. Values of flags are not looked at. `words` are without the
// program's name.
std::string UnknownWord(const CLI::App& app,
                        const std::vector<std::string>& words);

// A check for values: one of `names`, or else the nearest is named.
CLI::Validator OneOf(std::vector<std::string> names);

// A check for values: the name of a layout (ep, tp, tp2 and so on), or auto if
// that is allowed too; else the nearest is named. Which of them a group has is
// for it to say.
CLI::Validator LayoutWord(bool also_auto);

}  // namespace moebius
