// absl's string functions for std::string_view: Debian builds absl with a
// string_view of its own, which does not convert.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace moebius::jinja {

template <typename T>
decltype(auto) Piece(const T& part) {
  if constexpr (std::is_convertible_v<const T&, std::string_view>) {
    const std::string_view view = part;
    return absl::string_view(view.data(), view.size());
  } else {
    return (part);
  }
}

template <typename... Parts>
std::string StrCat(const Parts&... parts) {
  return absl::StrCat(Piece(parts)...);
}

template <typename... Parts>
void StrAppend(std::string* out, const Parts&... parts) {
  absl::StrAppend(out, Piece(parts)...);
}

}  // namespace moebius::jinja
