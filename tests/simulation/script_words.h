// The protocol in words: what a line of the script says of a message, of a
// record of the journal, of a worker's signals. Pure.
#pragma once

#include <string>

#include "common/wire/wire.h"
#include "coordinator/journal/journal_record.h"
#include "worker/memory/signals.h"

namespace moebius::simulation {

// A name in capitals and the fields that matter: "HALT round 2". Nothing in it
// comes from a hash, a clock or the machine.
std::string WordsOf(const wire::CommandMessage& message);
std::string WordsOf(const wire::Report& report);
std::string WordsOf(const journal::Record& record);
std::string WordsOf(const SwitchProgress& progress);

// "1 page", "2 pages".
std::string Count(uint64_t count, const char* what);
// "token 20", "tokens 20 to 23": by their places, the prompt's first is 0.
std::string Tokens(uint64_t first, uint64_t last);

}  // namespace moebius::simulation
