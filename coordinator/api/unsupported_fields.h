// Fields of OpenAI's and vLLM's requests that would change the answer and that
// this server does not have: better refused than ignored. Pure.
#pragma once

#include "coordinator/api/request_fields.h"

namespace moebius {

// Fails the first such field whose value is not neutral, that is: says the same
// as leaving it out. null always is.
//
// Not refused: fields that describe the caller (user, metadata, store,
// service_tier, ...), that speak of caches and chunks alone (cache_salt,
// stream_interval, ...), or that make no difference to these tokenizers
// (add_special_tokens, spaces_between_special_tokens); and names that nobody
// has heard of.
void RefuseUnsupported(FieldReader& fields, bool chat);

}  // namespace moebius
