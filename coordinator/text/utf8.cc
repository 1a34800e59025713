#include "coordinator/text/utf8.h"

#include <cstring>

namespace moebius {
namespace {

// Bytes of the character that `lead` begins; 0 if no character begins so.
int SequenceSize(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  if (lead < 0xF5) return 4;
  return 0;
}

// Whether `byte` may stand at `index` (1..3) of a character begun by `lead`
// (The Unicode Standard, table 3-7).
bool MayFollow(uint8_t lead, int index, uint8_t byte) {
  uint8_t low = 0x80, high = 0xBF;
  if (index == 1) {
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  }
  return low <= byte && byte <= high;
}

// The length of the longest prefix of `text` that is valid UTF-8.
size_t ValidPrefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (text.size() - at >= 8) {
      uint64_t word;
      std::memcpy(&word, text.data() + at, 8);
      if ((word & 0x8080808080808080u) == 0) {
        at += 8;
        continue;
      }
    }
    const auto lead = static_cast<uint8_t>(text[at]);
    const size_t size = SequenceSize(lead);
    if (size == 0 || text.size() - at < size) return at;
    for (size_t i = 1; i < size; ++i) {
      const auto byte = static_cast<uint8_t>(text[at + i]);
      if (!MayFollow(lead, static_cast<int>(i), byte)) return at;
    }
    at += size;
  }
  return at;
}

}  // namespace

void Utf8Repairer::Append(std::string_view bytes, std::string* out) {
  size_t at = 0;
  while (at < bytes.size()) {
    if (size_ == 0) {
      const size_t valid = ValidPrefix(bytes.substr(at));
      out->append(bytes.data() + at, valid);
      at += valid;
      if (at == bytes.size()) return;
      const auto lead = static_cast<uint8_t>(bytes[at++]);
      const int size = SequenceSize(lead);
      if (size == 0) {
        out->append(kReplacementCharacter);
        continue;
      }
      // ValidPrefix stopped here, so the character is more than one byte.
      held_[0] = lead;
      size_ = 1;
      wanted_ = static_cast<uint8_t>(size);
      continue;
    }
    const auto byte = static_cast<uint8_t>(bytes[at]);
    if (!MayFollow(held_[0], size_, byte)) {
      out->append(kReplacementCharacter);
      size_ = 0;  // `byte` is read again as the start of a character
      continue;
    }
    held_[size_++] = byte;
    ++at;
    if (size_ == wanted_) {
      out->append(reinterpret_cast<const char*>(held_), size_);
      size_ = 0;
    }
  }
}

void Utf8Repairer::Flush(std::string* out) {
  if (size_ != 0) out->append(kReplacementCharacter);
  size_ = 0;
}

bool IsValidUtf8(std::string_view text) {
  return ValidPrefix(text) == text.size();
}

std::string RepairUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  Utf8Repairer repairer;
  repairer.Append(text, &out);
  repairer.Flush(&out);
  return out;
}

void AppendUtf8(char32_t value, std::string* out) {
  const auto put = [out](char32_t byte) {
    out->push_back(static_cast<char>(byte));
  };
  if (value < 0x80) {
    put(value);
  } else if (value < 0x800) {
    put(0xC0 | value >> 6);
    put(0x80 | (value & 0x3F));
  } else if (value < 0x10000) {
    put(0xE0 | value >> 12);
    put(0x80 | (value >> 6 & 0x3F));
    put(0x80 | (value & 0x3F));
  } else {
    put(0xF0 | value >> 18);
    put(0x80 | (value >> 12 & 0x3F));
    put(0x80 | (value >> 6 & 0x3F));
    put(0x80 | (value & 0x3F));
  }
}

}  // namespace moebius
