#include "coordinator/text/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

constexpr int kNumBytes = 256;
constexpr int kFirstSubstitute = 0x100;
constexpr int kNumSubstitutes = 68;

constexpr bool SpelledAsItself(int byte) {
  return (0x21 <= byte && byte <= 0x7E) || (0xA1 <= byte && byte <= 0xAC) ||
         (0xAE <= byte && byte <= 0xFF);
}

struct Tables {
  std::array<uint16_t, kNumBytes> character;                     // of each byte
  std::array<int16_t, kFirstSubstitute + kNumSubstitutes> byte;  // -1: none
};

constexpr Tables MakeTables() {
  Tables tables{};
  for (auto& byte : tables.byte) byte = -1;
  int substitute = kFirstSubstitute;
  for (int byte = 0; byte < kNumBytes; ++byte) {
    const int character = SpelledAsItself(byte) ? byte : substitute++;
    tables.character[byte] = static_cast<uint16_t>(character);
    tables.byte[character] = static_cast<int16_t>(byte);
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

}  // namespace

std::optional<std::string> BytesFromSpelling(std::string_view spelling) {
  std::string bytes;
  bytes.reserve(spelling.size());
  for (size_t at = 0; at < spelling.size();) {
    const CodePoint point = ReadCodePoint(spelling.data() + at);
    if (point.value >= kTables.byte.size()) return std::nullopt;
    const int byte = kTables.byte[point.value];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    at += point.size_bytes;
  }
  return bytes;
}

std::string SpellingFromBytes(std::string_view bytes) {
  std::string spelling;
  spelling.reserve(bytes.size() * 2);
  for (const char byte : bytes) {
    AppendUtf8(kTables.character[static_cast<uint8_t>(byte)], &spelling);
  }
  return spelling;
}

}  // namespace moebius
