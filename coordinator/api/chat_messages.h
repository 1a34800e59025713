// The messages of a chat request, checked and brought to the form that chat
// templates expect. Pure.
#pragma once

#include "coordinator/api/json_input.h"
#include "coordinator/api/openai_request.h"

namespace moebius {

// Roles are system, user, assistant and tool (developer, OpenAI's newer word,
// becomes system). A content given in parts becomes one string, parts joined by
// line breaks. Arguments of tool calls, which the protocol sends as text,
// become the object they spell if they do. Other keys stay as they are.
// Errors name the place: `messages[2].content`.
Parsed<Json> NormalizeMessages(const Json& messages);

}  // namespace moebius
