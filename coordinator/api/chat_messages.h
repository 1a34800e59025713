// The messages of a chat request, checked and brought to the form that chat
// templates expect. Pure.
#pragma once

#include "coordinator/api/json_input.h"
#include "coordinator/api/openai_request.h"

namespace moebius {

// Roles are system, user, assistant and tool (developer, OpenAI's newer word,
// becomes system). A content is a string or a list of text parts; an assistant
// without one has no parts. Arguments of tool calls, which the protocol
// sends as text, become the object that they spell to Python, or an empty one.
// A thought (`reasoning`, `reasoning_content`) is there under both names. Other
// keys stay as they are.
// Errors name the place: `messages[2].content`.
Parsed<Json> NormalizeMessages(const Json& messages);

}  // namespace moebius
