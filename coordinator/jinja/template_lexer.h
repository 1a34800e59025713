// Splits template source into text and tokens.
//
// White space follows Jinja with trim_blocks and lstrip_blocks on, which is
// how Hugging Face renders chat templates: the newline after a block tag or
// comment goes, and so does white space before one that begins a line; "-"
// at a delimiter removes all white space on its side. ("+", which keeps it, is
// not supported.)
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/jinja/template_value.h"

namespace moebius::jinja {

struct Token {
  enum class Kind {
    kData,  // text outside of tags
    kTag,   // "{{", "}}", "{%" or "%}"
    kName,
    kString,  // unescaped
    kNumber,
    kOperator,
    kEnd,
  };

  Kind kind;
  int line;
  std::string text;   // but for kNumber, kEnd
  Value number = {};  // kNumber
};

// The tokens of `source`, the last of kind kEnd.
//
// Errors: kInvalidArgument "line N: ..." for malformed source and for source
// above kMaxTemplateBytes.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

// "line N: reason".
absl::Status ErrorAtLine(int line, std::string_view reason);

}  // namespace moebius::jinja
