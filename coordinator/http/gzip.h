// gzip (RFC 1952), for answers that a client takes compressed.
#pragma once

#include <string>
#include <string_view>

namespace moebius {

// `text` compressed, quickly rather than well; "" if there is no memory for it.
std::string Gzip(std::string_view text);

}  // namespace moebius
