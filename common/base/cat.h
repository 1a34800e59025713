// Cat: absl::StrCat that takes std::string_view too. (Debian's Abseil is built
// with a string_view of its own, which std::string_view does not convert to.)
#pragma once

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace moebius {

inline absl::string_view AbslView(std::string_view text) {
  return absl::string_view(text.data(), text.size());
}
inline std::string_view StdView(absl::string_view text) {
  return std::string_view(text.data(), text.size());
}

namespace internal {
inline absl::string_view CatPiece(std::string_view text) {
  return AbslView(text);
}
template <typename T>
const T& CatPiece(const T& value) {
  return value;
}
}  // namespace internal

template <typename... Args>
std::string Cat(const Args&... args) {
  return absl::StrCat(internal::CatPiece(args)...);
}

}  // namespace moebius
