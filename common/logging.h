// How the processes of a group log.
#pragma once

#include <spdlog/formatter.h>

#include <memory>
#include <string>

namespace moebius {

// Level and text, one line of at most kMaxLogLineBytes whatever is in the text:
// messages quote clients. The bound is below what the launcher takes for one
// line, so that no part of a message can pose as a line of its own.
inline constexpr size_t kMaxLogLineBytes = 1800;
std::unique_ptr<spdlog::formatter> OneLineFormatter();

// From now on spdlog writes to standard error in this form.
void StartLogging(const std::string& name);

}  // namespace moebius
