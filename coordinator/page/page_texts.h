// Files of this folder and of docs/ that the program has in it: the operators'
// page, and the description of the API.
#pragma once

#include <string_view>

namespace moebius {

std::string_view PageHtml();
std::string_view PageScript();
std::string_view PageStyle();
std::string_view OpenApiJson();

}  // namespace moebius
