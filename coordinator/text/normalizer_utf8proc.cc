#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "common/base/cat.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

struct Range {
  char32_t first, last;
};

template <size_t kSize>
bool InRanges(const Range (&ranges)[kSize], char32_t value) {
  for (const Range& range : ranges) {
    if (range.first <= value && value <= range.last) return true;
  }
  return false;
}

// The whole canonical decomposition of one character is 4 characters at most.
constexpr int kMaxDecomposition = 8;

int CombiningClass(utf8proc_int32_t value) {
  return utf8proc_get_property(value)->combining_class;
}

// Normalises `text` onto the end of `out`, with `points` as scratch.
//
// utf8proc_map would sort a run of combining marks by exchanging neighbours,
// in quadratic time; a request may carry a run of millions. So the marks are
// sorted here, and the library only decomposes and composes.
absl::Status AppendNormalized(std::string_view text,
                              std::vector<utf8proc_int32_t>* points,
                              std::string* out) {
  const auto options =
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  points->clear();
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = ReadCodePoint(text.data() + at);
    at += point.size_bytes;
    utf8proc_int32_t parts[kMaxDecomposition];
    int last_boundclass = UTF8PROC_BOUNDCLASS_START;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(point.value), parts, kMaxDecomposition,
        options, &last_boundclass);
    if (count < 0 || count > kMaxDecomposition) {
      return absl::InternalError(
          Cat("utf8proc cannot decompose U+", absl::Hex(point.value)));
    }
    points->insert(points->end(), parts, parts + count);
  }
  for (auto it = points->begin(); it != points->end();) {
    if (CombiningClass(*it) == 0) {
      ++it;
      continue;
    }
    const auto end = std::find_if(
        it, points->end(), [](auto p) { return CombiningClass(p) == 0; });
    std::stable_sort(it, end, [](auto a, auto b) {
      return CombiningClass(a) < CombiningClass(b);
    });
    it = end;
  }
  const utf8proc_ssize_t length = utf8proc_normalize_utf32(
      points->data(), static_cast<utf8proc_ssize_t>(points->size()), options);
  if (length < 0) {
    return absl::InternalError(Cat("utf8proc: ", utf8proc_errmsg(length)));
  }
  for (utf8proc_ssize_t i = 0; i < length; ++i) {
    AppendUtf8(static_cast<char32_t>((*points)[i]), out);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> NormalizeNfc(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> points;
  size_t copied = 0;    // text[0, copied) is in `out`
  size_t previous = 0;  // start of the character before `at`
  for (size_t at = 0; at < text.size();) {
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      previous = at++;
      continue;
    }
    const CodePoint point = ReadCodePoint(text.data() + at);
    if (IsInertInNfc(point.value)) {
      previous = at;
      at += point.size_bytes;
      continue;
    }
    // Nothing combines across the start of an inert character, so one such
    // character and what follows it up to the next can be treated alone.
    size_t end = at + point.size_bytes;
    while (end < text.size()) {
      const CodePoint next = ReadCodePoint(text.data() + end);
      if (IsInertInNfc(next.value)) break;
      end += next.size_bytes;
    }
    out.append(text, copied, previous - copied);
    const absl::Status status =
        AppendNormalized(text.substr(previous, end - previous), &points, &out);
    if (!status.ok()) return status;
    copied = previous = at = end;
  }
  out.append(text, copied);
  return out;
}

bool IsInertInNfc(char32_t value) {
  if (value < 0x300) return true;
  static constexpr Range kInert[] = {
      {0x4E00, 0x9FFF},    // CJK ideographs
      {0xAC00, 0xD7A3},    // Hangul syllables; jamo that follow are not here
      {0x0400, 0x0482},    // Cyrillic
      {0x2010, 0x2027},    // dashes and quotation marks
      {0x3000, 0x3029},    // CJK punctuation
      {0x3041, 0x3096},    // Hiragana, without the sound marks
      {0x30A1, 0x30FA},    // Katakana
      {0xFF01, 0xFF60},    // full-width forms
      {0x0621, 0x064A},    // Arabic letters
      {0x05D0, 0x05EA},    // Hebrew letters
      {0x1F300, 0x1FAFF},  // emoji
  };
  return InRanges(kInert, value);
}

bool IsWhiteSpace(char32_t value) {
  static constexpr Range kWhiteSpace[] = {
      {0x09, 0x0D},     {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},
      {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
      {0x205F, 0x205F}, {0x3000, 0x3000},
  };
  return InRanges(kWhiteSpace, value);
}

bool IsWordCharacter(char32_t value) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(value))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      break;
  }
  // Join controls, and the symbols that are Other_Alphabetic.
  static constexpr Range kOthers[] = {
      {0x200C, 0x200D},   {0x24B6, 0x24E9},   {0x1F130, 0x1F149},
      {0x1F150, 0x1F169}, {0x1F170, 0x1F189},
  };
  return InRanges(kOthers, value);
}

}  // namespace moebius
