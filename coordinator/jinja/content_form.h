// The form in which a template wants the content of messages.
#pragma once

#include "coordinator/jinja/template_ast.h"
#include "nlohmann/json.hpp"

namespace moebius {

enum class ContentForm {
  kText,   // a string
  kParts,  // [{"type": "text", "text": ...}], but a string for tools
  kPartsForAll,
};

// Told from what the template does: one that looks at the parts of a message's
// content would find none in a string. Followed are names that are set to
// messages, a message or its content, loops, and arguments of macros. (vLLM
// decides by loops alone: renderers/hf.py, _detect_content_format.)
//
// The results of tools are strings to templates that know strings at all
// ("is string"): such templates print them as they are.
ContentForm DetectContentForm(const jinja::Template& parsed);

// Brings each content of `messages`, a string or a list of text parts, to
// `form`. Parts become one string with line breaks between.
void ApplyContentForm(ContentForm form, nlohmann::ordered_json* messages);

}  // namespace moebius
